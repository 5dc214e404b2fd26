package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

func TestErrorsBecomeErrnos(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("do a thing: %w", err) }
	corrupt := &layer.CorruptError{Blob: "sha256:0123", Offset: 4711, Err: layer.ErrChecksum}
	tests := []struct {
		name  string
		err   error
		want  syscall.Errno
		inLog string // part of the one line; empty: nothing is logged
	}{
		{"nothing", nil, 0, ""},
		{"a name that is not there", fs.ErrNotExist, syscall.ENOENT, ""},
		{"the same, wrapped", wrap(fs.ErrNotExist), syscall.ENOENT, ""},
		{"read-only", wrap(overlay.ErrReadOnly), syscall.EROFS, ""},
		{"not a directory", overlay.ErrNotDir, syscall.ENOTDIR, ""},
		{"a directory", overlay.ErrIsDir, syscall.EISDIR, ""},
		{"not empty", overlay.ErrNotEmpty, syscall.ENOTEMPTY, ""},
		{"gone", overlay.ErrStale, syscall.ESTALE, ""},
		{"invalid", overlay.ErrInvalid, syscall.EINVAL, ""},
		{"no attribute", overlay.ErrNoXattr, syscall.ENODATA, ""},
		{"short buffer", overlay.ErrRange, syscall.ERANGE, ""},
		{"unsupported", overlay.ErrUnsupported, syscall.EOPNOTSUPP, ""},
		{"long name", overlay.ErrNameTooLong, syscall.ENAMETOOLONG, ""},
		{"too many links", overlay.ErrTooManyLinks, syscall.EMLINK, ""},
		{"beyond the end", overlay.ErrNoData, syscall.ENXIO, ""},
		{"errno in a PathError", &os.PathError{Op: "open", Path: "x", Err: syscall.ENOSPC}, syscall.ENOSPC, ""},
		{"errno in a LinkError", &os.LinkError{Op: "rename", Old: "x", New: "y", Err: syscall.EXDEV}, syscall.EXDEV, ""},
		{"errno in a SyscallError, wrapped", wrap(os.NewSyscallError("pwrite", syscall.EDQUOT)), syscall.EDQUOT, ""},
		{"EACCES stays apart from EPERM", wrap(syscall.EACCES), syscall.EACCES, ""},
		{"ENOTEMPTY stays apart from EEXIST", wrap(syscall.ENOTEMPTY), syscall.ENOTEMPTY, ""},
		{"ENOSYS is never passed on", &os.PathError{Op: "setxattr", Err: syscall.ENOSYS}, syscall.EOPNOTSUPP, ""},
		{"a kernel-internal code", syscall.Errno(512), syscall.EIO, "op=LOOKUP"},
		{"io/fs's exist", fs.ErrExist, syscall.EEXIST, ""},
		{"io/fs's permission", fs.ErrPermission, syscall.EPERM, ""},
		{"io/fs's invalid", fs.ErrInvalid, syscall.EINVAL, ""},
		{"io/fs's closed", fs.ErrClosed, syscall.EBADF, ""},
		{"errors' unsupported", errors.ErrUnsupported, syscall.EOPNOTSUPP, ""},
		{"cancelled", context.Canceled, syscall.EINTR, ""},
		{"the server's own descriptors", os.NewSyscallError("open", syscall.EMFILE), syscall.EMFILE, "op=LOOKUP ino=42"},
		{"a disk error", &os.PathError{Op: "read", Err: syscall.EIO}, syscall.EIO, "op=LOOKUP ino=42"},
		{"an error of no kind", wrap(io.ErrUnexpectedEOF), syscall.EIO, "unexpected EOF"},
		{"a damaged layer", wrap(corrupt), syscall.EIO, "blob=sha256:0123 offset=4711"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			o := newOps(nil, slog.New(slog.NewTextHandler(&log, nil)), false)
			if got := syscall.Errno(o.status(opLookup, 42, tt.err)); got != tt.want {
				t.Errorf("%v is %d (%v), want %d (%v)", tt.err, got, got, tt.want, tt.want)
			}
			lines := strings.Count(log.String(), "\n")
			switch {
			case tt.inLog == "" && lines != 0:
				t.Errorf("logged: %s", &log)
			case tt.inLog != "" && (lines != 1 || !strings.Contains(log.String(), tt.inLog)):
				t.Errorf("logged %q, want one line with %q", &log, tt.inLog)
			}
		})
	}
}

func TestNoErrorBecomesENOSYS(t *testing.T) {
	o := newOps(nil, slog.New(slog.DiscardHandler), false)
	for errno := range syscall.Errno(600) {
		for _, err := range []error{errno, fmt.Errorf("below: %w", errno), &os.PathError{Op: "x", Err: errno}} {
			if st := o.status(opGetXattr, 1, err); st == 38 {
				t.Fatalf("%v is ENOSYS", err)
			}
		}
	}
}
