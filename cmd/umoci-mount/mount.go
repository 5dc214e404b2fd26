package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
	"github.com/umoci-mount/umoci-mount/overlay"
)

type mountOptions struct {
	global *globalOptions
	imageFlags
	uidMap       []string
	gidMap       []string
	ids          string
	squash       bool
	rootless     bool
	keepDirlinks bool
	mtree        bool
	fresh        bool
	foreground   bool
	noMount      bool
	readOnly     bool
	allowOther   bool
	passthrough  bool
	idleSleep    bool
	volatile     bool
	extract      bool
	raw          bool // no bundle: the argument is the root file system
	spanCache    int64
	diskCache    int64
}

// Where they are "1", extractEnv has unpack and raw unpack extract, and mtreeEnv has
// unpack write the manifest.
const (
	extractEnv = "UMOCI_MOUNT_EXTRACT"
	mtreeEnv   = "UMOCI_MOUNT_MTREE"
)

func newMountCommand(global *globalOptions) *cobra.Command {
	o := &mountOptions{global: global}
	cmd := &cobra.Command{
		Use:     "mount --image LAYOUT[:TAG] BUNDLE",
		Aliases: []string{"unpack"},
		Short:   "mount an image as the root file system of a runtime bundle",
		Long: `Mounts an image as BUNDLE/rootfs and writes config.json, so that an OCI runtime
can run it. Nothing is extracted: files are read from the layers when they are
needed, and what is changed is kept in BUNDLE/upper.

A bundle that was mounted before goes on with its changes, also without --image;
--fresh throws them away.

With --extract the files are written to BUNDLE/rootfs, as stock umoci does, and
nothing is mounted: for machines without FUSE. UMOCI_MOUNT_EXTRACT=1 in the
environment has unpack and raw unpack do that always: for tools that call umoci and
remove the bundle without unmounting it. UMOCI_MOUNT_MTREE=1 has unpack write the manifest of
--mtree always: for tools that read it.

Called umoci, unpack extracts by itself where nothing can be mounted.`,
		Args: exactArgs("BUNDLE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.extracts(cmd) {
				return o.runExtract(cmd, args[0])
			}
			o.mtree = o.mtree || cmd.CalledAs() == "unpack" && os.Getenv(mtreeEnv) == "1"
			return o.runOrExtract(cmd, args[0])
		},
	}
	o.addFlags(cmd)
	return cmd
}

// extracts reports whether nothing is to be mounted: the flag or, of unpack, the
// environment says so.
func (o *mountOptions) extracts(cmd *cobra.Command) bool {
	return o.extract || cmd.CalledAs() == "unpack" && os.Getenv(extractEnv) == "1"
}

func (o *mountOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	o.add(f, "image to mount")
	f.StringArrayVar(&o.uidMap, "uid-map", nil, "map of user ids: `CONTAINER:HOST[:SIZE]` (repeatable)")
	f.StringArrayVar(&o.gidMap, "gid-map", nil, "map of group ids: `CONTAINER:HOST[:SIZE]` (repeatable)")
	f.StringVar(&o.ids, "ids", "", "owners to show: `real` (the image's; root's default) or squashed (all the user's own)")
	f.BoolVar(&o.squash, "squash", false, "show owners that the maps leave out as root's, instead of refusing to mount")
	f.BoolVar(&o.rootless, "rootless", false, "make config.json for a container of a plain user")
	f.BoolVar(&o.keepDirlinks, "keep-dirlinks", false, "let a directory of an upper layer not replace a symlink to a directory")
	f.BoolVar(&o.mtree, "mtree", false, "write the mtree manifest of the whole tree too, for stock umoci and gomtree")
	f.BoolVar(&o.fresh, "fresh", false, "throw away the changes of earlier mounts of the bundle")
	f.BoolVar(&o.foreground, "foreground", false, "serve the mount in this process until it is unmounted")
	f.BoolVar(&o.noMount, "no-mount", false, "make the bundle and mount nothing: for exec, which mounts for itself")
	f.BoolVar(&o.readOnly, "read-only", false, "refuse changes")
	f.BoolVar(&o.allowOther, "allow-other", false, "let other users in (root's mounts always do)")
	f.BoolVar(&o.passthrough, "passthrough", false, "let the kernel read and write changed files by itself: faster writes, slower opens (root)")
	f.BoolVar(&o.idleSleep, "idle-sleep", false, "let idle processors sleep while requests come in quick succession: less power, more time")
	f.BoolVar(&o.volatile, "volatile", false, "do not fsync the data of files that are copied up")
	f.BoolVar(&o.extract, "extract", false, "write the files, and mount nothing")
	f.Int64Var(&o.spanCache, "span-cache", 32, "memory for decoded file content, in `MiB`")
	f.Int64Var(&o.diskCache, "disk-cache", 4096, "disk space for decoded file content, of all mounts with one cache, in `MiB`; 0: none")
}

