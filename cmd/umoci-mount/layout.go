package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

// The commands on layouts and tags: init, new, tag, remove, list, gc.

func newInitCommand() *cobra.Command {
	var layout layoutFlag
	cmd := &cobra.Command{
		Use:   "init --layout LAYOUT",
		Short: "create an empty image layout",
		Long:  "Creates an image layout without images at LAYOUT, where nothing may be yet.",
		Args:  exactArgs(),
		RunE: func(*cobra.Command, []string) error {
			path, err := layout.parse()
			if err != nil {
				return err
			}
			l, err := cas.Create(path)
			if err != nil {
				return err
			}
			return l.Close()
		},
	}
	layout.add(cmd.Flags())
	return cmd
}

// withLayout opens a layout for f.
func withLayout(path string, f func(l *cas.Layout) error) (err error) {
	l, err := cas.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return f(l)
}

// changeLayout is withLayout with the blobs that f writes kept from a gc.
func changeLayout(ctx context.Context, path string, f func(l *cas.Layout) error) error {
	return withLayout(path, func(l *cas.Layout) (err error) {
		release, err := l.Pin(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, release()) }()
		return f(l)
	})
}

func newNewCommand() *cobra.Command {
	var image imageFlag
	cmd := &cobra.Command{
		Use:     "new --image LAYOUT[:TAG]",
		Aliases: []string{"create"},
		Short:   "create an empty image in a layout",
		Long: `Creates an image without layers, for this machine's architecture, in the layout.
A tag of that name then leads to it. SOURCE_DATE_EPOCH, where set, is the time that
it was created at.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, tag, err := image.parse()
			if err != nil {
				return err
			}
			created := time.Now()
			epoch, err := sourceDateEpoch()
			if err != nil {
				return err
			}
			if epoch != nil {
				created = *epoch
			}
			return changeLayout(cmd.Context(), path, func(l *cas.Layout) error {
				blank, err := l.Blank(cmd.Context(), hostPlatform(), created)
				if err != nil {
					return err
				}
				return l.Tag(cmd.Context(), tag, blank)
			})
		},
	}
	image.add(cmd.Flags(), "image to create")
	return cmd
}

// hostPlatform is what a new image is for.
func hostPlatform() ispec.Platform {
	p := ispec.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
	switch p.Architecture {
	case "arm":
		p.Variant = "v7"
	case "arm64":
		p.Variant = "v8"
	}
	return p
}

func newTagCommand() *cobra.Command {
	var image imageFlag
	var platform platformFlag
	cmd := &cobra.Command{
		Use:   "tag --image LAYOUT[:TAG] NEW-TAG",
		Short: "give an image another tag",
		Long: `Lets NEW-TAG lead to where TAG does: an index of images for several platforms is tagged
as a whole. What NEW-TAG led to before is not removed.`,
		Args: exactArgs("NEW-TAG"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, tag, err := image.parse()
			if err != nil {
				return err
			}
			which, err := platform.parse()
			if err != nil {
				return err
			}
			if err := cas.CheckTag(args[0]); err != nil {
				return usageError{err}
			}
			return changeLayout(cmd.Context(), path, func(l *cas.Layout) error {
				from, err := l.FindRef(cmd.Context(), tag, cas.ResolveOptions{Platform: which})
				if err != nil {
					return err
				}
				return l.Tag(cmd.Context(), args[0], from)
			})
		},
	}
	image.add(cmd.Flags(), "image to tag")
	platform.add(cmd.Flags())
	cmd.Flags().Lookup("platform").Usage = "platform to choose where TAG is there several times: `OS/ARCH[/VARIANT]`"
	return cmd
}

func newRemoveCommand() *cobra.Command {
	var image imageFlag
	cmd := &cobra.Command{
		Use:     "remove --image LAYOUT[:TAG]",
		Aliases: []string{"rm"},
		Short:   "remove a tag",
		Long: `Removes a tag from a layout; one that is not there is no error. The image's blobs
stay until gc.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, tag, err := image.parse()
			if err != nil {
				return err
			}
			return withLayout(path, func(l *cas.Layout) error {
				_, err := l.RemoveRef(cmd.Context(), tag)
				return err
			})
		},
	}
	image.add(cmd.Flags(), "tag to remove")
	return cmd
}

func newListCommand() *cobra.Command {
	var layout layoutFlag
	cmd := &cobra.Command{
		Use:     "list --layout LAYOUT",
		Aliases: []string{"ls"},
		Short:   "list the tags in a layout",
		Long:    "Lists the tags in a layout, one a line, as often as they are there.",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, err := layout.parse()
			if err != nil {
				return err
			}
			return withLayout(path, func(l *cas.Layout) error {
				tags, err := l.Refs(cmd.Context())
				if err != nil {
					return err
				}
				w := bufio.NewWriter(cmd.OutOrStdout())
				for _, tag := range tags {
					fmt.Fprintln(w, lineName(tag))
				}
				return w.Flush()
			})
		},
	}
	layout.add(cmd.Flags())
	return cmd
}

type gcOptions struct {
	global *globalOptions
	layout layoutFlag
	force  bool
}

// gcWait is how long a gc waits for commands that read or write blobs.
const gcWait = time.Minute

func newGCCommand(global *globalOptions) *cobra.Command {
	o := &gcOptions{global: global}
	cmd := &cobra.Command{
		Use:   "gc --layout LAYOUT",
		Short: "remove what no tag leads to",
		Long: `Removes every blob that no reference of the layout leads to, through nested indexes
and subjects, and what killed writers left. What a bundle needs is kept: a mounted one,
or one that was made from the layout and is still there. Commands that work on the
layout are waited for, a minute at most. --force minds none of that; a live mount then
goes on with what it has open.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	o.layout.add(cmd.Flags())
	cmd.Flags().BoolVar(&o.force, "force", false, "remove blobs although bundles or other commands may need them")
	return cmd
}

func (o *gcOptions) run(ctx context.Context, out io.Writer) error {
	path, err := o.layout.parse()
	if err != nil {
		return err
	}
	log, err := o.global.logger()
	if err != nil {
		return err
	}
	res, err := bundle.GC(ctx, bundle.GCOptions{Layout: path, Force: o.force, Wait: gcWait, Log: log})
	if res.Blobs > 0 || err == nil {
		_, werr := fmt.Fprintf(out, "removed %d blobs, %s\n", res.Blobs, size(res.Bytes))
		err = errors.Join(err, werr)
	}
	for _, name := range res.Linked {
		_, werr := fmt.Fprintf(out, "%s is a symbolic link: nothing is removed there, other layouts may use it\n", name)
		err = errors.Join(err, werr)
	}
	return err
}
