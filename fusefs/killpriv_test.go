package fusefs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// privilegeDrops are changes of a file that take its privileges, when made by one
// who may not keep them.
var privilegeDrops = []struct {
	name string
	do   func(path string) error
}{
	{"write", func(p string) error { return openAndWrite(p, os.O_WRONLY) }},
	{"truncate", func(p string) error { return os.Truncate(p, 1) }},
	{"open with O_TRUNC", func(p string) error { return openAndWrite(p, os.O_WRONLY|os.O_TRUNC) }},
	{"open with O_TRUNC and nothing written", func(p string) error {
		f, err := os.OpenFile(p, os.O_RDWR|os.O_TRUNC, 0)
		if err != nil {
			return err
		}
		return f.Close()
	}},
	{"append", func(p string) error { return openAndWrite(p, os.O_RDWR|os.O_APPEND) }},
}

func openAndWrite(path string, flags int) error {
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("x")
	return errors.Join(err, f.Close())
}

// testCapability is cap_net_raw=ep in the form of security.capability, revision 2.
var testCapability = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

func TestSuidAndSgidAreDroppedOnWrite(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		for i, c := range privilegeDrops {
			name := fmt.Sprintf("suid-%d", i)
			if i == 0 {
				name = "suid" // the lower's
			} else {
				mustWrite(t, m.path(name), "#!/bin/sh\n")
			}
			m.expectDrop(c.name, name, c.do)
		}
	})
}

// expectDrop gives a file privileges, lets a plain user change it, and looks at
// what is left, as shown and in the upper.
func (m *mounted) expectDrop(what, name string, change func(string) error) {
	t, p := m.t, m.path(name)
	t.Helper()
	if err := errors.Join(unix.Chmod(p, 0o6777), unix.Setxattr(p, "security.capability", testCapability, 0)); err != nil {
		t.Fatal(err)
	}
	if st := mustStat(t, p); st.Mode&0o7777 != 0o6777 {
		t.Fatalf("%s: mode %o to begin with", what, st.Mode)
	}
	asUser(t, plainUser, func() {
		if err := change(p); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	})
	if st := mustStat(t, p); st.Mode&0o7777 != 0o777 {
		t.Errorf("%s: mode %o is shown", what, st.Mode&0o7777)
	}
	if st := mustStat(t, filepath.Join(m.upper, name)); st.Mode&0o7777 != 0o777 {
		t.Errorf("%s: mode %o in the upper", what, st.Mode&0o7777)
	}
	if n, err := unix.Getxattr(p, "security.capability", nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("%s: the capability stays: %d bytes, %v", what, n, err)
	}
}

func TestCopiesAndAllocationsDropSuidAndSgid(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		m.expectDrop("copy_file_range", "suid", func(p string) error {
			src, err := os.Open(m.path("hello"))
			if err != nil {
				return err
			}
			defer src.Close()
			dst, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = unix.CopyFileRange(int(src.Fd()), nil, int(dst.Fd()), nil, 5, 0)
			return errors.Join(err, dst.Close())
		})
		mustWrite(t, m.path("alloc"), "x")
		m.expectDrop("fallocate", "alloc", func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			return errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, 8192), f.Close())
		})
	})
}

func TestRootsWriteKeepsSuidAndChownDropsIt(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		mustWrite(t, m.path("suid"), "x")
		if st := mustStat(t, m.path("suid")); st.Mode&0o7777 != 0o6777 {
			t.Errorf("mode %o after a write of root", st.Mode&0o7777)
		}
		if err := os.Chown(m.path("suid"), 1, 1); err != nil {
			t.Fatal(err)
		}
		if st := mustStat(t, m.path("suid")); st.Mode&0o7777 != 0o777 || st.Uid != 1 {
			t.Errorf("mode %o, owner %d after chown", st.Mode&0o7777, st.Uid)
		}
	})
}
