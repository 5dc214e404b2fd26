package fusefs

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// backingFiles registers files that the kernel reads and writes by itself.
// device satisfies it.
type backingFiles interface {
	// RegisterBackingFd gives an id for an open file. The descriptor may be
	// closed afterwards.
	RegisterBackingFd(fd int) (id int32, errno syscall.Errno)
	// UnregisterBackingFd takes an id back. Files open with it stay as they are.
	UnregisterBackingFd(id int32) syscall.Errno
}

// ioMode is how the kernel does the I/O of an inode that is open. It refuses an
// open (EIO to the caller) that does not agree with those that are there
// (fs/fuse/iomode.c), so the first open decides and the mode stays until the
// last is released.
type ioMode uint8

const (
	ioUndecided ioMode = iota
	// ioCached: through the page cache and READ and WRITE requests. Always for
	// data of the lower.
	ioCached
	// ioPassthrough: by the kernel, on the upper file. All opens carry one id.
	ioPassthrough
)

// inodeIO is the mode of one inode with open files.
type inodeIO struct {
	ino   overlay.Ino // immutable
	opens int         // protected by ioModes.mu
	maps  int         // protected by ioModes.mu; passthrough opens that allow a writable mapping

	mu   sync.Mutex
	mode ioMode // protected by mu
	id   int32  // protected by mu; of the backing file
}

// ioModes chooses the mode of each inode.
type ioModes struct {
	log     *slog.Logger
	backing backingFiles // set before the first request; nil: passthrough is off
	refused atomic.Bool  // the kernel does not want passthrough on this mount
	maps    atomic.Int64 // sum of inodeIO.maps

	mu     sync.Mutex
	inodes map[overlay.Ino]*inodeIO // protected by mu
}

// open says how the kernel is to open h. Its answer goes into out; what it
// returns is given back by release. flags are those of open(2).
func (m *ioModes) open(h *overlay.Handle, flags uint32, out *fuse.OpenOut) openIO {
	if m.backing == nil {
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
		return openIO{}
	}
	st := m.acquire(h.Ino())
	st.mu.Lock()
	first := st.mode == ioUndecided
	if first {
		m.decideLocked(st, h)
	}
	mode, id := st.mode, st.id
	st.mu.Unlock()

	if mode != ioPassthrough {
		// A first open of an upper file comes here when registration failed: what
		// the kernel has cached may be older than an earlier passthrough.
		if _, upper := h.Upper(); !first || !upper {
			out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
		}
		return openIO{inode: st}
	}
	out.OpenFlags |= fuse.FOPEN_PASSTHROUGH // with KEEP_CACHE the kernel answers EIO
	out.BackingID = id
	if flags&unix.O_ACCMODE != unix.O_RDWR {
		return openIO{inode: st}
	}
	m.mu.Lock()
	st.maps++
	m.mu.Unlock()
	m.maps.Add(1)
	return openIO{inode: st, maps: true}
}

// openIO is what one open file holds of its inode's mode.
type openIO struct {
	inode *inodeIO
	maps  bool
}

// acquire is the state of an inode, with one more open.
func (m *ioModes) acquire(ino overlay.Ino) *inodeIO {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.inodes[ino]
	if st == nil {
		st = &inodeIO{ino: ino}
		m.inodes[ino] = st
	}
	st.opens++
	return st
}

// decideLocked chooses the mode at the first open. Preconditions: st.mu is held.
func (m *ioModes) decideLocked(st *inodeIO, h *overlay.Handle) {
	st.mode = ioCached
	fd, upper := h.Upper()
	if !upper || m.refused.Load() {
		return
	}
	if err := h.Seal(); err != nil {
		m.log.Warn("file is served without passthrough: its copy could not be synced", slog.Uint64("ino", uint64(st.ino)), slog.Any("cause", err))
		return
	}
	id, errno := m.backing.RegisterBackingFd(fd)
	if errno == 0 {
		st.mode, st.id = ioPassthrough, id
		return
	}
	switch errno { //nolint:exhaustive // the others may go away
	case syscall.EPERM, syscall.ELOOP, syscall.EINVAL, syscall.ENOTTY, syscall.EOPNOTSUPP:
		// EPERM: no CAP_SYS_ADMIN in the first user namespace. ELOOP: the upper is
		// on a file system that is stacked already.
		if m.refused.CompareAndSwap(false, true) {
			m.log.Info("passthrough is off: the kernel refused a backing file", slog.Any("cause", errno))
		}
	}
}

// release ends an open.
func (m *ioModes) release(o openIO) {
	st := o.inode
	if st == nil {
		return
	}
	m.mu.Lock()
	if o.maps {
		st.maps--
		m.maps.Add(-1)
	}
	st.opens--
	last := st.opens == 0
	if last {
		delete(m.inodes, st.ino)
	}
	m.mu.Unlock()
	if !last {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.mode != ioPassthrough {
		return
	}
	if errno := m.backing.UnregisterBackingFd(st.id); errno != 0 && errno != syscall.EBADF {
		m.log.Warn("backing file stays registered", slog.Uint64("ino", uint64(st.ino)), slog.Any("cause", errno))
	}
}

// mapped reports whether a process may be writing to the upper file through a
// mapping, unseen.
func (m *ioModes) mapped(ino overlay.Ino) bool {
	if m.maps.Load() == 0 {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.inodes[ino]
	return st != nil && st.maps > 0
}
