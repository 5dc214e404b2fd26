package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

// appendFlags are those of the commands that add one layer to an image.
type appendFlags struct {
	global *globalOptions
	imageFlags
	tag      tagFlag
	history  historyFlags
	compress string
}

// add adds them; author is that of a history entry that names none.
func (a *appendFlags) add(f *pflag.FlagSet, author string) {
	a.imageFlags.add(f, "image to add a layer to")
	a.tag.add(f)
	a.history.add(f, author)
	f.StringVar(&a.compress, "compress", cas.CompressAuto, "compression of the layer: auto (the last layer's), gzip, zstd or none")
}

func (a *appendFlags) parse(f *pflag.FlagSet) (opt bundle.AppendOptions, err error) {
	if opt.Layout, opt.Tag, err = a.image.parse(); err != nil {
		return opt, err
	}
	if opt.Platform, err = a.platform.parse(); err != nil {
		return opt, err
	}
	if opt.NewTag, err = a.tag.or(f, opt.Tag); err != nil {
		return opt, err
	}
	if err := checkCompress(a.compress); err != nil {
		return opt, err
	}
	opt.Compress, opt.CacheDir = a.compress, a.cache.value
	if opt.History, err = a.history.parse(); err != nil {
		return opt, err
	}
	opt.Log, err = a.global.logger()
	return opt, err
}

func checkCompress(name string) error {
	switch name {
	case cas.CompressAuto, cas.CompressGzip, cas.CompressZstd, cas.CompressNone:
		return nil
	}
	return usageError{fmt.Errorf("--compress %q: want auto, gzip, zstd or none", name)}
}

type insertOptions struct {
	appendFlags
	uidMap   []string
	gidMap   []string
	rootless bool
	whiteout bool
	opaque   bool
}

func newInsertCommand(global *globalOptions) *cobra.Command {
	o := &insertOptions{appendFlags: appendFlags{global: global}}
	cmd := &cobra.Command{
		Use:   "insert --image LAYOUT[:TAG] [--opaque] SOURCE TARGET | insert --image LAYOUT[:TAG] --whiteout TARGET",
		Short: "add a layer of files of the host",
		Long: `Adds a layer in which SOURCE, a file or a directory with all below it, is at TARGET;
or one that removes TARGET. Nothing is mounted or unpacked. Directories above TARGET
are not in the layer. With --opaque nothing is left of what the image had in TARGET.`,
		Args: func(cmd *cobra.Command, args []string) error {
			want := []string{"SOURCE", "TARGET"}
			if o.whiteout {
				want = want[1:]
			}
			return exactArgs(want...)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), cmd.Flags(), args) },
	}
	f := cmd.Flags()
	o.add(f, "none")
	f.StringArrayVar(&o.uidMap, "uid-map", nil, "map of user ids: `CONTAINER:HOST[:SIZE]` (repeatable)")
	f.StringArrayVar(&o.gidMap, "gid-map", nil, "map of group ids: `CONTAINER:HOST[:SIZE]` (repeatable)")
	f.BoolVar(&o.rootless, "rootless", false, "take files for root's, or whose user.rootlesscontainers says")
	f.BoolVar(&o.whiteout, "whiteout", false, "remove TARGET")
	f.BoolVar(&o.opaque, "opaque", false, "remove what lower layers have in TARGET (--whiteout does that anyway)")
	return cmd
}

func (o *insertOptions) run(ctx context.Context, f *pflag.FlagSet, args []string) error {
	appended, err := o.parse(f)
	if err != nil {
		return err
	}
	opt := bundle.InsertOptions{AppendOptions: appended, Target: args[len(args)-1], Whiteout: o.whiteout, Opaque: o.opaque, Rootless: o.rootless}
	if !o.whiteout {
		opt.Source = args[0]
	}
	if opt.UIDMap, err = parseIDMap("--uid-map", o.uidMap); err != nil {
		return err
	}
	if opt.GIDMap, err = parseIDMap("--gid-map", o.gidMap); err != nil {
		return err
	}
	return bundle.Insert(ctx, opt)
}

func newRawAddLayerCommand(global *globalOptions) *cobra.Command {
	a := &appendFlags{global: global}
	cmd := &cobra.Command{
		Use:   "add-layer --image LAYOUT[:TAG] LAYER.TAR",
		Short: "add a tar archive as a layer, as it is",
		Long:  "Adds an uncompressed tar archive, or standard input for -, as an image's next layer.",
		Args:  exactArgs("LAYER.TAR"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			opt, err := a.parse(cmd.Flags())
			if err != nil {
				return err
			}
			var in io.Reader = cmd.InOrStdin()
			if args[0] != "-" {
				f, oerr := os.Open(args[0])
				if oerr != nil {
					return oerr
				}
				defer func() { err = errors.Join(err, f.Close()) }()
				in = f
			}
			return bundle.AddLayer(cmd.Context(), opt, in)
		},
	}
	a.add(cmd.Flags(), imageAuthor)
	return cmd
}
