package overlay

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// nameless makes one object of each kind, and takes the name from it.
var nameless = []struct {
	name string
	make func(x *fixture) (Ino, error)
}{
	{"new file", func(x *fixture) (Ino, error) {
		_, err := x.fs.Mknod(1, "n1", unix.S_IFREG|0o644, 0, Caller{})
		return removed(x, "n1", x.fs.Unlink, err)
	}},
	{"fifo", func(x *fixture) (Ino, error) {
		_, err := x.fs.Mknod(1, "n1", unix.S_IFIFO|0o644, 0, Caller{})
		return removed(x, "n1", x.fs.Unlink, err)
	}},
	{"symlink", func(x *fixture) (Ino, error) {
		_, err := x.fs.Symlink(1, "n1", "somewhere", Caller{})
		return removed(x, "n1", x.fs.Unlink, err)
	}},
	{"copied file", func(x *fixture) (Ino, error) { return removed(x, "top", x.fs.Unlink, chmod(x, "top", 0o600)) }},
	{"file that is copied when it has no name", func(x *fixture) (Ino, error) {
		return removed(x, "a/b/g", x.fs.Unlink, nil)
	}},
	{"last of several names", func(x *fixture) (Ino, error) {
		return removed(x, "a/f", x.fs.Unlink, onName(x, "e/hard", x.fs.Unlink))
	}},
	{"replaced file", func(x *fixture) (Ino, error) {
		err := errors.Join(chmod(x, "z", 0o600), mkfile(x, "n1"))
		return removed(x, "z", func(dir Ino, name string) error { return x.fs.Rename(1, "n1", dir, name, 0) }, err)
	}},
	{"replaced fifo that is copied when it has no name", func(x *fixture) (Ino, error) {
		return removed(x, "e/fifo", func(dir Ino, name string) error { return x.fs.Rename(1, "n1", dir, name, 0) }, mkfile(x, "n1"))
	}},
	{"replaced directory that is copied when it has no name", func(x *fixture) (Ino, error) {
		return removed(x, "a/s", func(dir Ino, name string) error { return x.fs.Rename(1, "n1", dir, name, 0) }, mkdir(x, "n1", Caller{}))
	}},
	{"replaced fifo", func(x *fixture) (Ino, error) {
		err := errors.Join(chmod(x, "e/fifo", 0o600), mkfile(x, "n1"))
		return removed(x, "e/fifo", func(dir Ino, name string) error { return x.fs.Rename(1, "n1", dir, name, 0) }, err)
	}},
	{"unnamed file", func(x *fixture) (Ino, error) {
		h, a, err := x.fs.Tmpfile(1, unix.O_RDWR, 0o644, Caller{})
		if err != nil {
			return 0, err
		}
		return a.Ino, h.Close()
	}},
	{"new directory", func(x *fixture) (Ino, error) { return removed(x, "n1", x.fs.Rmdir, mkdir(x, "n1", Caller{})) }},
	{"directory of whiteouts", func(x *fixture) (Ino, error) {
		return removed(x, "a/b/c", x.fs.Rmdir, onName(x, "a/b/c/h", x.fs.Unlink))
	}},
	{"directory that is copied when it has no name", func(x *fixture) (Ino, error) {
		return removed(x, "a/s", x.fs.Rmdir, nil)
	}},
}

func mkfile(x *fixture, p string) error {
	dir, name, err := x.split(p)
	if err == nil {
		_, err = x.fs.Mknod(dir, name, unix.S_IFREG|0o644, 0, Caller{})
	}
	return err
}

// removed takes a name away after what has err, and says what had it.
func removed(x *fixture, p string, remove func(Ino, string) error, err error) (Ino, error) {
	if err != nil {
		return 0, err
	}
	ino, err := x.ino(p)
	return ino, errors.Join(err, onName(x, p, remove))
}

