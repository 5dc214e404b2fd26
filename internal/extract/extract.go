package extract

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// Options of Tree.
type Options struct {
	UIDs, GIDs []IDRange // owners on the disk; empty: those of the image
	// Rootless leaves all files to the caller, notes their owners in RootlessXattr,
	// and makes empty files of devices.
	Rootless bool
	// Record asks for Result.Objects, and so for the digests of all content.
	Record  bool
	Workers int // goroutines that write; 0: one a processor, up to maxWorkers
	Log     *slog.Logger

	// fault, where set, is asked before each thing that is made or finished; its
	// error is returned in place of making it. For tests.
	fault func() error
}

const maxWorkers = 16

// DefaultWorkers is how many goroutines write where nothing else is asked for.
func DefaultWorkers() int { return min(runtime.GOMAXPROCS(0), maxWorkers) }

// Result is what was made.
type Result struct {
	Entries int // names, the root's among them
	// Objects are the inodes as they lie on the disk, by number less one.
	Objects []Object
}

// Object is an inode as lstat(2) sees it.
type Object struct {
	Mode   uint32
	UID    uint32
	GID    uint32
	Nlink  uint32
	Size   int64 // bytes
	Mtime  layer.Timespec
	Sum    [32]byte          // SHA-256 of a regular file's content
	Xattrs map[string]string // of a regular file or directory
}

// Tree extracts an image's tree into dest, which is made where it is missing.
// What is in the way of an entry is replaced, but a directory is kept where the
// image has one too. Errors: ErrUnmapped, before anything is made; ErrName and those
// of package layer for a damaged image; *os.PathError. When it fails, what it made
// is gone.
func Tree(ctx context.Context, im *layer.Image, dest string, opt Options) (_ *Result, err error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Workers <= 0 {
		opt.Workers = DefaultWorkers()
	}
	x := &extraction{im: im, opt: opt, root: -1, euid: uint32(os.Geteuid()), egid: uint32(os.Getegid())}
	x.userNS = inUserNamespace()
	if err := x.plan(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, x.close()) }()
	defer func() {
		if err != nil {
			err = errors.Join(err, x.undo(dest))
		}
	}()
	if err := x.makeRoot(dest); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{x.makeDirs, x.makeNodes, x.makeLinks, x.finishDirs} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	x.tellLosses()
	return &Result{Entries: x.entries, Objects: x.objects}, nil
}

// extraction is one Tree under way.
type extraction struct {
	im         *layer.Image
	opt        Options
	euid, egid uint32
	userNS     bool // root here is not the host's

	// Of plan.
	dirs    []layer.Ino // but for the root, each after the one it is in
	linked  []layer.Ino // with several names
	batches []batch
	entries int
	objects []Object // see Result; each is written by one goroutine

	root  int // descriptor of the destination; -1: not open
	fresh bool
	// old are the directories that were there, with what they were. Written by
	// makeRoot and makeDirs, before there are other goroutines.
	old map[layer.Ino]unix.Stat_t

	mu     sync.Mutex
	made   []madeEntry // protected by mu: what undo removes
	losses losses      // protected by mu
}

// madeEntry is something new in a directory that was there before.
type madeEntry struct {
	dir  layer.Ino
	name string
}

// losses count what could not be made as it is in the image.
type losses struct {
	devices int
	xattrs  map[string]int // by name
	example string         // a path that lost an attribute
}

// makeRoot makes and opens the destination.
func (x *extraction) makeRoot(dest string) error {
	x.old = map[layer.Ino]unix.Stat_t{}
	err := unix.Mkdir(dest, 0o700)
	x.fresh = err == nil
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mkdir", Path: dest, Err: err}
	}
	// The destination itself is the caller's word: a symlink there is followed,
	// unless this call made what must be there.
	flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	if x.fresh {
		flags |= unix.O_NOFOLLOW
	}
	if x.root, err = unix.Open(dest, flags, 0); err != nil {
		x.root = -1
		return &os.PathError{Op: "open", Path: dest, Err: err}
	}
	if x.fresh {
		// What it inherited, its content would inherit: a group, a default ACL.
		return errors.Join(x.takeOver(x.root), clearXattrs(x.root, dest))
	}
	var st unix.Stat_t
	if err := unix.Fstat(x.root, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dest, Err: err}
	}
	x.old[layer.RootIno] = st
	return x.takeOver(x.root)
}

// takeOver makes a directory the caller's alone until finishDirs.
func (x *extraction) takeOver(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Uid != x.euid || st.Gid != x.egid {
		if err := unix.Fchown(fd, int(x.euid), int(x.egid)); err != nil {
			return os.NewSyscallError("fchown", err)
		}
	}
	return os.NewSyscallError("fchmod", unix.Fchmod(fd, 0o700))
}

func (x *extraction) close() error {
	if x.root < 0 {
		return nil
	}
	err := unix.Close(x.root)
	x.root = -1
	return err
}

