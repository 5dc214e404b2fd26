package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

type umountOptions struct {
	lazy    bool
	discard bool
}

func newUmountCommand() *cobra.Command {
	o := &umountOptions{}
	cmd := &cobra.Command{
		Use:     "umount BUNDLE",
		Aliases: []string{"unmount"},
		Short:   "unmount a bundle's root file system",
		Long: `Unmounts BUNDLE/rootfs and waits until the mount's daemon has ended. The changes
stay in BUNDLE/upper for repack, diff or the next mount. A mount in use is left as
it is, and the processes that use it are named.`,
		Args: exactArgs("BUNDLE"),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), args[0]) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.lazy, "lazy", false, "detach now; the daemon ends when the last program lets go")
	f.BoolVar(&o.discard, "discard", false, "throw the changes away")
	return cmd
}

func (o *umountOptions) run(ctx context.Context, dir string) error {
	return bundle.Umount(ctx, bundle.Locate(dir), bundle.UmountOptions{Lazy: o.lazy, Discard: o.discard})
}
