package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

type repackOptions struct {
	global        *globalOptions
	image         imageFlag
	maskPaths     []string
	noMaskVolumes bool
	refreshBundle bool
	history       historyFlags
	compress      string
	allowEmpty    bool
	fullCheck     bool
	cacheDir      string
}

func newRepackCommand(global *globalOptions) *cobra.Command {
	o := &repackOptions{global: global}
	cmd := &cobra.Command{
		Use:   "repack --image LAYOUT[:TAG] BUNDLE",
		Short: "make a new layer of what changed in a bundle",
		Long: `Adds one layer with what changed in BUNDLE to the image that it was made from,
and tags the result in the same image layout. The bundle may be mounted; its
writers wait meanwhile. The bundle stays as it is: a second repack holds the first
one's changes too, unless --refresh-bundle was given.

SOURCE_DATE_EPOCH, where set, is the latest time that anything in the layer gets.`,
		Args: exactArgs("BUNDLE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), cmd.ErrOrStderr(), args[0])
		},
	}
	o.addFlags(cmd)
	return cmd
}

func (o *repackOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	o.image.add(f, "image to make, in the layout of the base image")
	f.StringArrayVar(&o.maskPaths, "mask-path", nil, "leave out `PATH` and all below it (repeatable)")
	f.BoolVar(&o.noMaskVolumes, "no-mask-volumes", false, "do not leave out the image's volumes")
	f.BoolVar(&o.refreshBundle, "refresh-bundle", false, "let the next repack go on from the new image")
	o.history.add(f, imageAuthor)
	f.StringVar(&o.compress, "compress", cas.CompressAuto, "compression of the layer: auto (the last layer's), gzip, zstd or none")
	f.BoolVar(&o.allowEmpty, "allow-empty", false, "add a layer although nothing has changed")
	f.BoolVar(&o.fullCheck, "full-check", false, "compare the whole tree too, and fail if that finds anything else")
	f.StringVar(&o.cacheDir, "cache-dir", "", "`directory` of layer indexes (default the bundle's)")
}

func (o *repackOptions) validate() error {
	if err := checkCompress(o.compress); err != nil {
		return err
	}
	return nil
}

func (o *repackOptions) run(ctx context.Context, notes io.Writer, dir string) error {
	if err := o.validate(); err != nil {
		return err
	}
	opt := bundle.RepackOptions{
		Bundle: bundle.Locate(dir), MaskPaths: o.maskPaths, NoMaskVolumes: o.noMaskVolumes, RefreshBundle: o.refreshBundle,
		Compress: o.compress, AllowEmpty: o.allowEmpty, FullCheck: o.fullCheck, CacheDir: o.cacheDir,
	}
	var err error
	if opt.Layout, opt.Tag, err = o.image.parse(); err != nil {
		return err
	}
	if opt.History, err = o.history.parse(); err != nil {
		return err
	}
	opt.Epoch = opt.History.Epoch
	if opt.Log, err = o.global.logger(); err != nil {
		return err
	}
	res, err := bundle.Repack(ctx, opt)
	if err != nil {
		return err
	}
	if res.Layer == nil {
		fmt.Fprintf(notes, "nothing has changed: %s:%s has no new layer\n", lineName(opt.Layout), opt.Tag)
		return nil
	}
	opt.Log.Info("repacked", "image", res.Image.Digest.String(), "layer", res.Layer.Digest.String(),
		"entries", res.Entries, "size", size(res.Layer.Size))
	return nil
}

// sourceDateEpoch is $SOURCE_DATE_EPOCH, or nil (reproducible-builds.org).
func sourceDateEpoch() (*time.Time, error) {
	s := os.Getenv("SOURCE_DATE_EPOCH")
	if s == "" {
		return nil, nil //nolint:nilnil // not set is no error
	}
	sec, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return nil, usageError{fmt.Errorf("SOURCE_DATE_EPOCH=%q: want seconds since 1970", s)}
	}
	t := time.Unix(sec, 0).UTC()
	return &t, nil
}
