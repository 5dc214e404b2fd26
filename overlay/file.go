package overlay

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// openFile is the upper file of an inode while any handle of it is open. One
// descriptor serves all of them.
type openFile struct {
	fd       int
	writable bool
}

// Handle is one open of a regular file. It follows the inode: one opened for
// reading before a copy-up sees what is written afterwards. Safe for concurrent
// use; Close comes last.
type Handle struct {
	fs    *FS
	n     *node
	lower layer.File // the lower's data; nil where there is none
}

// Open opens a regular file with the flags of open(2). A flag that lets the
// caller write copies the file up, with its data unless O_TRUNC cuts it anyway.
func (fs *FS) Open(ino Ino, flags uint32) (*Handle, error) {
	write := flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
	if write {
		if err := fs.change(); err != nil {
			return nil, err
		}
		defer fs.changed()
	}
	n, err := fs.openNode(ino, write)
	if err != nil {
		return nil, err
	}
	h, err := fs.openHandle(n, flags, write)
	if err != nil {
		fs.unref(n)
		return nil, err
	}
	return h, nil
}

// openNode finds the node to open, referenced, and copies its metadata up where
// it is to be written.
func (fs *FS) openNode(ino Ino, write bool) (*node, error) {
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	n, err := fs.node(ino, true)
	if err != nil {
		return nil, err
	}
	switch n.typ {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		err = ErrIsDir
	default:
		err = ErrInvalid
	}
	if err == nil && write {
		err = fs.copyUp(n)
	}
	if err != nil {
		fs.unref(n)
		return nil, err
	}
	return n, nil
}

// openHandle opens a referenced node, of which the handle then has the reference.
func (fs *FS) openHandle(n *node, flags uint32, write bool) (*Handle, error) {
	switch {
	case flags&unix.O_TRUNC != 0:
		if err := fs.truncate(n, 0); err != nil {
			return nil, err
		}
	case write:
		if err := fs.fillData(n, noTruncate); err != nil {
			return nil, err
		}
	}
	h := &Handle{fs: fs, n: n}
	if n.lower != 0 && (!n.upper.Load() || n.metacopy.Load()) {
		var err error
		if h.lower, err = fs.lower.Open(n.lower); err != nil {
			return nil, err
		}
	}
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	f, err := fs.openDataLocked(n)
	if err != nil {
		return nil, err
	}
	if f != nil && write && !f.writable {
		return nil, pathError("open", at{}, unix.EPERM)
	}
	n.opens++
	return h, nil
}

// openDataLocked is the upper file of a node, opened where it is not yet; nil where the
// data is the lower's. Preconditions: treeMu and n.mu are held.
func (fs *FS) openDataLocked(n *node) (*openFile, error) {
	if f := n.file.Load(); f != nil || !n.upper.Load() || n.metacopy.Load() {
		return f, nil
	}
	f, err := fs.openSharedLocked(n)
	if err == nil {
		n.file.Store(f)
	}
	return f, err
}

// data is the upper file that has the inode's data; nil where the lower has it. The
// inode of an empty lower file can come to have data, with nothing to move up, while it
// is open for reading.
func (h *Handle) data() (*openFile, error) {
	n := h.n
	if f := n.file.Load(); f != nil || !n.upper.Load() || n.metacopy.Load() {
		return f, nil
	}
	h.fs.treeMu.RLock()
	defer h.fs.treeMu.RUnlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	return h.fs.openDataLocked(n)
}

// openSharedLocked opens the upper file for all handles: for writing where its
// inode allows that (an immutable one does not). Preconditions: treeMu and n.mu
// are held.
func (fs *FS) openSharedLocked(n *node) (*openFile, error) {
	if !fs.readOnly {
		fd, err := fs.openUpperLocked(n, unix.O_RDWR)
		if err == nil {
			return &openFile{fd: fd, writable: true}, nil
		}
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) &&
			!errors.Is(err, unix.EROFS) && !errors.Is(err, unix.ETXTBSY) {
			return nil, err
		}
	}
	fd, err := fs.openUpperLocked(n, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return &openFile{fd: fd}, nil
}

// Close ends the handle's use.
func (h *Handle) Close() error {
	err := h.n.releaseFile()
	h.fs.unref(h.n)
	return err
}

// holdFile keeps the open upper file open until releaseFile; nil where there is
// none, and then nothing is to be released. The last handle may be closed meanwhile.
func (n *node) holdFile() *openFile {
	n.mu.Lock()
	defer n.mu.Unlock()
	f := n.file.Load()
	if f != nil {
		n.opens++
	}
	return f
}

// releaseFile ends one use of the upper file and closes it after the last.
func (n *node) releaseFile() (err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.opens--
	if n.opens == 0 {
		if f := n.file.Swap(nil); f != nil {
			err = pathError("close", at{}, unix.Close(f.fd))
		}
	}
	return err
}

// Ino is the inode that is open.
func (h *Handle) Ino() Ino { return h.n.ino }

// ReadAt reads as io.ReaderAt asks: io.EOF at the end.
func (h *Handle) ReadAt(p []byte, off int64) (int, error) {
	f, err := h.data()
	if err != nil {
		return 0, err
	}
	if f == nil {
		if h.lower == nil {
			return 0, io.EOF
		}
		return h.lower.ReadAt(p, off)
	}
	return readFD(f.fd, p, off)
}

// ReadAtNoAtime is ReadAt of a file that was opened with O_NOATIME. All handles of an
// inode have one descriptor, without that flag: this opens another, where that can be.
func (h *Handle) ReadAtNoAtime(p []byte, off int64) (int, error) {
	f, err := h.data()
	if err != nil || f == nil {
		return h.ReadAt(p, off)
	}
	fd, err := h.fs.upper.open(at{f.fd, ""}, unix.O_RDONLY|unix.O_NOATIME)
	if err != nil { // a time that is new does less harm than a failure
		return readFD(f.fd, p, off)
	}
	defer unix.Close(fd)
	return readFD(fd, p, off)
}

