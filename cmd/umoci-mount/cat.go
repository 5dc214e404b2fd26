package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

// imageFlags are those of a command that reads an image without a mount.
type imageFlags struct {
	image    string
	platform string
	cacheDir string
}

func (o *imageFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.image, "image", "", "image to read: `LAYOUT[:TAG]` (default tag latest)")
	f.StringVar(&o.platform, "platform", "", "platform to choose where the tag has several: `OS/ARCH[/VARIANT]`")
	f.StringVar(&o.cacheDir, "cache-dir", "", "`directory` of layer indexes (default $UMOCI_MOUNT_CACHE, or by user)")
}

// with calls fn with the image open.
func (o *imageFlags) with(ctx context.Context, global *globalOptions, fn func(*bundle.Image) error) (err error) {
	opt, err := imageOptions(global, o.image, o.platform, o.cacheDir)
	if err != nil {
		return err
	}
	bar := newProgress(os.Stderr)
	opt.Progress = bar.add
	im, err := bundle.OpenImage(ctx, opt)
	bar.finish()
	if err != nil {
		return err
	}
	return errors.Join(fn(im), im.Close())
}

type catOptions struct {
	global *globalOptions
	imageFlags
}

func newCatCommand(global *globalOptions) *cobra.Command {
	o := &catOptions{global: global}
	cmd := &cobra.Command{
		Use:   "cat --image LAYOUT[:TAG] PATH...",
		Short: "write files of an image to standard output",
		Long: `Writes the content of the image's files PATH to standard output, one after another.
Symbolic links are followed as in a container. Nothing is mounted or extracted: of
the layers only what holds the files is read, once they are indexed.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("invalid number of positional arguments: expected PATH")}
			}
			return o.run(cmd.Context(), cmd.OutOrStdout(), args)
		},
	}
	o.add(cmd)
	return cmd
}

func (o *catOptions) run(ctx context.Context, out io.Writer, paths []string) error {
	return o.with(ctx, o.global, func(im *bundle.Image) error {
		for _, p := range paths {
			if err := im.CopyFile(ctx, out, p); err != nil {
				return err
			}
		}
		return nil
	})
}
