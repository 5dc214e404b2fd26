//go:build man

// With the tag man, the package is the generator of the manual pages: it has the
// command's own definitions, and the program does not carry what writes them.

package main

import (
	"bytes"
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
	return writePages(dir, root)
}

// writePages writes the pages of a command and of those below it, the hidden ones too:
// their users look for them. An alias has a page that leads to the command's.
func writePages(dir string, cmd *cobra.Command) error {
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
	header := &doc.GenManHeader{
		Title: strings.ToUpper(name), Section: "1", Source: programName + " " + version, Manual: "User Commands",
	}
	var page bytes.Buffer
	if err := doc.GenMan(cmd, header, &page); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".1"), page.Bytes(), 0o644); err != nil {
		return err
	}
	for _, alias := range cmd.Aliases {
		file := filepath.Join(dir, strings.TrimSuffix(name, cmd.Name())+alias+".1")
		if err := os.WriteFile(file, []byte(".so man1/"+name+".1\n"), 0o644); err != nil {
			return err
		}
	}
	for _, sub := range cmd.Commands() {
		if !sub.Runnable() && !sub.HasSubCommands() || sub.Deprecated != "" || sub.Name() == "serve-mount" || sub.Name() == "help" {
			continue
		}
		if err := writePages(dir, sub); err != nil {
			return err
		}
	}
	return nil
}