// Each would take a descriptor, of which a process has as few as 4096.
func TestOfManyObjectsWithNoNameFewTakeADescriptor(t *testing.T) {
	for _, rootless := range []bool{false, true} {
		if !rootless && os.Geteuid() != 0 {
			continue
		}
		for _, c := range nameless {
			t.Run(fmt.Sprintf("%s, rootless %v", c.name, rootless), func(t *testing.T) {
				x := newFixtureWith(t, newMemLower(modelTree...), UpperOptions{Rootless: rootless})
				x.crowded = true
				x.remount()
				ino, err := c.make(x)
				must(t, err)
				want := x.listing()
				useNameless(t, x, ino)
				if x.fs.anchors.Load() != 0 || len(inWork(t, x)) != 1 {
					t.Errorf("%d descriptors, and in work/ %q", x.fs.anchors.Load(), inWork(t, x))
				}
				killed := x.fs
				x.mount()
				if got := x.listing(); got != want {
					t.Errorf("after a crash:\n%s", diffLines(want, got))
				}
				if left := inWork(t, x); left != nil {
					t.Errorf("after a crash %q is left in work/", left)
				}
				must(t, killed.Close())
			})
		}
	}
}

// useNameless sees that an object with no name is as one with a name but for the links.
func useNameless(t *testing.T, x *fixture, ino Ino) {
	t.Helper()
	mtime := Timespec{Sec: 10, Nsec: 1}
	a, err := x.fs.SetAttr(ino, SetAttr{Valid: SetMtime | SetUID, UID: 3, Mtime: mtime})
	must(t, err)
	if a.Nlink != 0 || a.Ino != ino || a.UID != 3 || a.Mtime != mtime {
		t.Errorf("%+v", a)
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h, err := x.fs.Open(ino, unix.O_RDWR)
		must(t, err)
		_, err = h.WriteAt([]byte("ZZ"), 0)
		must(t, err)
		must(t, h.Close())
		if got := x.read(ino); got[:2] != "ZZ" {
			t.Errorf("read %q", got)
		}
	case unix.S_IFLNK:
		if target, err := x.fs.Readlink(ino); err != nil || target != "somewhere" {
			t.Errorf("target %q, %v", target, err)
		}
	}
}

func TestWhatIsInWorkGoesWhenItIsForgottenOrLinked(t *testing.T) {
	for _, c := range nameless {
		x := newFixture(t, newMemLower(modelTree...))
		x.crowded = true
		x.remount()
		ino, err := c.make(x)
		must(t, err)
		useNameless(t, x, ino)
		if c.name == "unnamed file" {
			_, err := x.fs.Link(ino, 1, "linked")
			must(t, err)
			if a, err := x.fs.GetAttr(ino); err != nil || a.Nlink != 1 {
				t.Errorf("%s: %d links, %v", c.name, a.Nlink, err)
			}
		} else {
			x.fs.Forget(ino, 100)
		}
		if left := inWork(t, x); left != nil {
			t.Errorf("%s: %q is left in work/", c.name, left)
		}
	}
}

func TestAFileWhoseRemovalFailsKeepsItsName(t *testing.T) {
	for step, remove := range map[string]func(x *fixture) error{
		"unlink": func(x *fixture) error { return x.fs.Unlink(1, "n2") },
		"rename": func(x *fixture) error { return x.fs.Rename(1, "n1", 1, "n2", 0) },
	} {
		x := newFixture(t, newMemLower(modelTree...))
		x.crowded = true
		fail := ""
		x.opt.Fault = func(at string) error {
			if at != fail {
				return nil
			}
			fail = ""
			return errFault
		}
		x.remount()
		must(t, errors.Join(mkfile(x, "n1"), mkfile(x, "n2")))
		ino := x.mustIno("n2")
		want := x.listing()
		fail = step
		if err := remove(x); !errors.Is(err, errFault) {
			t.Fatal(err)
		}
		if got := x.listing(); got != want {
			t.Errorf("%s: %s", step, diffLines(want, got))
		}
		if n, _ := x.fs.table.get(ino); n.parked != "" {
			t.Errorf("%s: it is reached through work/", step)
		}
	}
}
