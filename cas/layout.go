package cas

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// MaxDocument bounds the JSON documents that are read, in bytes. The largest
// known manifests are a few MiB.
const MaxDocument = 32 << 20

const indexFile = "index.json"

// Layout is an open image layout. It is safe for concurrent use.
type Layout struct {
	path   string // immutable; for messages
	root   *os.Root
	linked []linkedDir // immutable; their blobs are not of this layout alone

	// Fault, where set, is asked before each system call that changes the layout;
	// its error is returned in that call's place. For tests; set it before use.
	Fault func(step string) error

	mu   sync.Mutex
	temp *tempDir // protected by mu; nil until something is written
}

// Open opens an existing layout.
func Open(path string) (*Layout, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open image layout: %w", err)
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("open image layout: %w", err)
	}
	l := &Layout{path: abs, root: root}
	err = l.check()
	if err == nil {
		err = l.openLinked()
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// check reads oci-layout.
func (l *Layout) check() error {
	data, err := l.readFile(ispec.ImageLayoutFile)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s has no %s file: %w", l.path, ispec.ImageLayoutFile, ErrNotLayout)
	}
	if err != nil {
		return err
	}
	var v ispec.ImageLayout
	if err := json.Unmarshal(data, &v); err != nil {
		return fmt.Errorf("%s: %s: %v: %w", l.path, ispec.ImageLayoutFile, err, ErrNotLayout)
	}
	if v.Version != ispec.ImageLayoutVersion {
		return fmt.Errorf("%s has image-layout version %q, read is %s: %w", l.path, v.Version, ispec.ImageLayoutVersion, ErrNotLayout)
	}
	return nil
}

// Create makes an empty layout; path must not exist, its parents are made.
// ErrExists otherwise. Where it fails nothing is left at path, but the whole layout if
// all that failed is to make its name durable.
func Create(path string) (*Layout, error) { return create(path, nil) }

func create(path string, fault func(step string) error) (_ *Layout, err error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("create image layout: %w", err)
	}
	changed := changedAbove(abs)
	if err := os.MkdirAll(filepath.Dir(abs), 0o755); err != nil {
		return nil, fmt.Errorf("create image layout: %w", err)
	}
	if _, err := os.Lstat(abs); err == nil {
		return nil, fmt.Errorf("create image layout: %s %w", path, ErrExists)
	}
	// It is made beside its place: a layout that is there is whole, whenever this ends.
	temp := filepath.Join(filepath.Dir(abs), ".umoci-init-"+filepath.Base(abs))
	lock, err := beginDir(temp)
	if err != nil {
		return nil, fmt.Errorf("create image layout: %w", err)
	}
	moved := false
	defer func() {
		if err != nil && !moved { // else the name is the next one's
			err = errors.Join(err, os.RemoveAll(temp))
		}
		err = errors.Join(err, lock.Close())
	}()
	root, err := os.OpenRoot(temp)
	if err != nil {
		return nil, fmt.Errorf("create image layout: %w", err)
	}
	l := &Layout{path: abs, root: root, Fault: fault}
	if err := errors.Join(l.fill(), l.dropTemp()); err != nil {
		return nil, errors.Join(fmt.Errorf("create image layout: %w", err), l.Close())
	}
	err = l.step("rename")
	if err == nil {
		err = moveNew(temp, abs)
	}
	moved = err == nil
	for _, dir := range changed {
		if err == nil {
			err = l.syncAbove(dir, lock)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create image layout: %w", err), l.Close())
	}
	return l, nil
}

// changedAbove are the directories that get a new entry where path and what is missing
// above it are made.
func changedAbove(path string) (dirs []string) {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		dirs = append(dirs, dir)
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dirs
		}
	}
}

// syncAbove makes the entries of a directory above the layout, own, durable.
func (l *Layout) syncAbove(dir string, own *os.File) error {
	if err := l.step("fsync"); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrPermission) { // it need not be readable: then all of its file system
		if err = unix.Syncfs(int(own.Fd())); err == nil {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return errors.Join(syncOpen(d), d.Close())
}

// beginDir makes a directory, or takes over one that an interrupted command left, and
// locks it; it is empty then.
func beginDir(path string) (*os.File, error) {
	for {
		if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		d, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // renamed meanwhile
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
			return nil, errors.Join(err, d.Close())
		}
		locked, err := d.Stat()
		there, err2 := os.Lstat(path)
		if err == nil && err2 == nil && os.SameFile(locked, there) {
			if err := clearDir(d, path); err != nil {
				return nil, errors.Join(err, d.Close())
			}
			return d, nil
		}
		if err := errors.Join(err, d.Close()); err != nil {
			return nil, err
		}
	}
}

func clearDir(d *os.File, path string) error {
	names, err := d.Readdirnames(-1)
	for _, name := range names {
		err = errors.Join(err, os.RemoveAll(filepath.Join(path, name)))
	}
	return err
}

// moveNew renames a directory to a name that must be free: ErrExists.
func moveNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // a file system that cannot say so
		if _, err := os.Lstat(to); err == nil {
			return fmt.Errorf("%s %w", to, ErrExists)
		}
		return os.Rename(from, to)
	}
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s %w", to, ErrExists)
	}
	return err
}

// fill writes what an empty layout has. oci-layout, which makes it one, is last.
func (l *Layout) fill() error {
	if err := l.ensureDir("blobs/sha256"); err != nil {
		return err
	}
	index, err := emptyIndex().bytes()
	if err != nil {
		return err
	}
	if err := l.replaceFile(indexFile, append(index, '\n')); err != nil {
		return err
	}
	version, err := marshal(ispec.ImageLayout{Version: ispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	if err := l.replaceFile(ispec.ImageLayoutFile, append(version, '\n')); err != nil {
		return err
	}
	// The lock exists from the start: readers who may not create it can pin.
	lock, err := l.openLock()
	if err != nil {
		return err
	}
	return lock.Close()
}

// Path is the layout's absolute path.
func (l *Layout) Path() string { return l.path }

// Close removes what was begun and not committed.
func (l *Layout) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	if l.temp != nil {
		err = l.temp.remove()
		l.temp = nil
	}
	return errors.Join(err, l.closeLinked(), l.root.Close())
}

func (l *Layout) step(name string) error {
	if l.Fault == nil {
		return nil
	}
	return l.Fault(name)
}

// openFile opens a regular file of the layout for reading. What else may stand
// under its name is refused, and is not waited for as a fifo's writer would be.
func (l *Layout) openFile(name string) (*os.File, error) {
	root, rest := l.at(name)
	f, err := root.OpenFile(rest, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file: %w", filepath.Join(l.path, name), ErrMalformed)
	}
	if err == nil {
		err = unix.SetNonblock(int(f.Fd()), false)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// readFile reads a bounded file of the layout.
func (l *Layout) readFile(name string) ([]byte, error) {
	f, err := l.openFile(name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(l.path, name), err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(l.path, name), err)
	}
	if len(data) > MaxDocument {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(l.path, name), ErrTooLarge)
	}
	return data, nil
}

// replaceFile puts data at a name of the layout in one durable step.
func (l *Layout) replaceFile(name string, data []byte) error {
	return l.replaceIf(name, data, func() error { return nil })
}

// replaceIf is replaceFile where nothing but that step is left to do and check says so.
func (l *Layout) replaceIf(name string, data []byte, check func() error) (err error) {
	w, err := l.newTemp(context.Background())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.discard()) }()
	if err := l.step("write"); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if _, err := w.f.Write(data); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := w.sync(name); err != nil {
		return err
	}
	if err := check(); err != nil {
		return err
	}
	return w.publish(name)
}
