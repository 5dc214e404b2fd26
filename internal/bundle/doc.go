// Package bundle makes an OCI runtime bundle whose root file system is a mount,
// and turns what changed in it into a layer. It joins image layouts (cas), layers
// (layer), the union (overlay) and its server (fusefs).
//
//	BUNDLE/config.json             for an OCI runtime
//	BUNDLE/umoci.json              what the bundle was made from, as umoci writes it
//	BUNDLE/rootfs/                 the mountpoint
//	BUNDLE/upper/  BUNDLE/work/    the changes (docs/upper-format.md)
//	BUNDLE/.umoci-mount/           state.json, lock, mounted, control, log
//	BUNDLE/sha256_HEX.mtree        where it was asked for
//
//	dir.go, folder.go, state.go      a bundle's directory, its locks, what is written in it
//	mount.go, makedir.go, raw.go     Mount: a bundle made or gone on with, and undone
//	startdaemon.go, daemon*.go       the process that serves a mount
//	control.go, watch.go             how others speak to it, and what ends it
//	umount.go, holders.go, enter.go  the end of a mount, and who is in the way
//	lower.go, image.go, view.go      layers opened; an image, or a bundle, read without a mount
//	edit*.go                         changes in a bundle that the kernel would refuse
//	repack*.go, diff*.go, verify*.go what changed, and the layer of it
//	mtree*.go, validate.go           manifests
//	derive.go, append.go, copyfiles.go, expand.go  images made without a mount
//	extract.go, gc.go, fsck.go, cache*.go          the other commands
//
// # Life
//
// Mount makes the bundle or, where it has an upper, goes on with it; it starts one
// daemon, which serves the mount until it is unmounted. The upper stays as it is
// through repacks: the base of the mount never changes; what a repack compares
// with is the manifest in umoci.json, which --refresh-bundle moves on.
//
// # Locks
//
// Both are flock(2) and end with their process. "lock" is held exclusively by a
// command that changes the bundle; "mounted" by the daemon for its life. "lock"
// comes first.
package bundle
