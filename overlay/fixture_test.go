package overlay

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// fixture is a file system over a directory of the test's own.
type fixture struct {
	t     *testing.T
	lower Lower
	dir   string
	fs    *FS
	opt   UpperOptions
	fsOpt Options

	crowded bool // no node gets a descriptor where there is another way
}

func newFixture(t *testing.T, lower Lower) *fixture {
	t.Helper()
	return newFixtureWith(t, lower, UpperOptions{Rootless: os.Geteuid() != 0})
}

func newFixtureWith(t *testing.T, lower Lower, opt UpperOptions) *fixture {
	t.Helper()
	x := &fixture{t: t, lower: lower, dir: t.TempDir(), opt: opt}
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(x.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	x.mount()
	t.Cleanup(func() {
		if x.fs != nil {
			x.unmount()
		}
	})
	return x
}

// open opens the upper and the union, and reports what they say.
func (x *fixture) open() (*FS, error) {
	upper, err := os.Open(filepath.Join(x.dir, "upper"))
	if err != nil {
		return nil, err
	}
	defer upper.Close()
	work, err := os.Open(filepath.Join(x.dir, "work"))
	if err != nil {
		return nil, err
	}
	defer work.Close()
	opt := x.opt
	opt.Upper, opt.Work = upper, work
	u, err := OpenUpper(opt)
	if err != nil {
		return nil, err
	}
	return New(x.lower, u, x.fsOpt)
}

func (x *fixture) mount() {
	x.t.Helper()
	var err error
	if x.fs, err = x.open(); err != nil {
		x.t.Fatal(err)
	}
	if x.crowded {
		x.fs.maxAnchors = 0
	}
}

func (x *fixture) unmount() {
	x.t.Helper()
	if err := x.fs.Close(); err != nil {
		x.t.Error(err)
	}
	x.fs = nil
}

func (x *fixture) remount() {
	x.t.Helper()
	x.unmount()
	x.mount()
}

// ino walks a path with references, as the kernel does.
func (x *fixture) ino(p string) (Ino, error) {
	ino := Ino(1)
	if p == "." {
		return ino, nil
	}
	for _, name := range strings.Split(p, "/") {
		a, err := x.fs.Lookup(ino, name)
		if err != nil {
			return 0, err
		}
		ino = a.Ino
	}
	return ino, nil
}

func (x *fixture) mustIno(p string) Ino {
	x.t.Helper()
	ino, err := x.ino(p)
	if err != nil {
		x.t.Fatalf("lookup %s: %v", p, err)
	}
	return ino
}

func (x *fixture) split(p string) (Ino, string, error) {
	dir, name := filepath.Split(p)
	ino, err := x.ino(filepath.Clean(dir))
	return ino, name, err
}

// errnoOf is what the kernel would be told.
func errnoOf(err error) syscall.Errno {
	var e syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e
	case errors.Is(err, os.ErrNotExist):
		return unix.ENOENT
	case errors.Is(err, os.ErrExist):
		return unix.EEXIST
	case errors.Is(err, os.ErrPermission):
		return unix.EPERM
	case errors.Is(err, ErrNotDir):
		return unix.ENOTDIR
	case errors.Is(err, ErrIsDir):
		return unix.EISDIR
	case errors.Is(err, ErrNotEmpty):
		return unix.ENOTEMPTY
	case errors.Is(err, ErrInvalid):
		return unix.EINVAL
	case errors.Is(err, ErrStale):
		return unix.ESTALE
	}
	return unix.EIO
}

