package layer

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Who reads from a file of the cache for longer holds a shared flock(2) on it, and
// Prune removes only what it can lock exclusively: trees are locked by their
// mapping, layers by their index. A file without the lock is still safe to remove,
// since a mapping outlives the name; it would only have to be made again.

// How long a lock is asked for while Prune, which holds it for a moment, has it.
const (
	shareTries = 40
	sharePause = 5 * time.Millisecond
)

// share takes a shared lock on an open file. fs.ErrNotExist: Prune was faster. A
// file system without locks is no error.
func share(f *os.File) error {
	var err error
	for range shareTries {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
			break
		}
		time.Sleep(sharePause)
	}
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENOLCK):
		return nil
	case err != nil:
		return &os.PathError{Op: "flock", Path: f.Name(), Err: err}
	}
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Nlink == 0 {
		return &os.PathError{Op: "open", Path: f.Name(), Err: fs.ErrNotExist}
	}
	return nil
}

// hold keeps the layers' indexes from being pruned until the files are closed. One
// that cannot be held is left: a layer's index is made again where it is missed.
func (c *Cache) hold(held *heldSources) []*os.File {
	var out []*os.File
	for _, h := range held.layers {
		f, _, err := c.open(indexPath(h.src.Digest))
		if err != nil {
			continue
		}
		if share(f) != nil {
			_ = f.Close() // read-only: nothing can be lost
			continue
		}
		out = append(out, f)
	}
	return out
}

// usedEvery is the grain in which it is noted that a file was used.
const usedEvery = time.Hour

// used notes that a file was used now, as its time of access, whatever the mount's
// options say of that. Where that is not permitted nothing is lost but the note.
func used(f *os.File, fi fs.FileInfo) {
	if time.Since(lastUsed(fi)) < usedEvery {
		return
	}
	now := unix.NsecToTimespec(time.Now().UnixNano())
	_ = unix.UtimesNanoAt(int(f.Fd()), "", []unix.Timespec{now, {Nsec: unix.UTIME_OMIT}}, unix.AT_EMPTY_PATH)
}

// lastUsed is when a file was used or made.
func lastUsed(fi fs.FileInfo) time.Time {
	t := fi.ModTime()
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		if a := time.Unix(st.Atim.Unix()); a.After(t) {
			t = a
		}
	}
	return t
}
