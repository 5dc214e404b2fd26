package fusefs

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// errnoOf is the table of errors that are told by their meaning. The first that
// matches wins; the answer to an everyday question stands first.
// Precise causes (a syscall.Errno) are looked for after the overlay's sentinels
// and before io/fs's, which lump errnos together.
var errnoOf = []struct {
	err   error
	errno syscall.Errno
}{
	{overlay.ErrNoXattr, syscall.ENODATA},
	{overlay.ErrReadOnly, syscall.EROFS},
	{overlay.ErrNotDir, syscall.ENOTDIR},
	{overlay.ErrIsDir, syscall.EISDIR},
	{overlay.ErrNotEmpty, syscall.ENOTEMPTY},
	{overlay.ErrStale, syscall.ESTALE},
	{overlay.ErrInvalid, syscall.EINVAL},
	{overlay.ErrRange, syscall.ERANGE},
	{overlay.ErrUnsupported, syscall.EOPNOTSUPP},
	{overlay.ErrNameTooLong, syscall.ENAMETOOLONG},
	{overlay.ErrTooManyLinks, syscall.EMLINK},
	{overlay.ErrNoData, syscall.ENXIO},
}

// errnoOfFS is the rest of the table: errors without an errno inside.
var errnoOfFS = []struct {
	err   error
	errno syscall.Errno
}{
	{fs.ErrExist, syscall.EEXIST},
	{fs.ErrPermission, syscall.EPERM},
	{fs.ErrInvalid, syscall.EINVAL},
	{fs.ErrClosed, syscall.EBADF},
	{errors.ErrUnsupported, syscall.EOPNOTSUPP},
	{context.Canceled, syscall.EINTR},
	{context.DeadlineExceeded, syscall.ETIMEDOUT},
}

// firstKernelErrno is where the kernel's internal codes begin; it rejects a
// reply with one (fs/fuse/dev.c:fuse_dev_do_write).
const firstKernelErrno = 512

// status is the answer to a request on ino that ended with err. What has no
// errno is EIO and one line in the log, as is damage to a layer. It is never
// ENOSYS, which the kernel would remember for the whole mount.
func (o *ops) status(op opcode, ino uint64, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	if errors.Is(err, fs.ErrNotExist) { // the answer to most lookups of what is about to be made
		return fuse.ENOENT
	}
	for i := range errnoOf {
		if errors.Is(err, errnoOf[i].err) {
			return fuse.Status(errnoOf[i].errno)
		}
	}
	return o.rareStatus(op, ino, err)
}

// rareStatus is status for what is not part of everyday work.
func (o *ops) rareStatus(op opcode, ino uint64, err error) fuse.Status {
	o.madeRoom(err) // for the next request
	var corrupt *layer.CorruptError
	if errors.As(err, &corrupt) {
		o.log.Error("layer is damaged", slog.String("op", op.String()), slog.Uint64("ino", ino),
			slog.String("blob", corrupt.Blob.String()), slog.Int64("offset", corrupt.Offset), slog.Any("cause", corrupt.Err))
		return fuse.EIO
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return o.errnoStatus(op, ino, err, errno)
	}
	for i := range errnoOfFS {
		if errors.Is(err, errnoOfFS[i].err) {
			return fuse.Status(errnoOfFS[i].errno)
		}
	}
	o.logFailure(op, ino, err)
	return fuse.EIO
}

// errnoStatus passes on an errno from below. Those that speak of the server's
// own trouble rather than the caller's are logged too.
func (o *ops) errnoStatus(op opcode, ino uint64, err error, errno syscall.Errno) fuse.Status {
	switch {
	case errno == syscall.ENOSYS:
		return fuse.Status(syscall.EOPNOTSUPP)
	case errno <= 0 || errno >= firstKernelErrno:
		o.logFailure(op, ino, err)
		return fuse.EIO
	}
	switch errno { //nolint:exhaustive // the others are the caller's
	case syscall.EIO, syscall.EBADF, syscall.EFAULT, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EUCLEAN:
		o.logFailure(op, ino, err)
	}
	return fuse.Status(errno)
}

func (o *ops) logFailure(op opcode, ino uint64, err error) {
	o.log.Error("request failed", slog.String("op", op.String()), slog.Uint64("ino", ino), slog.Any("cause", err))
}
