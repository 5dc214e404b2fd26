package main

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

type cacheWarmOptions struct {
	global       *globalOptions
	images       []string
	platform     string
	cacheDir     string
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
	f.StringVar(&o.platform, "platform", "", "platform to choose where a tag has several: `OS/ARCH[/VARIANT]`")
	f.StringVar(&o.cacheDir, "cache-dir", "", "`directory` of layer indexes (default $UMOCI_MOUNT_CACHE, or by user)")
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
	opt, err := imageOptions(o.global, image, o.platform, o.cacheDir)
	if err != nil {
		return err
	}
	opt.KeepDirlinks = o.keepDirlinks
	bar := newProgress(os.Stderr)
	opt.Progress = bar.add
	im, err := bundle.OpenImage(ctx, opt)
	bar.finish()
	if err != nil {
		return err
	}
	return im.Close()
}
