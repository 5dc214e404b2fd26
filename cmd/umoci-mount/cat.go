package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

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
	o.add(cmd.Flags(), "image to read")
	return cmd
}

func (o *catOptions) run(ctx context.Context, out io.Writer, paths []string) error {
	return o.open(ctx, o.global, func(im *bundle.Image) error {
		for _, p := range paths {
			if err := im.CopyFile(ctx, out, p); err != nil {
				return err
			}
		}
		return nil
	})
}
