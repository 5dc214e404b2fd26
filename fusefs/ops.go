package fusefs

import (
	"log/slog"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/umoci-mount/umoci-mount/overlay"
)

var _ fuse.RawFileSystem = (*ops)(nil)

// ops answers the kernel's requests. No default of go-fuse is embedded: those
// answer ENOSYS, which the kernel remembers, so each method is spelled out.
//
// go-fuse copies names and targets out of a request before the call. Everything
// else in a request or a reply is used again after the return; nothing keeps it.
type ops struct {
	fs     *overlay.FS
	log    *slog.Logger
	kernel kernel // set by begin, before the first request
	// yield is called before what may take long: decoding, or waiting for a disk. Other
	// requests are read meanwhile. Set by newServer; immutable.
	yield func()
	// passthrough is whether it is wanted; immutable.
	passthrough bool

	files     handles[file]
	nodeFiles *nodeFiles // the kernel opens files by itself: set by begin; nil: it asks
	io        ioModes
	stats     stats

	actors actors

	// nameChanges counts requests that change a listing (ops_dir.go).
	nameChanges atomic.Uint64
	listings    listings
	noOpenDir   bool // the kernel opens directories by itself if told so; set by begin
}

// kernel is what the server tells the kernel of its own accord. device satisfies it.
type kernel interface {
	backingFiles
	// InodeNotify makes the kernel forget an inode's attributes and, where off is
	// not negative, its cached data.
	InodeNotify(node uint64, off, length int64) fuse.Status
}

func newOps(fs *overlay.FS, log *slog.Logger, passthrough bool) *ops {
	o := &ops{
		fs: fs, log: log, passthrough: passthrough, yield: func() {},
		io: ioModes{log: log, inodes: map[overlay.Ino]*inodeIO{}},
	}
	if fs != nil {
		fs.OnDoubt(o.kernelKnows)
	}
	return o
}

// String names the file system's type in mount tables (fuse.umoci-mount).
func (o *ops) String() string { return subtype }

// SetDebug does nothing: go-fuse logs requests by itself.
func (o *ops) SetDebug(bool) {}

// Init is not called: go-fuse's server does so, which is not used.
func (o *ops) Init(*fuse.Server) {}

// begin is called between the kernel's INIT and its first request, with what the kernel
// can (the CAP_ flags of fuse.InitIn).
func (o *ops) begin(k kernel, can uint64) {
	o.kernel = k
	o.noOpenDir = can&fuse.CAP_NO_OPENDIR_SUPPORT != 0
	switch {
	case !o.passthrough && can&fuse.CAP_NO_OPEN_SUPPORT != 0:
		o.openByNode()
	case o.passthrough && can&fuse.CAP_PASSTHROUGH != 0:
		o.io.backing = k
	}
}

// openByNode leaves opens to the kernel.
func (o *ops) openByNode() {
	o.nodeFiles = newNodeFiles(o.fs.Open, func(ino overlay.Ino, err error) { o.logFailure(opRelease, uint64(ino), err) })
}

// OnUnmount is called after the last request. Handles that the kernel had no
// chance to release, because the connection was cut, end here.
func (o *ops) OnUnmount() {
	for _, f := range o.files.drain() {
		o.closeFile(f)
	}
	if o.nodeFiles != nil {
		o.nodeFiles.closeAll()
	}
}

// expireAttr makes the kernel ask for an inode's attributes again: without waiting for
// anything, as no data is dropped (fuse_reverse_inval_inode), so locks may be held. An
// inode it does not know needs no such thing, so the answer is dropped.
func (o *ops) expireAttr(ino overlay.Ino) {
	if o.kernel != nil {
		_ = o.kernel.InodeNotify(uint64(ino), -1, 0)
	}
}

// kernelKnows reports whether the kernel has an inode. Where that is on its way out, the
// kernel waits until it is gone (find_inode in fs/inode.c), for replies of ours perhaps.
func (o *ops) kernelKnows(ino overlay.Ino) bool {
	if o.kernel == nil {
		return false
	}
	o.yield()
	return o.kernel.InodeNotify(uint64(ino), -1, 0) != fuse.ENOENT
}
