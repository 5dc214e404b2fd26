package overlay

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A creation does not ask the upper first where the lower has no such name: what is
// there must be met all the same.

func TestAWhiteoutOfNothingGivesWayToWhateverIsMade(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes devices by hand")
	}
	makers := map[string]func(x *fixture, name string) error{
		"file": func(x *fixture, name string) error {
			h, _, err := x.fs.Create(1, name, unix.O_RDWR, 0o644, Caller{})
			if err != nil {
				return err
			}
			return h.Close()
		},
		"file of another": func(x *fixture, name string) error {
			_, err := x.fs.Mknod(1, name, unix.S_IFREG|0o644, 0, Caller{UID: 9, GID: 9})
			return err
		},
		"directory": func(x *fixture, name string) error { return mkdir(x, name, Caller{}) },
		"directory of another": func(x *fixture, name string) error {
			return mkdir(x, name, Caller{UID: 9, GID: 9})
		},
		"symlink": func(x *fixture, name string) error {
			_, err := x.fs.Symlink(1, name, "target", Caller{})
			return err
		},
		"link": func(x *fixture, name string) error {
			_, err := x.fs.Link(x.mustIno("top"), 1, name)
			return err
		},
	}
	for what, make := range makers {
		t.Run(what, func(t *testing.T) {
			x := newFixture(t, newMemLower(modelTree...))
			must(t, unix.Mknod(filepath.Join(x.dir, "upper", "stray"), unix.S_IFCHR, 0))
			if _, err := x.ino("stray"); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("the whiteout shows: %v", err)
			}
			must(t, make(x, "stray"))
			for range 2 {
				x.mustIno("stray")
				x.remount()
			}
		})
	}
}

func TestMakingWhatIsInTheUpperAlreadyIsRefused(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	must(t, mkdir(x, "there", Caller{}))
	_, _, err := x.fs.Create(1, "there", unix.O_RDWR, 0o644, Caller{})
	_, linkErr := x.fs.Link(x.mustIno("top"), 1, "there")
	for _, err := range []error{err, linkErr, mkdir(x, "there", Caller{}), mkdir(x, "there", Caller{UID: 9, GID: 9})} {
		if !errors.Is(err, fs.ErrExist) {
			t.Errorf("got %v", err)
		}
	}
	a, err := x.fs.Lookup(1, "there")
	must(t, err)
	if a.Mode&unix.S_IFMT != unix.S_IFDIR {
		t.Errorf("mode %o", a.Mode)
	}
}

func TestACapabilityIsFoundAfterItWasKnownToBeAbsent(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	h, a, err := x.fs.Create(1, "new", unix.O_RDWR, 0o644, Caller{})
	must(t, err)
	defer h.Close()
	capability := append([]byte{1, 0, 0, 2}, make([]byte, 16)...) // VFS_CAP_REVISION_2, effective
	for _, ino := range []Ino{a.Ino, x.mustIno("top")} {
		must(t, x.fs.SetXattr(ino, "user.any", []byte("1"), 0, false)) // in the upper
		buf := make([]byte, 64)
		for range 2 {
			if _, err := x.fs.GetXattr(ino, xattrCapability, buf); !errors.Is(err, ErrNoXattr) {
				t.Fatalf("before: %v", err)
			}
			must(t, x.fs.SetXattr(ino, xattrCapability, capability, 0, false))
			if n, err := x.fs.GetXattr(ino, xattrCapability, buf); err != nil || n != len(capability) {
				t.Fatalf("%d bytes, %v", n, err)
			}
			must(t, x.fs.RemoveXattr(ino, xattrCapability))
		}
	}
}