// readFD is pread(2) of all of p, io.EOF at the end.
func readFD(fd int, p []byte, off int64) (int, error) {
	for done := 0; ; {
		var n int
		err := retryEINTR(func() (err error) { n, err = unix.Pread(fd, p[done:], off+int64(done)); return err })
		if err != nil {
			return done, pathError("read", at{}, err)
		}
		done += n
		if done == len(p) {
			return done, nil
		}
		if n == 0 {
			return done, io.EOF
		}
	}
}

// Slow reports whether a read of n bytes at off will wait: for the lower's content to be
// decoded, or to come from a disk. Of the upper's it is not known, and the answer no.
func (h *Handle) Slow(off int64, n int) bool {
	if _, upper := h.Upper(); upper || h.lower == nil {
		return false
	}
	return !h.lower.Ready(off, n)
}

// WriteAt writes to the upper file; the handle must have been opened for that.
func (h *Handle) WriteAt(p []byte, off int64) (int, error) {
	f, err := h.writable()
	if err != nil {
		return 0, err
	}
	h.fs.freezeMu.RLock()
	defer h.fs.freezeMu.RUnlock()
	for done := 0; done < len(p); {
		n, err := pwrite(f.fd, p[done:], off+int64(done))
		done += n
		if err != nil {
			if done > 0 {
				return done, nil //nolint:nilerr // a short write: the next one tells
			}
			return 0, err
		}
	}
	return len(p), nil
}

// writable is the open upper file, to be changed.
func (h *Handle) writable() (*openFile, error) {
	f := h.n.file.Load()
	if f == nil || !f.writable {
		return nil, pathError("write", at{}, unix.EBADF)
	}
	return f, nil
}

// Upper is the descriptor of the upper file, which all handles of the inode
// share; ok is false while the data is the lower's.
func (h *Handle) Upper() (fd int, ok bool) {
	f := h.n.file.Load()
	if f == nil {
		return -1, false
	}
	return f.fd, true
}

// Sync is fsync(2) of the upper file, or fdatasync(2). After the data was copied up it is
// fsync(2) once in any case: fdatasync(2) may leave out that the lower's counts no more,
// which is an attribute (ext4 leaves it out).
func (h *Handle) Sync(dataOnly bool) error {
	t := &h.fs.table
	filled := t.isFilled(h.n.ino)
	if err := h.sync(dataOnly && !filled); err != nil || !filled {
		return err
	}
	t.synced(h.n.ino)
	return nil
}

// Seal has fdatasync(2) of the upper file by the kernel itself keep what was copied up.
func (h *Handle) Seal() error {
	if h.fs.upper == nil || h.fs.upper.volatile || !h.fs.table.isFilled(h.n.ino) {
		return nil
	}
	return h.Sync(false)
}

func (h *Handle) sync(dataOnly bool) error {
	f := h.n.file.Load()
	if f != nil {
		return syncFD(f.fd, dataOnly)
	}
	if !h.n.upper.Load() {
		return nil // nothing was changed
	}
	h.fs.treeMu.RLock()
	fd, err := h.fs.openUpper(h.n, unix.O_RDONLY)
	h.fs.treeMu.RUnlock()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return syncFD(fd, dataOnly)
}

func syncFD(fd int, dataOnly bool) error {
	return pathError("fsync", at{}, retryEINTR(func() error {
		if dataOnly {
			return unix.Fdatasync(fd)
		}
		return unix.Fsync(fd)
	}))
}

// Allocate is fallocate(2).
func (h *Handle) Allocate(mode uint32, off, n int64) error {
	f, err := h.writable()
	if err != nil {
		return err
	}
	h.fs.freezeMu.RLock()
	defer h.fs.freezeMu.RUnlock()
	return pathError("fallocate", at{}, retryEINTR(func() error { return unix.Fallocate(f.fd, mode, off, n) }))
}

// Seek is lseek(2) with SEEK_DATA or SEEK_HOLE.
func (h *Handle) Seek(off int64, whence int) (int64, error) {
	f, err := h.data()
	if err != nil {
		return 0, err
	}
	if f != nil {
		pos, err := unix.Seek(f.fd, off, whence)
		return pos, pathError("lseek", at{}, err)
	}
	size := int64(0)
	if h.lower != nil {
		size = h.lower.Size()
	}
	if off < 0 || off >= size {
		return 0, ErrNoData
	}
	start, end := h.lower.Data(off)
	switch {
	case whence == unix.SEEK_DATA && start < size:
		return start, nil
	case whence == unix.SEEK_DATA:
		return 0, ErrNoData
	case whence == unix.SEEK_HOLE && start > off:
		return off, nil
	case whence == unix.SEEK_HOLE:
		return end, nil
	}
	return 0, ErrInvalid
}

// CopyRange is copy_file_range(2) between upper files. It is ErrUnsupported for
// data of the lower, which the kernel then reads and writes itself.
func (h *Handle) CopyRange(off int64, dst *Handle, dstOff, n int64) (int64, error) {
	to, err := dst.writable()
	if err != nil {
		return 0, err
	}
	from, err := h.data()
	if err != nil {
		return 0, err
	}
	if from == nil {
		return 0, ErrUnsupported
	}
	h.fs.freezeMu.RLock()
	defer h.fs.freezeMu.RUnlock()
	got, err := unix.CopyFileRange(from.fd, &off, to.fd, &dstOff, int(n), 0)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EXDEV) {
		return 0, ErrUnsupported
	}
	return int64(max(got, 0)), pathError("copy_file_range", at{}, err)
}
