package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// errUntrusted: a file of the cache is not one that this program may have made.
var errUntrusted = errors.New("not a regular file of the caller's or root's that they alone can write")

// ownedBySelf reports whether the caller or root owns fi's file.
func ownedBySelf(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && (st.Uid == 0 || int(st.Uid) == os.Geteuid())
}

// trusted reports whether only the caller or root could have written fi's file.
func trusted(fi fs.FileInfo) bool {
	return fi.Mode().IsRegular() && ownedBySelf(fi) && fi.Mode().Perm()&0o022 == 0
}

// open opens a file of the cache for reading, if it can be trusted.
func (c *Cache) open(name string) (*os.File, fs.FileInfo, error) {
	return c.openFor(name, os.O_RDONLY)
}

// openFor is open for other uses than reading.
func (c *Cache) openFor(name string, flags int) (*os.File, fs.FileInfo, error) {
	// O_NONBLOCK: a fifo put there must not stop us.
	f, err := c.dir.OpenFile(name, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	fi, err := f.Stat()
	if err == nil && !trusted(fi) {
		err = &os.PathError{Op: "open", Path: f.Name(), Err: errUntrusted}
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	used(f, fi)
	return f, fi, nil
}

// mapFile maps a whole file of the cache; sys.Unmap ends it. These files are
// never truncated: they are replaced by rename.
func (c *Cache) mapFile(name string) ([]byte, error) {
	f, fi, err := c.open(name)
	if err != nil {
		return nil, err
	}
	b, err := sys.Map(f, fi.Size())
	if cerr := f.Close(); cerr != nil && err == nil {
		err = errors.Join(cerr, sys.Unmap(b))
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// tempFile is a file of the cache that is being written, under another name.
type tempFile struct {
	c    *Cache
	name string // what it is to become
	f    *os.File
	mode fs.FileMode
}

const tempSuffix = ".tmp"

// create begins a file of the cache. The caller holds the lock of what the file
// is about, so that the temporary name needs to be no one else's, and what a
// crash left there goes away. publish or discard ends it.
func (c *Cache) create(name string) (*tempFile, error) {
	if err := c.dir.MkdirAll(path.Dir(name), 0o755); err != nil {
		return nil, fmt.Errorf("make cache directory: %w", err)
	}
	if err := c.dir.Remove(name + tempSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old cache file: %w", err)
	}
	f, err := c.dir.OpenFile(name+tempSuffix, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return nil, fmt.Errorf("make cache file: %w", err)
	}
	return &tempFile{c, name, f, 0o444}, nil
}

// publish gives the file its name, whole and on disk.
func (t *tempFile) publish() error {
	err := t.f.Chmod(t.mode) // whatever the umask
	if err == nil {
		err = t.f.Sync()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write cache file: %w", err), t.discard())
	}
	if err := t.c.dir.Rename(t.name+tempSuffix, t.name); err != nil {
		return errors.Join(fmt.Errorf("publish cache file: %w", err), t.discard())
	}
	if err := t.f.Close(); err != nil {
		return fmt.Errorf("write cache file: %w", err)
	}
	if err := t.c.syncDir(path.Dir(t.name)); err != nil {
		return fmt.Errorf("sync cache directory: %w", err)
	}
	return nil
}

// discard gives the file up.
func (t *tempFile) discard() error {
	return errors.Join(t.f.Close(), t.c.dir.Remove(t.name+tempSuffix))
}

// write makes a file of the cache with what fill writes; see create.
func (c *Cache) write(name string, fill func(f *os.File) error) error {
	t, err := c.create(name)
	if err != nil {
		return err
	}
	if err := fill(t.f); err != nil {
		return errors.Join(fmt.Errorf("write cache file: %w", err), t.discard())
	}
	return t.publish()
}

func (c *Cache) syncDir(name string) error {
	d, err := c.dir.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

const lockDir = "locks"

// lock takes the lock of that name against all processes, waiting for it until
// ctx is done. No goroutine takes a second lock while it holds one.
func (c *Cache) lock(ctx context.Context, name string) (unlock func() error, err error) {
	if err := c.dir.MkdirAll(lockDir, 0o755); err != nil {
		return nil, fmt.Errorf("make cache directory: %w", err)
	}
	name = path.Join(lockDir, name)
	for {
		f, err := c.tryLock(name)
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		if f != nil {
			return func() error {
				// Removed before it is let go: whoever waits for this file finds that
				// the name is gone and makes a new one.
				return errors.Join(c.dir.Remove(name), f.Close())
			}, nil
		}
		// flock(2) cannot wait for a lock and a context at once.
		wait := time.NewTimer(time.Duration(20+rand.IntN(30)) * time.Millisecond)
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil, context.Cause(ctx)
		case <-wait.C:
		}
	}
}

// tryLock gives the lock file, locked, or nil if somebody else has it.
func (c *Cache) tryLock(name string) (_ *os.File, err error) {
	f, err := c.dir.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, f.Close()
	}
	if err != nil {
		return nil, errors.Join(&os.PathError{Op: "flock", Path: f.Name(), Err: err}, f.Close())
	}
	mine, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	named, err := c.dir.Stat(name)
	switch {
	case err == nil && os.SameFile(mine, named):
		return f, nil
	case err == nil || errors.Is(err, fs.ErrNotExist):
		return nil, f.Close() // let go and removed by another in between
	}
	return nil, errors.Join(err, f.Close())
}
