package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Names in a bundle.
const (
	configName  = "config.json"
	umociName   = "umoci.json"
	rootfsName  = "rootfs"
	upperName   = "upper"
	workName    = "work"
	stateDir    = ".umoci-mount"
	stateName   = "state.json"
	lockName    = "lock"
	mountedName = "mounted"
	enteredName = "entered"
	notesName   = "points"
	controlName = "control"
	logName     = "log"
)

// dir is an open bundle directory. Its files are reached from its descriptors.
type dir struct {
	path   string   // absolute, without symlinks: for messages and mount tables
	top    folder   // the directory itself
	parent folder   // the one it is in, to look names up alone
	inner  folder   // stateDir of it; may be none
	lock   *os.File // nil: not locked
}

// lookDir opens a bundle's directory, to look at it. It need not be a bundle's. Its path
// is without symlinks, as mount tables have it.
func lookDir(path string) (*dir, error) {
	abs, err := filepath.Abs(path)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	fd, err := unix.Open(abs, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open bundle: %w", &os.PathError{Op: "open", Path: abs, Err: err})
	}
	return newDir(abs, os.NewFile(uintptr(fd), abs))
}

// newDir is lookDir of what is open. It takes the descriptor.
func newDir(path string, top *os.File) (d *dir, err error) {
	d = &dir{path: path, top: folder{top}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open bundle: %w", err), d.close())
		}
	}()
	up, err := d.top.open("..", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	d.parent = folder{up}
	return d, d.openInner()
}

// openInner opens stateDir, where there is one.
func (d *dir) openInner() (err error) {
	if d.inner, err = d.top.folder(stateDir); errors.Is(err, fs.ErrNotExist) {
		d.inner = folder{}
		return nil
	}
	return err
}

// openDir opens a bundle's directory and locks it for a change. It makes no directory.
func openDir(path string) (*dir, error) {
	d, err := lookDir(path)
	if err != nil {
		return nil, err
	}
	if err := d.takeLock(); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// takeLock locks the bundle. ErrInUse.
func (d *dir) takeLock() error {
	if d.inner.none() {
		return d.notBundle()
	}
	f, err := d.inner.lasting(lockName, unix.O_RDWR)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return d.notBundle()
		}
		return fmt.Errorf("open bundle: %w", err)
	}
	if err := d.lockBy(f); err != nil {
		return err
	}
	if unlinked(d.lock) { // a first mount has failed meanwhile, and removed what it made
		return fmt.Errorf("%s: %w", d.path, ErrInUse)
	}
	return d.settle()
}

// lockBy locks a bundle by one of its files. ErrInUse.
func (d *dir) lockBy(f *os.File) error {
	d.lock = f
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s: %w", d.path, ErrInUse)
	}
	if err != nil {
		return fmt.Errorf("lock bundle: %w", err)
	}
	return nil
}

// notBundle is ErrNotBundle of the directory, with what may have been meant.
func (d *dir) notBundle() error {
	hint := ""
	if d.top.exists(ispec.ImageLayoutFile) {
		hint = " (it is an image layout)"
	}
	for path, up := d.path, ""; path != "/"; path = up {
		up = filepath.Dir(path)
		if fileExists(filepath.Join(Locate(up), stateDir, stateName)) {
			hint = fmt.Sprintf(" (the bundle is %s)", up)
			break
		}
	}
	return fmt.Errorf("%s: %w%s", d.path, ErrNotBundle, hint)
}

// unlock ends a lock of flock(2). Closing the file does not where a program is being
// started meanwhile: until the new process executes it, it has the descriptor too.
func unlock(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}

func (d *dir) close() error {
	errs := []error{d.top.close(), d.parent.close(), d.inner.close()}
	if d.lock != nil {
		errs = append(errs, unlock(d.lock))
	}
	return errors.Join(errs...)
}

// file is a path in the bundle, for messages.
func (d *dir) file(name string) string { return filepath.Join(d.path, name) }

// killedEnd is how long a killed daemon may take to let go of its files.
const killedEnd = 5 * time.Second

// isServed is isMounted, but waits for the end of a daemon that was killed and does
// not answer any more.
func (d *dir) isServed() (bool, error) {
	deadline := time.Now().Add(killedEnd)
	for {
		mounted, err := d.isMounted()
		if err != nil || !mounted {
			return false, err
		}
		if _, conn, err := d.controlCall("status"); err == nil {
			return true, conn.Close()
		}
		if time.Now().After(deadline) {
			return true, nil
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// isMounted reports whether the bundle's daemon runs.
func (d *dir) isMounted() (bool, error) {
	if d.inner.none() {
		return false, nil
	}
	f, err := d.inner.file(mountedName, unix.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the mount: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, f.Close()
	}
	return false, errors.Join(err, unlock(f))
}

// lookEnd is how long isMounted of other processes may have the lock.
const lookEnd = time.Second

// holdMounted opens and locks what isMounted looks at. ErrMounted.
func (d *dir) holdMounted() (*os.File, error) {
	f, err := d.inner.lasting(mountedName, unix.O_RDWR)
	if err != nil {
		return nil, fmt.Errorf("lock mount: %w", err)
	}
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if time.Since(start) > lookEnd {
			return nil, errors.Join(fmt.Errorf("%s: %w", d.path, ErrMounted), f.Close())
		}
	}
}
