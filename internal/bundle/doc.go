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
