package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

func newRawRuntimeConfigCommand(global *globalOptions) *cobra.Command {
	var (
		image          imageFlags
		rootfs         string
		rootless       bool
		uidMap, gidMap []string
	)
	cmd := &cobra.Command{
		Use:     "runtime-config --image LAYOUT[:TAG] CONFIG.JSON",
		Aliases: []string{"config"},
		Short:   "write the runtime configuration of an image",
		Long: `Writes the config.json that a bundle of the image has, in place of what is in
CONFIG.JSON. The image's user is looked up in --rootfs; without it a user that is
no id is root.`,
		Args: exactArgs("CONFIG.JSON"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			opt := bundle.RuntimeFileOptions{Rootfs: rootfs, Rootless: rootless}
			if opt.ImageOptions, err = image.parse(global); err != nil {
				return err
			}
			if opt.UIDMap, err = parseIDMap("--uid-map", uidMap); err != nil {
				return err
			}
			if opt.GIDMap, err = parseIDMap("--gid-map", gidMap); err != nil {
				return err
			}
			bar := newProgress(os.Stderr)
			opt.Progress = bar.add
			err = bundle.WriteRuntimeFile(cmd.Context(), args[0], opt)
			bar.finish()
			return err
		},
	}
	f := cmd.Flags()
	image.add(f, "image whose configuration to write")
	f.StringVar(&rootfs, "rootfs", "", "`directory` to look users up in, whose name is the root's")
	f.BoolVar(&rootless, "rootless", false, "make it for a container of a plain user")
	f.StringArrayVar(&uidMap, "uid-map", nil, "map of user ids: `CONTAINER:HOST[:SIZE]` (repeatable)")
	f.StringArrayVar(&gidMap, "gid-map", nil, "map of group ids: `CONTAINER:HOST[:SIZE]` (repeatable)")
	return cmd
}