func (o *mountOptions) validate() error {
	if o.spanCache < 1 || o.spanCache > 1<<20 {
		return usageError{fmt.Errorf("--span-cache %d: want 1 to %d MiB", o.spanCache, 1<<20)}
	}
	if o.diskCache < 0 || o.diskCache > 1<<30 {
		return usageError{fmt.Errorf("--disk-cache %d: want 0 to %d MiB", o.diskCache, 1<<30)}
	}
	if o.ids != "" && len(o.uidMap)+len(o.gidMap) > 0 {
		return usageError{errors.New("--ids and id maps: want one of them")}
	}
	if o.noMount && o.foreground {
		return usageError{errors.New("--no-mount and --foreground exclude each other")}
	}
	if o.passthrough && os.Geteuid() != 0 {
		return usageError{errors.New("--passthrough takes root")}
	}
	if o.fresh && o.image.value == "" {
		return usageError{errors.New("--fresh needs --image")}
	}
	return nil
}

func (o *mountOptions) run(ctx context.Context, dir string) error {
	if err := o.validate(); err != nil {
		return err
	}
	log, err := o.global.logger()
	if err != nil {
		return err
	}
	opt := bundle.MountOptions{
		Bundle: dir, Fresh: o.fresh, Mtree: o.mtree, Foreground: o.foreground, NoServe: o.noMount, Log: log,
		Rootless: o.rootless || bundle.PlainUser(),
		State: bundle.StateOptions{
			KeepDirlinks: o.keepDirlinks, ReadOnly: o.readOnly, AllowOther: o.allowOther,
			Passthrough: o.passthrough, IdleSleep: o.idleSleep, Volatile: o.volatile, Debug: o.global.debug, SpanCache: o.spanCache << 20, DiskCache: o.diskCache << 20,
		},
	}
	if o.image.value != "" {
		if opt.Layout, opt.Tag, err = o.image.parse(); err != nil {
			return err
		}
	}
	if opt.Platform, err = o.platform.parse(); err != nil {
		return err
	}
	if opt.State.UIDMap, err = parseIDMap("--uid-map", o.uidMap); err != nil {
		return err
	}
	if opt.State.GIDMap, err = parseIDMap("--gid-map", o.gidMap); err != nil {
		return err
	}
	if opt.State.IDs, err = bundle.ParseIDs(o.ids); err != nil {
		return usageError{fmt.Errorf("--%w", err)}
	}
	if o.rootless && o.ids == "" && len(o.uidMap)+len(o.gidMap) == 0 {
		opt.State.IDs = bundle.IDsSquashed
	}
	opt.State.Squash = o.squash || o.rootless // as umoci's --rootless always does
	if opt.State.CacheDir, err = bundle.CacheDir(o.cache.value); err != nil {
		return err
	}
	if opt, err = o.rawMount(opt); err != nil {
		return err
	}
	bar := newProgress(os.Stderr)
	opt.Progress = bar.add
	opt.Live = func() {
		bar.finish()
		if _, err := daemon.SdNotify(true, daemon.SdNotifyReady); err != nil {
			log.Warn("tell the service manager that the mount is live", "error", err)
		}
	}
	res, err := bundle.Mount(ctx, opt)
	bar.finish()
	if err != nil || o.foreground {
		return err
	}
	log.Info("mounted", "rootfs", res.Rootfs, "image", res.Image.Digest.String(), "resumed", res.Resumed)
	return nil
}

// parseIDMap reads CONTAINER:HOST[:SIZE] as umoci does; the size is 1 by default.
func parseIDMap(flag string, list []string) ([]overlay.IDRange, error) {
	var out []overlay.IDRange
	for _, s := range list {
		parts := strings.Split(s, ":")
		if len(parts) == 2 {
			parts = append(parts, "1")
		}
		var n [3]uint64
		bad := len(parts) != 3
		for i := 0; i < 3 && !bad; i++ {
			var err error
			n[i], err = strconv.ParseUint(parts[i], 10, 32)
			bad = err != nil
		}
		if bad || n[2] == 0 || n[0]+n[2] > 1<<32 || n[1]+n[2] > 1<<32 {
			return nil, usageError{fmt.Errorf("%s %q: want CONTAINER:HOST[:SIZE]", flag, s)}
		}
		out = append(out, overlay.IDRange{Image: uint32(n[0]), Host: uint32(n[1]), Size: uint32(n[2])})
	}
	return out, nil
}
