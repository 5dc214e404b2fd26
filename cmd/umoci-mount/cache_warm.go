package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

type cacheWarmOptions struct {
	global       *globalOptions
	images       []string
	platform     platformFlag
	cache        cacheFlag
	keepDirlinks bool
}

func newCacheWarmCommand(global *globalOptions) *cobra.Command {
	o := &cacheWarmOptions{global: global}
	cmd := &cobra.Command{
		Use:   "warm --image LAYOUT[:TAG]...",
		Short: "index images, so that their first mount is quick",
		Long: `Verifies and indexes the layers of images and merges their trees, as their first mount
would. What the cache has already is left as it is.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.images, "image", nil, "image to index: `LAYOUT[:TAG]` (repeatable; default tag latest)")
	o.platform.add(f)
	o.cache.add(f)
	f.BoolVar(&o.keepDirlinks, "keep-dirlinks", false, "merge the trees as for mounts with --keep-dirlinks")
	return cmd
}

func (o *cacheWarmOptions) run(ctx context.Context) error {
	if len(o.images) == 0 {
		return usageError{errors.New("missing mandatory argument: --image")}
	}
	for _, image := range o.images {
		if err := o.warm(ctx, image); err != nil {
			return err
		}
	}
	return nil
}

func (o *cacheWarmOptions) warm(ctx context.Context, image string) error {
	opt, err := (&imageFlags{imageFlag{image}, o.platform, o.cache}).parse(o.global)
	if err != nil {
		return err
	}
	opt.KeepDirlinks = o.keepDirlinks
	return openImage(ctx, opt, func(*bundle.Image) error { return nil })
}
