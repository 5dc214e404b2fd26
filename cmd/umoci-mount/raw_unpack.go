package main

import (
	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

func newRawUnpackCommand(global *globalOptions) *cobra.Command {
	o := &mountOptions{global: global, raw: true}
	cmd := &cobra.Command{
		Use:   "unpack --image LAYOUT[:TAG] ROOTFS",
		Short: "mount an image at a directory, without a bundle",
		Long: `Mounts an image at the directory ROOTFS, which is made where it is missing and must
else be empty. There is no config.json; what is changed is kept beside it, in
.ROOTFS.umoci-mount. umount, diff and repack take ROOTFS for a bundle.

With --extract the files are written to ROOTFS, and nothing is mounted. Then ROOTFS
may have other files, which stay where the image has nothing of their name.
UMOCI_MOUNT_EXTRACT=1 in the environment has unpack do that always: for tools that
remove ROOTFS without unmounting it, which fails of a mountpoint.`,
		Args: exactArgs("ROOTFS"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.extracts(cmd) {
				return o.runExtract(cmd, args[0])
			}
			return o.runOrExtract(cmd, args[0])
		},
	}
	o.addFlags(cmd)
	return cmd
}

// rawMount turns the options of a mount into those of one without a bundle.
func (o *mountOptions) rawMount(opt bundle.MountOptions) (bundle.MountOptions, error) {
	if !o.raw {
		return opt, nil
	}
	return bundle.RawMount(opt)
}
