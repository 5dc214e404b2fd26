package fusefs

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// Without passthrough the kernel is told once that it need not ask for opens (OPEN is
// ENOSYS, fc->no_open in fs/fuse/file.c:fuse_file_open): it opens files by itself, and
// READ, WRITE and the like name the inode alone. nodeFiles keeps the files open that
// such requests came for last, until the kernel forgets the inode.

// nodeFilesMax is how many files stay open for the next request, where the process may
// have that many. An upper file among them is a descriptor.
const nodeFilesMax = 512

// nodeFiles are open files by inode, the least lately used closed first.
type nodeFiles struct {
	open func(ino overlay.Ino, flags uint32) (*overlay.Handle, error) // immutable
	fail func(ino overlay.Ino, err error)                             // immutable; told of a close that failed
	max  int                                                          // immutable; more are open only while in use

	mu     sync.Mutex
	files  map[overlay.Ino]*nodeFile // protected by mu
	recent nodeFile                  // protected by mu; ends of the list: next is the last used
}

// nodeFile is one of them; all but h and ino are protected by nodeFiles.mu.
type nodeFile struct {
	h    *overlay.Handle // immutable
	ino  overlay.Ino     // immutable
	next *nodeFile
	prev *nodeFile

	writable bool // opened for writing: the data is the upper's
	users    int  // requests that use h
	gone     bool // out of the table: the last user closes it
}

func newNodeFiles(open func(overlay.Ino, uint32) (*overlay.Handle, error), fail func(overlay.Ino, error)) *nodeFiles {
	t := &nodeFiles{open: open, fail: fail, max: sys.DescriptorShare(nodeFilesMax), files: map[overlay.Ino]*nodeFile{}}
	t.recent.next, t.recent.prev = &t.recent, &t.recent
	return t
}

// get is the open file of an inode, opened for writing where write is set: that
// copies it up. The caller gives it back with put.
func (t *nodeFiles) get(ino overlay.Ino, write bool) (*nodeFile, error) {
	t.mu.Lock()
	if f := t.files[ino]; f != nil && (f.writable || !write) {
		f.users++
		t.unlinkLocked(f)
		t.linkLocked(f)
		t.mu.Unlock()
		return f, nil
	}
	t.mu.Unlock()
	flags := uint32(unix.O_RDONLY)
	if write {
		flags = unix.O_RDWR
	}
	h, err := t.open(ino, flags)
	if err != nil {
		return nil, err
	}
	return t.add(h, write), nil
}

// add enters an open file in use, which the caller gives back with put.
func (t *nodeFiles) add(h *overlay.Handle, writable bool) *nodeFile {
	f := &nodeFile{h: h, ino: h.Ino(), writable: writable, users: 1}
	t.mu.Lock()
	closing := t.removeLocked(t.files[f.ino])
	t.files[f.ino] = f
	t.linkLocked(f)
	var old *nodeFile
	if len(t.files) > t.max {
		old = t.removeLocked(t.recent.prev)
	}
	t.mu.Unlock()
	t.close(closing)
	t.close(old)
	return f
}

// put ends one use of f.
func (t *nodeFiles) put(f *nodeFile) {
	t.mu.Lock()
	f.users--
	last := f.gone && f.users == 0
	t.mu.Unlock()
	if last {
		t.close(f)
	}
}

// drop closes the file of an inode that the kernel has forgotten.
func (t *nodeFiles) drop(ino overlay.Ino) {
	t.mu.Lock()
	f := t.removeLocked(t.files[ino])
	t.mu.Unlock()
	t.close(f)
}

// closeAll closes those that no request uses, and the others when they are given back.
func (t *nodeFiles) closeAll() {
	t.mu.Lock()
	var all []*nodeFile
	for _, f := range t.files {
		all = append(all, t.removeLocked(f)) // nil: in use
	}
	t.mu.Unlock()
	for _, f := range all {
		t.close(f)
	}
}

// close closes a file that was taken out; nil is none.
func (t *nodeFiles) close(f *nodeFile) {
	if f == nil {
		return
	}
	if err := f.h.Close(); err != nil {
		t.fail(f.ino, err)
	}
}

// removeLocked takes f out and returns it where the caller is to close it.
// Preconditions: mu is held; f may be nil.
func (t *nodeFiles) removeLocked(f *nodeFile) *nodeFile {
	if f == nil {
		return nil
	}
	delete(t.files, f.ino)
	t.unlinkLocked(f)
	f.gone = true
	if f.users > 0 {
		return nil
	}
	return f
}

func (t *nodeFiles) linkLocked(f *nodeFile) {
	f.prev, f.next = &t.recent, t.recent.next
	f.prev.next, f.next.prev = f, f
}

func (t *nodeFiles) unlinkLocked(f *nodeFile) {
	f.prev.next, f.next.prev = f.next, f.prev
}
