//go:build man

// With the tag man, the package is the generator of the manual pages: it has the
// command's own definitions, and the program does not carry what writes them.

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

const programName = "umoci-mount"

// main writes a manual page a command into the directory that is its argument.
func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: man DIR")
		os.Exit(exitUsage)
	}
	if err := writeManual(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(exitFailure)
	}
}

func writeManual(dir string) error {
	root := newRootCommand(programName)
	root.DisableAutoGenTag = true // no date: the same definitions give the same pages
	root.InitDefaultVersionFlag()
	var each func(*cobra.Command) error
	each = func(cmd *cobra.Command) error {
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
		header := &doc.GenManHeader{
			Title: strings.ToUpper(name), Section: "1", Source: programName + " " + version, Manual: "User Commands",
		}
		f, err := os.Create(filepath.Join(dir, name+".1"))
		if err != nil {
			return err
		}
		err = doc.GenMan(cmd, header, f)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, sub := range cmd.Commands() {
			if !sub.IsAvailableCommand() || sub.IsAdditionalHelpTopicCommand() {
				continue
			}
			if err := each(sub); err != nil {
				return err
			}
		}
		return nil
	}
	return each(root)
}
