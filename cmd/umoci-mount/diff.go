package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

type diffOptions struct {
	global *globalOptions
	json   bool
	long   bool
}

func newDiffCommand(global *globalOptions) *cobra.Command {
	o := &diffOptions{global: global}
	cmd := &cobra.Command{
		Use:   "diff BUNDLE",
		Short: "list what changed in a bundle",
		Long: `Lists what differs between BUNDLE and the image it was made from, one path a line:
A (added), C (changed) or D (deleted; what was below is not listed). It is what a
repack would write, but for the paths that one leaves out.`,
		Args: exactArgs("BUNDLE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), cmd.OutOrStdout(), args[0])
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.json, "json", false, "write JSON")
	f.BoolVarP(&o.long, "long", "l", false, "show mode, owner and size too; of a deleted path, those it had")
	return cmd
}

func (o *diffOptions) run(ctx context.Context, out io.Writer, dir string) error {
	log, err := o.global.logger()
	if err != nil {
		return err
	}
	changes, err := bundle.Diff(ctx, dir, log)
	if err != nil {
		return err
	}
	if o.json {
		if changes == nil {
			changes = []bundle.Change{}
		}
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(changes)
	}
	w := bufio.NewWriter(out)
	for i := range changes {
		o.write(w, &changes[i])
	}
	return w.Flush()
}

func (o *diffOptions) write(w io.Writer, c *bundle.Change) {
	if !o.long {
		fmt.Fprintf(w, "%s %s\n", c.Kind, lineName(c.Path))
		return
	}
	link := ""
	if c.Link != "" {
		link = " -> " + lineName(c.Link)
	}
	fmt.Fprintf(w, "%s %s %5d:%-5d %10d %s%s\n", c.Kind, c.ModeString(), c.UID, c.GID, c.Size, lineName(c.Path), link)
}

// lineName is a name that stays on its line: one with control characters, or that
// is no UTF-8, is quoted as Go quotes it.
func lineName(name string) string {
	if utf8.ValidString(name) && strings.IndexFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return name
	}
	return strconv.Quote(name)
}
