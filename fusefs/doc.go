// Package fusefs serves an overlay.FS to the kernel over /dev/fuse. It knows
// nothing of images.
//
// One process owns the tree and every change of it comes through the kernel, so
// the kernel may keep what it was told: names (also that there is none),
// attributes, symlink targets, listings and file data are valid until a request
// of the kernel itself changes them. docs/fuse.md is the contract in full: cache
// times, the capabilities asked for and why, who may answer ENOSYS, and the
// rules of passthrough.
//
//	kernel ──device.go──▶ loop.go ──go-fuse──▶ ops (ops_*.go) ──▶ overlay.FS
//	                      │ watch.go            │ handles.go      file and directory handles
//	                      └ latency.go          │ passthrough.go  cached or passthrough, per inode
//	                                            │ attr.go         overlay.Attr to the wire
//	                                            └ errno.go        errors to errno, the only table
//
// A node id is the overlay's inode number; its generation is always 0, since a
// number is not used again while the kernel knows the inode.
//
// # Lock order
//
//	inodeIO.mu               one at a time: decides how an inode is opened
//	ioModes.mu               leaf
//	handles.mu               leaf
//	requestLoop.mu           leaf: who reads next
//	device.mu                leaf: the descriptor stays open
//
// None is held across a call into the overlay. inodeIO.mu alone is held across
// the registration of a backing file, which is a system call on /dev/fuse that
// waits for no request.
package fusefs
