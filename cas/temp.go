package cas

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tempPrefix is what umoci's temporary directories begin with.
const tempPrefix = ".umoci-"

// tempSeq tells the temporary directories of one process apart.
var tempSeq atomic.Uint64

// tempDir is a Layout's directory for unfinished files. It has the name and the
// lock that umoci's has, so that its gc leaves it while it is in use.
type tempDir struct {
	l    *Layout
	name string   // immutable
	dir  *os.File // immutable; holds the flock
	seq  int      // files made so far; protected by Layout.mu
}

// tempFile is a file being written.
type tempFile struct {
	l    *Layout
	name string // relative to the layout; "" once it is published
	f    *os.File
}

// newTemp makes a temporary file in the layout.
func (l *Layout) newTemp(ctx context.Context) (*tempFile, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.temp == nil {
		if err := l.sweepTemps(); err != nil {
			return nil, err
		}
		t, err := l.makeTempDir()
		if err != nil {
			return nil, err
		}
		l.temp = t
	}
	if err := l.step("create"); err != nil {
		return nil, fmt.Errorf("create temporary file in %s: %w", l.path, err)
	}
	l.temp.seq++
	name := path.Join(l.temp.name, strconv.Itoa(l.temp.seq))
	f, err := l.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, fmt.Errorf("create temporary file in %s: %w", l.path, err)
	}
	return &tempFile{l: l, name: name, f: f}, nil
}

// ownTemp is the name of a temporary directory of this program's.
var ownTemp = regexp.MustCompile(`^` + regexp.QuoteMeta(tempPrefix) + `[0-9]+-[0-9]+-[0-9]+$`)

// sweepTemps removes what writers of this program left that were killed: temporary
// directories that nobody has locked. Stock umoci's are left to gc: it does not look
// for its own again between making and locking it.
func (l *Layout) sweepTemps() (err error) {
	entries, err := fs.ReadDir(l.root.FS(), ".")
	if err != nil {
		return fmt.Errorf("list layout: %w", err)
	}
	var stale []*os.File
	defer func() { err = errors.Join(err, closeAll(stale)) }()
	for _, e := range entries {
		if !e.IsDir() || !ownTemp.MatchString(e.Name()) {
			continue
		}
		dir, err := l.root.Open(e.Name())
		if err != nil {
			continue // somebody else's, or gone
		}
		if unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			err = dir.Close()
		} else {
			stale = append(stale, dir)
		}
		if err != nil {
			return fmt.Errorf("close temporary directory: %w", err)
		}
	}
	return l.removeTemps(stale)
}

// tempAttempts bounds how often a gc may take a new temporary directory away
// before it is locked. Each time is a race lost by microseconds.
const tempAttempts = 8

func (l *Layout) makeTempDir() (*tempDir, error) {
	for range tempAttempts {
		t, err := l.tryTempDir()
		if err != nil {
			return nil, fmt.Errorf("create temporary directory in %s: %w", l.path, err)
		}
		if t != nil {
			return t, nil
		}
	}
	return nil, fmt.Errorf("create temporary directory in %s: it is removed each time: %w", l.path, ErrBusy)
}

// tryTempDir makes and locks a temporary directory. It gives nil where a gc came
// between the two and took it for stale.
func (l *Layout) tryTempDir() (_ *tempDir, err error) {
	if err := l.step("mkdir"); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s%d-%d-%d", tempPrefix, os.Getpid(), time.Now().UnixNano(), tempSeq.Add(1))
	if err := l.root.Mkdir(name, 0o700); err != nil {
		return nil, err
	}
	dir, err := l.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, dir.Close()
		}
		return nil, errors.Join(fmt.Errorf("flock: %w", err), dir.Close(), l.root.Remove(name))
	}
	locked, err := dir.Stat()
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	if named, err := l.root.Lstat(name); err != nil || !os.SameFile(locked, named) {
		return nil, dir.Close()
	}
	l.chownLikeLayout(dir)
	return &tempDir{l: l, name: name, dir: dir}, nil
}

func (t *tempDir) remove() error {
	err := t.l.step("remove")
	if err == nil {
		err = t.l.root.RemoveAll(t.name)
	}
	return errors.Join(err, t.dir.Close())
}

// errPublished is a mistake of the caller.
var errPublished = errors.New("it has been published already")

// sync makes the file durable that is to have a name.
func (t *tempFile) sync(name string) error {
	if t.name == "" {
		return fmt.Errorf("publish %s: %w", name, errPublished)
	}
	t.l.chownLikeLayout(t.f)
	if err := t.l.step("fsync"); err != nil {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	if err := t.f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	return nil
}

// publish gives the file its name, durably. Preconditions: sync.
func (t *tempFile) publish(name string) error {
	if err := t.l.step("rename"); err != nil {
		return fmt.Errorf("publish %s: %w", name, err)
	}
	if err := t.l.move(t.name, name); err != nil {
		return fmt.Errorf("publish %s: %w", name, err)
	}
	t.name = ""
	return t.l.syncDir(path.Dir(name))
}

// chownLikeLayout gives what root writes to the layout's owner, who could not
// manage it otherwise. It is a courtesy: failing is no error.
func (l *Layout) chownLikeLayout(f *os.File) {
	if os.Geteuid() != 0 {
		return
	}
	info, err := l.root.Stat(".")
	if err != nil {
		return
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && (st.Uid != 0 || st.Gid != 0) {
		_ = f.Chown(int(st.Uid), int(st.Gid))
	}
}

// ensureDir makes a directory of the layout, durably, unless it is there.
func (l *Layout) ensureDir(name string) error {
	root, rest := l.at(name)
	if _, err := root.Stat(rest); err == nil {
		return nil
	}
	if err := l.step("mkdir"); err != nil {
		return fmt.Errorf("make directory %s: %w", name, err)
	}
	if err := root.MkdirAll(rest, 0o755); err != nil {
		return fmt.Errorf("make directory %s: %w", name, err)
	}
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		if err := l.syncDir(dir); err != nil {
			return err
		}
		if dir == "." {
			return nil
		}
	}
}

func (l *Layout) syncDir(name string) (err error) {
	if err := l.step("fsync"); err != nil {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	root, rest := l.at(name)
	dir, err := root.Open(rest)
	if err != nil {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	return syncOpen(dir)
}

// syncOpen makes a directory's entries durable, where its file system can.
func syncOpen(dir *os.File) error {
	if err := dir.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("sync %s: %w", dir.Name(), err)
	}
	return nil
}

// discard closes the file, and removes it unless it was published.
func (t *tempFile) discard() error {
	err := t.f.Close()
	if t.name == "" {
		return err
	}
	if fault := t.l.step("remove"); fault != nil {
		return errors.Join(err, fault)
	}
	return errors.Join(err, t.l.root.Remove(t.name))
}
