package notify

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// resolver finds what a caller's path leads to: it gives its thread the caller's root
// and working directory, so that the kernel itself walks the path, through the caller's
// mounts and never out of its root. The descriptors it gives are of kind O_PATH: nothing
// is opened.
type resolver struct {
	home   int   // O_PATH descriptor of the thread's own root
	astray error // why the thread could not return there: it resolves nothing any more
}

// errAstray: a thread has a caller's root for good. What it would look for in /proc, it
// would find in a tree that the caller has made.
var errAstray = errors.New("a thread cannot return to its own root directory")

// newResolver gives the calling thread, to which its goroutine is locked for ever, a
// root and working directory apart.
func newResolver() (*resolver, error) {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("get a root directory apart: %w", err)
	}
	home, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the root directory: %w", err)
	}
	return &resolver{home: home}, nil
}

func (r *resolver) close() { _ = unix.Close(r.home) }

// open opens a path as seen from root and base, O_PATH descriptors, with flags of
// openat(2) beside O_PATH.
func (r *resolver) open(root, base int, path string, flags int) (fd int, err error) {
	if r.astray != nil {
		return -1, r.astray
	}
	if err = enter(root, base); err == nil { // base may be no directory: its caller chose it
		fd, err = unix.Open(path, unix.O_PATH|unix.O_CLOEXEC|flags, 0)
	}
	if herr := enter(r.home, r.home); herr != nil {
		if err == nil {
			_ = unix.Close(fd)
		}
		r.astray = fmt.Errorf("%w: %w", errAstray, herr)
		return -1, r.astray
	}
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// enter changes the thread's root and working directory; where it fails, either may have
// changed.
func enter(root, base int) error {
	if err := unix.Fchdir(root); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if base == root {
		return nil
	}
	return unix.Fchdir(base)
}

// object is what a call is about: a descriptor of it, or why there is none.
type object struct {
	fd   int
	err  error
	st   unix.Stat_t
	name string // of parent: the last name of the path
}

func (o *object) close() {
	if o.fd >= 0 {
		_ = unix.Close(o.fd)
	}
}

// opened describes what a descriptor is of.
func opened(fd int, err error) object {
	o := object{fd: fd, err: err}
	if o.err == nil {
		o.err = unix.Fstat(fd, &o.st)
	}
	return o
}

// proc opens a link in /proc of the caller.
func (c *call) proc(name string) (int, error) {
	return unix.Open("/proc/"+strconv.Itoa(c.pid())+"/"+name, unix.O_PATH|unix.O_CLOEXEC, 0)
}

// fd is the object of an open descriptor, argument i.
func (c *call) fd(i int) object { return opened(c.openFD(c.int(i))) }

func (c *call) openFD(fd int) (int, error) {
	if fd < 0 {
		return -1, unix.EBADF
	}
	got, err := c.proc("fd/" + strconv.Itoa(fd))
	if os.IsNotExist(err) {
		err = unix.EBADF
	}
	return got, err
}

// path is the object of a path, argument i.
func (c *call) path(i int, follow bool) object {
	flags := 0
	if !follow {
		flags = unix.AT_SYMLINK_NOFOLLOW
	}
	return c.atPath(unix.AT_FDCWD, i, flags)
}

// at is the object of a directory descriptor (argument dir), a path (argument i) and
// AT_ flags.
func (c *call) at(dir, i, flags int) object { return c.atPath(c.int(dir), i, flags) }

func (c *call) atPath(dirfd, i, flags int) object {
	path, err := "", error(nil)
	if c.ptr(i) != 0 || flags&unix.AT_EMPTY_PATH == 0 { // with the flag, NULL is "" (Linux 6.11)
		path, err = c.readString(c.ptr(i), unix.PathMax, unix.ENAMETOOLONG)
	}
	switch {
	case err != nil:
		return object{fd: -1, err: err}
	case flags&^(unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH) != 0:
		return object{fd: -1, err: unix.EINVAL}
	case path == "" && flags&unix.AT_EMPTY_PATH == 0:
		return object{fd: -1, err: unix.ENOENT}
	case path == "" && dirfd == unix.AT_FDCWD:
		return opened(c.proc("cwd"))
	case path == "":
		return opened(c.openFD(dirfd))
	}
	open := 0
	if flags&unix.AT_SYMLINK_NOFOLLOW != 0 {
		open = unix.O_NOFOLLOW
	}
	return opened(c.resolve(dirfd, path, open))
}

// parent is the directory that a path (argument i) is in; its name is the last of the
// path.
func (c *call) parent(dirfd, i int) object {
	path, err := c.readString(c.ptr(i), unix.PathMax, unix.ENAMETOOLONG)
	if err == nil && path == "" {
		err = unix.ENOENT
	}
	if err != nil {
		return object{fd: -1, err: err}
	}
	dir, name := "", strings.TrimRight(path, "/")
	if cut := strings.LastIndexByte(name, '/'); cut >= 0 {
		dir, name = name[:cut+1], name[cut+1:]
	}
	switch {
	case name == "" || name == "." || name == "..":
		return object{fd: -1, err: unix.EEXIST}
	case dir == "":
		dir = "."
	}
	o := opened(c.resolve(dirfd, dir, unix.O_DIRECTORY))
	o.name = name
	return o
}

// resolve opens a path of the caller.
func (c *call) resolve(dirfd int, path string, flags int) (int, error) {
	root, err := c.proc("root")
	if err != nil {
		return -1, err
	}
	defer unix.Close(root)
	base := root
	if !strings.HasPrefix(path, "/") {
		if dirfd == unix.AT_FDCWD {
			base, err = c.proc("cwd")
		} else {
			base, err = c.openFD(dirfd)
		}
		if err != nil {
			return -1, err
		}
		defer unix.Close(base)
	}
	return c.paths.open(root, base, path, flags)
}

// ours reports whether an object is of the tree; if not, the kernel answers: it knows
// what is wrong with the path, or whether its own file systems allow the call.
func (c *call) ours(o *object) bool {
	return o.err == nil && uint64(o.st.Dev) == c.s.opt.Device && c.waits()
}
