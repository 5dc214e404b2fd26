package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/fusefs"
	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

// mountOnly are the flags that say something of a mount alone.
var mountOnly = []string{
	"ids", "squash", "mtree", "fresh", "foreground", "read-only", "allow-other", "passthrough", "idle-sleep", "volatile", "span-cache", "disk-cache",
}

// mountOnlyFlag is one of mountOnly that the command line has, or "".
func mountOnlyFlag(cmd *cobra.Command) string {
	for _, name := range mountOnly {
		if cmd.Flags().Changed(name) {
			return name
		}
	}
	return ""
}

// noMeans are the failures that say that nothing can be mounted here at all.
var noMeans = []error{fusefs.ErrNoFuseDevice, fusefs.ErrNoFusermount, fusefs.ErrNotSetuid, fusefs.ErrMayNotMount}

// runOrExtract mounts. Where the program stands for umoci and nothing can be mounted, as
// in most containers, unpack extracts, so that what calls umoci goes on as with umoci.
func (o *mountOptions) runOrExtract(cmd *cobra.Command, dir string) error {
	err := o.run(cmd.Context(), dir)
	if cmd.Root().Name() != umociName || cmd.CalledAs() != "unpack" || mountOnlyFlag(cmd) != "" ||
		o.image.value == "" || !slices.ContainsFunc(noMeans, func(e error) bool { return errors.Is(err, e) }) {
		return err
	}
	log, lerr := o.global.logger()
	if lerr != nil {
		return errors.Join(err, lerr)
	}
	log.Warn("extracting, as nothing can be mounted", "cause", err)
	return o.runExtract(cmd, dir)
}

// runExtract is `unpack --extract`.
func (o *mountOptions) runExtract(cmd *cobra.Command, dir string) error {
	if name := mountOnlyFlag(cmd); name != "" {
		return usageError{fmt.Errorf("--extract mounts nothing: --%s says nothing then", name)}
	}
	if o.raw {
		return o.extractTo(cmd.Context(), dir, bundle.ExtractRootfs)
	}
	return o.extractTo(cmd.Context(), dir, bundle.Extract)
}

// extractTo extracts what the flags name, as a bundle or as a directory.
func (o *mountOptions) extractTo(ctx context.Context, dest string,
	do func(context.Context, bundle.ExtractOptions) (*bundle.ExtractResult, error),
) error {
	opt := bundle.ExtractOptions{Dest: dest, Rootless: o.rootless || bundle.PlainUser()}
	var err error
	if opt.Image, err = o.parse(o.global); err != nil {
		return err
	}
	opt.Image.KeepDirlinks = o.keepDirlinks
	if opt.UIDMap, err = parseIDMap("--uid-map", o.uidMap); err != nil {
		return err
	}
	if opt.GIDMap, err = parseIDMap("--gid-map", o.gidMap); err != nil {
		return err
	}
	bar := newProgress(os.Stderr)
	opt.Image.Progress = bar.add
	res, err := do(ctx, opt)
	bar.finish()
	if err != nil {
		return err
	}
	opt.Image.Log.Info("extracted", "rootfs", res.Rootfs, "image", res.Image.Digest.String(), "entries", res.Entries)
	return nil
}