// listing describes a whole tree, a line an object, with numbers of inodes
// replaced by the first path that has them.
func (x *fixture) listing() string {
	x.t.Helper()
	var lines []string
	first := map[Ino]string{}
	var walk func(ino Ino, p string)
	walk = func(ino Ino, p string) {
		a, err := x.fs.GetAttr(ino)
		if err != nil {
			x.t.Fatalf("getattr %s: %v", p, err)
		}
		lines = append(lines, x.describe(p, a, first))
		if a.Mode&unix.S_IFMT != unix.S_IFDIR {
			return
		}
		d, err := x.fs.OpenDir(ino)
		if err != nil {
			x.t.Fatalf("opendir %s: %v", p, err)
		}
		var last uint64
		children := map[string]Ino{}
		for i := 2; ; i++ {
			e, ok, err := d.Entry(i)
			if err != nil {
				x.t.Fatalf("readdir %s: %v", p, err)
			}
			if !ok {
				break
			}
			child, err := x.fs.Lookup(ino, e.Name)
			if err != nil {
				x.t.Fatalf("lookup %s/%s: %v", p, e.Name, err)
			}
			if child.Ino != e.Ino || child.Mode&unix.S_IFMT != e.Mode {
				x.t.Fatalf("%s/%s: readdir says %d %o, lookup %d %o", p, e.Name, e.Ino, e.Mode, child.Ino, child.Mode)
			}
			if e.Cookie <= last || d.After(e.Cookie) != i+1 || d.After(last) > i {
				x.t.Fatalf("%s/%s: entry %d has cookie %d, behind %d", p, e.Name, i, e.Cookie, last)
			}
			last = e.Cookie
			children[e.Name] = child.Ino
		}
		for _, name := range slices.Sorted(maps.Keys(children)) {
			walk(children[name], filepath.Join(p, name))
			x.fs.Forget(children[name], 1)
		}
	}
	walk(1, ".")
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func (x *fixture) describe(p string, a Attr, first map[Ino]string) string {
	s := fmt.Sprintf("%s %o %d:%d n%d", p, a.Mode, a.UID, a.GID, a.Nlink)
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		s += fmt.Sprintf(" %q", x.read(a.Ino))
	case unix.S_IFLNK:
		target, err := x.fs.Readlink(a.Ino)
		if err != nil {
			x.t.Fatalf("readlink %s: %v", p, err)
		}
		s += " -> " + target
	case unix.S_IFCHR, unix.S_IFBLK:
		s += fmt.Sprintf(" dev %d", a.Rdev)
	}
	s += x.xattrs(p, a.Ino)
	if a.Mode&unix.S_IFMT != unix.S_IFDIR && a.Nlink > 1 {
		if have, ok := first[a.Ino]; ok {
			s += " = " + have
		} else {
			first[a.Ino] = p
		}
	}
	return s
}

// xattrs describes the extended attributes, sorted.
func (x *fixture) xattrs(p string, ino Ino) string {
	x.t.Helper()
	list := make([]byte, xattrListMax)
	n, err := x.fs.ListXattr(ino, list, nil)
	if err != nil {
		x.t.Fatalf("listxattr %s: %v", p, err)
	}
	return describeXattrs(list[:n], func(name string) ([]byte, error) {
		value := make([]byte, 1024)
		n, err := x.fs.GetXattr(ino, name, value)
		if err != nil {
			x.t.Fatalf("getxattr %s of %s: %v", name, p, err)
		}
		return value[:n], nil
	})
}

// describeXattrs describes the attributes of a NUL-separated list but the union's own.
func describeXattrs(list []byte, get func(name string) ([]byte, error)) string {
	names := splitNames(list)
	slices.Sort(names)
	s := ""
	for _, name := range names {
		if strings.HasPrefix(name, ownPrefix) || strings.HasPrefix(name, ownTrustedPrefix) {
			continue
		}
		value, err := get(name)
		s += fmt.Sprintf(" %s=%q", name, value)
		if err != nil {
			s += " " + err.Error()
		}
	}
	return s
}

func (x *fixture) read(ino Ino) string {
	x.t.Helper()
	h, err := x.fs.Open(ino, unix.O_RDONLY)
	if err != nil {
		x.t.Fatalf("open: %v", err)
	}
	defer h.Close()
	data, err := io.ReadAll(io.NewSectionReader(h, 0, 1<<30))
	if err != nil {
		x.t.Fatalf("read: %v", err)
	}
	return string(data)
}
