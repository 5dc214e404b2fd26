package cas

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockFile does not begin with ".umoci-": stock umoci's gc removes what does.
const lockFile = ".lock-umoci-mount"

// Bytes of the lock file, in the order of taking them.
const (
	lockBlobs int64 = 1
	lockIndex int64 = 0
)

// Waiting for a lock is asking again, after a time that doubles from one to the
// other: F_OFD_SETLKW would not end with a context.
const (
	lockWaitMin = time.Millisecond
	lockWaitMax = 16 * time.Millisecond
)

// lock takes one byte of the lock file; kind is unix.F_RDLCK or F_WRLCK. It waits
// until ctx ends, or reports ErrBusy at once where try is set.
func (l *Layout) lock(ctx context.Context, at int64, kind int16, try bool) (release func() error, err error) {
	f, err := l.openLock()
	if kind == unix.F_RDLCK && (errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission)) {
		f, err = l.openFile(lockFile)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			// Who may neither make nor read the lock cannot hold it.
			return func() error { return nil }, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open lock of %s: %w", l.path, err)
	}
	for wait := lockWaitMin; ; wait = min(2*wait, lockWaitMax) {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: at, Len: 1})
		switch {
		case err == nil:
			return f.Close, nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES):
			return nil, errors.Join(fmt.Errorf("lock %s: %w", l.path, err), f.Close())
		case try:
			return nil, errors.Join(fmt.Errorf("%s: %w", l.path, ErrBusy), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for lock of %s: %w", l.path, ctx.Err()), f.Close())
		case <-time.After(wait):
		}
	}
}

// openLock opens the lock file, and makes it where it is missing: readable and
// writable by whom the layout's directory is.
func (l *Layout) openLock() (*os.File, error) {
	for again := false; ; again = true {
		f, err := l.root.OpenFile(lockFile, os.O_RDWR, 0)
		if !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		if err := l.step("create"); err != nil {
			return nil, err
		}
		f, err = l.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
		if errors.Is(err, fs.ErrExist) && !again {
			continue // somebody was faster
		}
		if err != nil {
			return nil, err
		}
		l.chownLikeLayout(f)
		// As with the owner: the lock works for its maker in any case.
		if dir, err := l.root.Stat("."); err == nil {
			_ = f.Chmod(dir.Mode().Perm() & 0o666)
		}
		return f, nil
	}
}

// Pin keeps every blob where it is until release is called: GC is refused with
// ErrBusy meanwhile. Any number of processes can hold a pin; while a GC runs it is
// waited for, until ctx ends. In a layout that the caller may not write to, and that no writer of
// this program has been in, there is nothing to hold, and release does nothing.
func (l *Layout) Pin(ctx context.Context) (release func() error, err error) {
	return l.lock(ctx, lockBlobs, unix.F_RDLCK, false)
}
