package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

type treeOptions struct {
	global *globalOptions
	imageFlags
	json  bool
	depth int
}

func newTreeCommand(global *globalOptions) *cobra.Command {
	o := &treeOptions{global: global}
	cmd := &cobra.Command{
		Use:   "tree --image LAYOUT[:TAG] [PATH]",
		Short: "list the files of an image",
		Long: `Lists what is in the image at PATH (default /) and below: mode, links, owner, size or
device number, time, and path. Nothing is mounted or extracted.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("invalid number of positional arguments: expected [PATH]")}
			}
			return o.run(cmd.Context(), cmd.OutOrStdout(), strings.Join(args, ""))
		},
	}
	o.add(cmd.Flags(), "image to read")
	f := cmd.Flags()
	f.BoolVar(&o.json, "json", false, "write JSON: one array, with extended attributes too")
	f.IntVar(&o.depth, "depth", -1, "list no deeper than `N` levels below PATH")
	return cmd
}

func (o *treeOptions) run(ctx context.Context, out io.Writer, path string) error {
	return o.open(ctx, o.global, func(im *bundle.Image) error {
		w := bufio.NewWriter(out)
		if !o.json {
			if err := im.List(ctx, path, o.depth, func(e *bundle.Listed) error { return writeListed(w, e) }); err != nil {
				return err
			}
			return w.Flush()
		}
		if err := o.writeJSON(ctx, w, im, path); err != nil {
			return err
		}
		return w.Flush()
	})
}

// writeJSON writes an array, one element a line, as it goes.
func (o *treeOptions) writeJSON(ctx context.Context, w *bufio.Writer, im *bundle.Image, path string) error {
	separator := "[\n"
	err := im.List(ctx, path, o.depth, func(e *bundle.Listed) error {
		b, err := marshalLine(e)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "%s  %s", separator, b)
		separator = ",\n"
		return err
	})
	if err != nil {
		return err
	}
	_, err = w.WriteString("\n]\n")
	return err
}

func marshalLine(v any) (string, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

func writeListed(w io.Writer, e *bundle.Listed) error {
	size := fmt.Sprint(e.Size)
	if e.Device != "" {
		size = e.Device
	}
	link := ""
	if e.Link != "" {
		link = " -> " + lineName(e.Link)
	}
	_, err := fmt.Fprintf(w, "%s %3d %5d:%-5d %10s %s %s%s\n", bundle.ModeString(e.Mode), e.Nlink, e.UID, e.GID, size,
		e.Mtime.Format(time.DateTime), lineName(e.Path), link)
	return err
}
