package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

type fsckOptions struct {
	global *globalOptions
	layout string
	json   bool
}

func newFsckCommand(global *globalOptions) *cobra.Command {
	o := &fsckOptions{global: global}
	cmd := &cobra.Command{
		Use:   "fsck --layout LAYOUT",
		Short: "check everything in an image layout",
		Long: `Reads everything in an image layout and says what is wrong: references that lead
nowhere, documents that are not what they are said to be, blobs with another digest or
size than theirs, layers that are not what the image's config names or that cannot be
read, each with the tags that need it. Nothing is changed.

It exits with code 4 where anything is worse than a warning.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	f := cmd.Flags()
	f.StringVar(&o.layout, "layout", "", "path of the image layout: `LAYOUT`")
	f.BoolVar(&o.json, "json", false, "write JSON")
	return cmd
}

func (o *fsckOptions) run(ctx context.Context, out io.Writer) error {
	if o.layout == "" {
		return usageError{errors.New("missing mandatory argument: --layout")}
	}
	log, err := o.global.logger()
	if err != nil {
		return err
	}
	bar := newProgress(os.Stderr)
	res, err := bundle.Fsck(ctx, bundle.FsckOptions{Layout: o.layout, Progress: bar.add, Log: log})
	bar.finish()
	if err != nil {
		return err
	}
	if o.json {
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		err = enc.Encode(res)
	} else {
		err = writeFsck(out, res)
	}
	if n := res.Damaged(); n > 0 && err == nil {
		err = fmt.Errorf("%s: %w: problems found: %d", o.layout, bundle.ErrDamaged, n)
	}
	return err
}

func writeFsck(out io.Writer, res *bundle.FsckResult) error {
	w := bufio.NewWriter(out)
	for i := range res.Problems {
		p := &res.Problems[i]
		what := p.Digest
		if what == "" {
			what = res.Layout
		}
		kind := p.Kind
		if p.Warning {
			kind = "warning: " + kind
		}
		tags := ""
		if len(p.Tags) > 0 {
			tags = " [" + lineName(strings.Join(p.Tags, ", ")) + "]"
		}
		fmt.Fprintf(w, "%s: %s: %s%s\n", lineName(what), kind, lineName(p.Message), tags)
	}
	fmt.Fprintf(w, "%s: %d tags, %d images, %d blobs, %s; not referred to: %d blobs, %s\n", lineName(res.Layout), res.Tags,
		res.Images, res.Blobs, size(res.Bytes), res.Unreferenced, size(res.UnrefBytes))
	return w.Flush()
}
