package fusefs

import (
	"errors"
	"io/fs"
	"syscall"

	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// What follows is for changes of the file system that do not come from the kernel.
// It keeps names and attributes for ever, so it has to be told. No lock of the file
// system may be held.

// InodeChanged makes the kernel forget the attributes of an inode.
func (s *Server) InodeChanged(ino overlay.Ino) { s.ops.expireAttr(ino) }

// ListingChanged makes the kernel forget the attributes and the listing of a directory.
func (s *Server) ListingChanged(dir overlay.Ino) {
	s.ops.nameChanges.Add(1)
	_ = s.dev.InodeNotify(uint64(dir), 0, 0) // what the kernel does not know needs no such thing
}

// NameMade makes the kernel forget that there was no such name, and the listing of
// its directory.
func (s *Server) NameMade(dir overlay.Ino, name string) {
	_ = s.dev.EntryNotify(uint64(dir), name)
	s.ListingChanged(dir)
}

// Errno is the errno that a program in the mount gets for an error of the overlay;
// EIO where the error has no other, 0 for nil.
func Errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	for i := range errnoOf {
		if errors.Is(err, errnoOf[i].err) {
			return errnoOf[i].errno
		}
	}
	var corrupt *layer.CorruptError
	var errno syscall.Errno
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return syscall.ENOENT
	case errors.As(err, &corrupt):
		return syscall.EIO
	case errors.As(err, &errno) && errno == syscall.ENOSYS:
		return syscall.EOPNOTSUPP
	case errors.As(err, &errno) && errno > 0 && errno < firstKernelErrno:
		return errno
	}
	for i := range errnoOfFS {
		if errors.Is(err, errnoOfFS[i].err) {
			return errnoOfFS[i].errno
		}
	}
	return syscall.EIO
}