// undo takes away what was made.
func (x *extraction) undo(dest string) error {
	if x.root < 0 {
		return nil
	}
	if x.fresh {
		if err := removeContent(x.root); err != nil {
			return fmt.Errorf("take away what was extracted: %w", err)
		}
		return os.Remove(dest)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	dirs := newDirCache(x.im.Tree, x.root, walkerDirs, 1)
	var errs []error
	for _, m := range x.made {
		fd, err := dirs.get(m.dir)
		if err == nil {
			err = removeAt(fd, m.name)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("take away what was extracted: %w", err))
		}
	}
	for ino, st := range x.old { // the mode last: it may close a directory
		fd, err := dirs.get(ino)
		if err == nil {
			err = errors.Join(unix.Fchown(fd, int(st.Uid), int(st.Gid)), unix.Fchmod(fd, st.Mode&0o7777))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("put a directory's attributes back: %w", err))
		}
	}
	return errors.Join(append(errs, dirs.close())...)
}

// step asks whether the next thing is to fail.
func (x *extraction) step() error {
	if x.opt.fault == nil {
		return nil
	}
	return x.opt.fault()
}

// noteMade remembers what undo has to remove: what lies in a new directory goes
// with that.
func (x *extraction) noteMade(dir layer.Ino, name string) {
	if x.fresh {
		return
	}
	if _, old := x.old[dir]; !old {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.made = append(x.made, madeEntry{dir, name})
}

// fail names an inode in an error.
func (x *extraction) fail(ino layer.Ino, err error) error {
	if err == nil {
		return nil
	}
	path, perr := x.im.PathOf(ino)
	if perr != nil {
		return fmt.Errorf("extract: %w", err)
	}
	return fmt.Errorf("extract %q: %w", "/"+path, err)
}

// makeDirs makes the directories, from the top.
func (x *extraction) makeDirs(ctx context.Context) (err error) {
	dirs := newDirCache(x.im.Tree, x.root, walkerDirs, 1)
	defer func() { err = errors.Join(err, dirs.close()) }()
	for _, ino := range x.dirs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := x.makeDir(dirs, ino); err != nil {
			return x.fail(ino, err)
		}
	}
	return nil
}

func (x *extraction) makeDir(dirs *dirCache, ino layer.Ino) error {
	parent, name, err := firstName(x.im.Tree, ino)
	if err != nil {
		return err
	}
	dir, err := dirs.get(parent)
	if err != nil {
		return err
	}
	if err := x.step(); err != nil {
		return err
	}
	err = unix.Mkdirat(dir, name, 0o700)
	if err != nil && errors.Is(err, unix.EEXIST) && x.mayReplace(parent) {
		var kept bool
		if kept, err = x.keepDir(dir, ino, name); kept {
			return err
		}
		if err == nil {
			err = unix.Mkdirat(dir, name, 0o700)
		}
	}
	if err != nil {
		return &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	x.noteMade(parent, name)
	if x.fresh {
		return nil
	}
	fd, err := dirs.get(ino)
	if err != nil {
		return err
	}
	return errors.Join(x.takeOver(fd), clearXattrs(fd, name))
}

// mayReplace reports whether something can have been in a directory before.
func (x *extraction) mayReplace(dir layer.Ino) bool {
	_, old := x.old[dir]
	return old
}

// keepDir takes a directory over that is there already; anything else in its place
// is removed.
func (x *extraction) keepDir(dir int, ino layer.Ino, name string) (kept bool, err error) {
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return false, removeAt(dir, name)
	}
	if err != nil {
		return true, err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return true, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	x.old[ino] = st
	return true, x.takeOver(fd)
}

// makeLinks makes the other names of inodes with several.
func (x *extraction) makeLinks(ctx context.Context) (err error) {
	from := newDirCache(x.im.Tree, x.root, workerDirs, 1)
	to := newDirCache(x.im.Tree, x.root, walkerDirs, 1)
	defer func() { err = errors.Join(err, from.close(), to.close()) }()
	for _, ino := range x.linked {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := x.makeNames(from, to, ino); err != nil {
			return x.fail(ino, err)
		}
	}
	return nil
}

func (x *extraction) makeNames(from, to *dirCache, ino layer.Ino) error {
	source, first := -1, ""
	for parent, name := range x.im.Names(ino) {
		if err := checkName(name); err != nil {
			return err
		}
		if source < 0 {
			var err error
			if source, err = from.get(parent); err != nil {
				return err
			}
			first = name
			continue
		}
		dir, err := to.get(parent)
		if err != nil {
			return err
		}
		if err := x.step(); err != nil {
			return err
		}
		err = unix.Linkat(source, first, dir, name, 0)
		if errors.Is(err, unix.EEXIST) && x.mayReplace(parent) {
			if err = removeAt(dir, name); err == nil {
				err = unix.Linkat(source, first, dir, name, 0)
			}
		}
		if err != nil {
			return &os.LinkError{Op: "link", Old: first, New: name, Err: err}
		}
		x.noteMade(parent, name)
	}
	return nil
}

// finishDirs gives the directories their attributes, each after all that is in it.
func (x *extraction) finishDirs(ctx context.Context) (err error) {
	dirs := newDirCache(x.im.Tree, x.root, walkerDirs, 1)
	defer func() { err = errors.Join(err, dirs.close()) }()
	w := &writer{x: x}
	for i := len(x.dirs) - 1; i >= -1; i-- {
		if err := ctx.Err(); err != nil {
			return err
		}
		ino := layer.RootIno
		if i >= 0 {
			ino = x.dirs[i]
		}
		fd, err := dirs.get(ino)
		if err == nil {
			err = w.finish(ino, fd, !x.fresh)
		}
		if err != nil {
			return x.fail(ino, err)
		}
	}
	return nil
}
