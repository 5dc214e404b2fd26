package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

type diffOptions struct {
	global *globalOptions
	imageFlags
	json bool
	long bool
}

func newDiffCommand(global *globalOptions) *cobra.Command {
	o := &diffOptions{global: global}
	cmd := &cobra.Command{
		Use:   "diff BUNDLE | diff --image LAYOUT[:TAG] IMAGE",
		Short: "list what changed in a bundle, or between two images",
		Long: `Lists what differs between BUNDLE and the image it was made from, one path a line:
A (added), C (changed) or D (deleted; what was below is not listed). It is what a
repack would write, but for the paths that one leaves out.

With --image it lists what differs from that image to IMAGE, which is LAYOUT:TAG, a
tag of the same layout, or LAYOUT alone for its tag latest. Nothing is mounted.`,
		Args: exactArgs("BUNDLE or IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), cmd.OutOrStdout(), args[0])
		},
	}
	f := cmd.Flags()
	o.add(f, "compare this image with IMAGE")
	f.BoolVar(&o.json, "json", false, "write JSON")
	f.BoolVarP(&o.long, "long", "l", false, "show mode, owner and size too; of a deleted path, those it had")
	return cmd
}

func (o *diffOptions) run(ctx context.Context, out io.Writer, what string) error {
	changes, err := o.changes(ctx, what)
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

func (o *diffOptions) changes(ctx context.Context, what string) ([]bundle.Change, error) {
	if o.image.value == "" {
		if o.platform.value != "" || o.cache.value != "" {
			return nil, usageError{errors.New("--platform and --cache-dir need --image")}
		}
		log, err := o.global.logger()
		if err != nil {
			return nil, err
		}
		return bundle.Diff(ctx, bundle.Locate(what), log)
	}
	from, err := o.parse(o.global)
	if err != nil {
		return nil, err
	}
	to := from
	if to.Layout, to.Tag, err = otherImage(from.Layout, what); err != nil {
		return nil, err
	}
	bar := newProgress(os.Stderr)
	defer bar.finish()
	from.Progress, to.Progress = bar.add, bar.add
	return bundle.DiffImages(ctx, from, to)
}

// otherImage is LAYOUT:TAG, TAG or :TAG of a layout that is named already, or LAYOUT
// for its tag latest. What could be a tag or a layout is the layout if there is one.
func otherImage(layout, s string) (path, tag string, err error) {
	if tag, ok := strings.CutPrefix(s, ":"); ok {
		return layout, tag, badTag(tag)
	}
	if !strings.Contains(s, ":") && badTag(s) == nil {
		if _, err := os.Stat(filepath.Join(s, "oci-layout")); err != nil {
			return layout, s, nil
		}
	}
	if path, tag, err = cas.ParseImage(s); err != nil {
		return "", "", usageError{err}
	}
	return path, tag, nil
}

func badTag(tag string) error {
	if err := cas.CheckTag(tag); err != nil {
		return usageError{err}
	}
	return nil
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
