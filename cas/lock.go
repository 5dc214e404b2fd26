package cas

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// lockFile does not begin with ".umoci-": stock umoci's gc removes what does.
const lockFile = ".lock-umoci-mount"

// Bytes of the lock file. The order is that of taking them.
const (
	lockBlobs int64 = 1
	lockIndex int64 = 0
)

// lock takes one byte of the lock file; kind is unix.F_RDLCK or F_WRLCK. It waits
// unless try is set, and then reports ErrBusy. A layout that cannot be written to
// needs no lock for reading: nothing here can change it either.
func (l *Layout) lock(at int64, kind int16, try bool) (release func() error, err error) {
	f, err := l.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o666)
	if kind == unix.F_RDLCK && (errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission)) {
		f, err = l.root.Open(lockFile)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return func() error { return nil }, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open lock of %s: %w", l.path, err)
	}
	cmd := unix.F_OFD_SETLKW
	if try {
		cmd = unix.F_OFD_SETLK
	}
	for {
		err = unix.FcntlFlock(f.Fd(), cmd, &unix.Flock_t{Type: kind, Start: at, Len: 1})
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err == nil {
		return f.Close, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("%s: %w", l.path, ErrBusy)
	}
	return nil, fmt.Errorf("lock %s: %w", l.path, err)
}

// Pin keeps every blob where it is until release is called: GC is refused with
// ErrBusy meanwhile. Any number of processes can hold a pin.
func (l *Layout) Pin() (release func() error, err error) {
	return l.lock(lockBlobs, unix.F_RDLCK, false)
}
