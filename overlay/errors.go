package overlay

import (
	"errors"
	"fmt"
	"io/fs"
)

// What an operation can say beside io/fs's errors and the errno of a failed
// system call (always wrapped in *os.PathError or *os.LinkError, found by
// errors.As as syscall.Errno). fusefs/errno.go maps each to one errno.
var (
	// ErrReadOnly: the file system has no upper directory (EROFS).
	ErrReadOnly = errors.New("read-only file system")
	// ErrNotDir: a directory was needed (ENOTDIR).
	ErrNotDir = errors.New("not a directory")
	// ErrIsDir: anything but a directory was needed (EISDIR).
	ErrIsDir = errors.New("is a directory")
	// ErrNotEmpty: a directory still has names in it (ENOTEMPTY).
	ErrNotEmpty = errors.New("directory not empty")
	// ErrStale: the inode is gone (ESTALE).
	ErrStale = errors.New("stale inode")
	// ErrInvalid: an argument no caller may give (EINVAL).
	ErrInvalid = errors.New("invalid argument")
	// ErrNoXattr: no such extended attribute (ENODATA).
	ErrNoXattr = errors.New("no such extended attribute")
	// ErrRange: the buffer is too small for the value (ERANGE).
	ErrRange = errors.New("buffer too small")
	// ErrUnsupported: the file or the upper's file system cannot do this (EOPNOTSUPP).
	ErrUnsupported = errors.New("operation not supported")
	// ErrNameTooLong: a name of more than 255 bytes (ENAMETOOLONG).
	ErrNameTooLong = errors.New("file name too long")
	// ErrTooManyLinks: the link count would overflow (EMLINK).
	ErrTooManyLinks = errors.New("too many links")
	// ErrUnsuitable: the file system of the upper directory cannot hold the format
	// (OpenUpper, New).
	ErrUnsuitable = errors.New("unsuitable file system for changes")
	// ErrNoData: SEEK_DATA or SEEK_HOLE beyond the end (ENXIO).
	ErrNoData = errors.New("no such position")
)

// errNotFound is the answer for a name that leads nowhere.
var errNotFound = fmt.Errorf("lookup: %w", fs.ErrNotExist)
