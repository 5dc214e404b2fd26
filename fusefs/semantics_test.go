package fusefs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// withUmask runs f on a thread with a umask of its own.
func withUmask(t *testing.T, mask int, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with f
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		unix.Umask(mask)
		f()
	}()
	<-done
}

// acl is a POSIX ACL in the form of system.posix_acl_*: owner, one user, group,
// mask, others.
func acl(owner, user, group, mask, other uint16, uid uint32) []byte {
	const undefined = ^uint32(0)
	out := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, owner, undefined}, {0x02, user, uid}, {0x04, group, undefined}, {0x10, mask, undefined}, {0x20, other, undefined}} {
		out = binary.LittleEndian.AppendUint16(out, e.tag)
		out = binary.LittleEndian.AppendUint16(out, e.perm)
		out = binary.LittleEndian.AppendUint32(out, e.id)
	}
	return out
}

func TestTheUmaskCountsUnlessThereIsADefaultACL(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		if err := os.Mkdir(m.path("acl"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setxattr(m.path("acl"), "system.posix_acl_default", acl(7, 6, 5, 7, 0, plainUser), 0); err != nil {
			t.Fatal(err)
		}
		withUmask(t, 0o077, func() {
			for name, want := range map[string]uint32{"dir/f": 0o600, "acl/f": 0o660} {
				fd, err := unix.Open(m.path(name), unix.O_CREAT|unix.O_WRONLY, 0o666)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				_ = unix.Close(fd)
				if st := mustStat(t, m.path(name)); st.Mode&0o7777 != want {
					t.Errorf("%s: mode %o, want %o", name, st.Mode&0o7777, want)
				}
			}
			for name, want := range map[string]uint32{"dir/d": 0o700, "acl/d": 0o770} {
				if err := unix.Mkdir(m.path(name), 0o777); err != nil {
					t.Error(err)
				}
				if st := mustStat(t, m.path(name)); st.Mode&0o7777 != want {
					t.Errorf("%s: mode %o, want %o", name, st.Mode&0o7777, want)
				}
			}
		})
		mustWrite(t, m.path("acl/f"), "for one user\n")
		asUser(t, plainUser, func() {
			if _, err := os.ReadFile(m.path("acl/f")); err != nil {
				t.Errorf("the ACL's user reads: %v", err)
			}
		})
		asUser(t, plainUser-1, func() {
			if _, err := os.ReadFile(m.path("acl/f")); !errors.Is(err, syscall.EACCES) {
				t.Errorf("another user reads: %v", err)
			}
		})
	})
}

func TestAnAccessACLShowsInTheMode(t *testing.T) {
	m := mount(t, rootOptions(true))
	mustStat(t, m.path("hello"))
	if err := unix.Setxattr(m.path("hello"), "system.posix_acl_access", acl(6, 6, 0, 6, 0, plainUser), 0); err != nil {
		t.Fatal(err)
	}
	if st := mustStat(t, m.path("hello")); st.Mode&0o7777 != 0o660 {
		t.Errorf("mode %o, want 660: the group's bits are the mask's", st.Mode&0o7777)
	}
	asUser(t, plainUser, func() {
		if f, err := os.OpenFile(m.path("hello"), os.O_WRONLY, 0); err != nil {
			t.Errorf("the ACL's user writes: %v", err)
		} else {
			_ = f.Close()
		}
	})
}

func TestADirectorysSetgidIsInherited(t *testing.T) {
	m := mount(t, rootOptions(true))
	if err := errors.Join(os.Mkdir(m.path("sg"), 0o755), os.Chown(m.path("sg"), 0, 1234), unix.Chmod(m.path("sg"), 0o2777)); err != nil {
		t.Fatal(err)
	}
	asUser(t, plainUser, func() {
		mustWrite(t, m.path("sg/f"), "")
		if err := os.Mkdir(m.path("sg/d"), 0o755); err != nil {
			t.Error(err)
		}
	})
	if st := mustStat(t, m.path("sg/f")); st.Gid != 1234 || st.Uid != plainUser {
		t.Errorf("file: owner %d:%d", st.Uid, st.Gid)
	}
	if st := mustStat(t, m.path("sg/d")); st.Gid != 1234 || st.Mode&unix.S_ISGID == 0 {
		t.Errorf("directory: group %d, mode %o", st.Gid, st.Mode)
	}
}

func TestRenamesKeepWhatTheKernelKnowsRight(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		f := mustOpen(t, m.path("dir/sub/deep"), os.O_RDONLY)
		ino := mustStat(t, m.path("dir/sub/deep")).Ino
		if err := os.Rename(m.path("dir"), m.path("moved")); err != nil {
			t.Fatal(err)
		}
		if st := mustStat(t, m.path("moved/sub/deep")); st.Ino != ino {
			t.Errorf("inode %d became %d", ino, st.Ino)
		}
		if got := readAt(t, f, 0, 100); got != "deep\n" {
			t.Errorf("a file open across the rename reads %q", got)
		}
		mustWrite(t, m.path("moved/sub/deep"), "written after the move\n")
		if got := readAt(t, f, 0, 100); got != "written after the move\n" {
			t.Errorf("it does not see a later write: %q", got)
		}
		exchange := func(a, b string, flags uint) error {
			return unix.Renameat2(unix.AT_FDCWD, m.path(a), unix.AT_FDCWD, m.path(b), flags)
		}
		if err := exchange("hello", "moved", unix.RENAME_EXCHANGE); err != nil {
			t.Fatal(err)
		}
		if got := mustRead(t, m.path("moved")); got != "hello, lower\n" {
			t.Errorf("moved is %q", got)
		}
		if got := mustRead(t, m.path("hello/a")); got != "a" {
			t.Errorf("hello/a is %q", got)
		}
		if err := exchange("big", "moved", unix.RENAME_NOREPLACE); !errors.Is(err, syscall.EEXIST) {
			t.Errorf("NOREPLACE over a file: %v", err)
		}
		if err := exchange("moved", "free", unix.RENAME_NOREPLACE); err != nil {
			t.Errorf("NOREPLACE to a free name: %v", err)
		}
	})
}

func TestHolesCopiesAndAllocations(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		f := mustOpen(t, m.path("sparse"), os.O_CREATE|os.O_RDWR)
		if err := f.Truncate(1 << 20); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("data"), 512<<10); err != nil {
			t.Fatal(err)
		}
		fd := int(f.Fd())
		if pos, err := unix.Seek(fd, 0, unix.SEEK_DATA); pos != 512<<10 || err != nil {
			t.Errorf("data at %d, %v", pos, err)
		}
		if _, err := unix.Seek(fd, 1<<20, unix.SEEK_DATA); !errors.Is(err, unix.ENXIO) {
			t.Errorf("data beyond the end: %v", err)
		}
		if got := readAt(t, f, 512<<10, 4); got != "data" {
			t.Errorf("%q", got)
		}
		if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 512<<10, 4096); err != nil {
			t.Fatal(err)
		}
		if got := readAt(t, f, 512<<10, 4); got != "\x00\x00\x00\x00" {
			t.Errorf("a punched hole reads %q", got)
		}
		if err := unix.Fallocate(fd, 0, 1<<20, 4096); err != nil {
			t.Fatal(err)
		}
		if st := mustStat(t, m.path("sparse")); st.Size != 1<<20+4096 {
			t.Errorf("size %d after fallocate", st.Size)
		}
		for _, from := range []string{"big", "rawbig", "new"} {
			if from == "new" {
				mustWrite(t, m.path("new"), string(pattern(bigSize)))
			}
			if out, err := exec.Command("cp", "--reflink=auto", m.path(from), m.path("copy")).CombinedOutput(); err != nil {
				t.Errorf("cp %s: %s", from, out)
			}
			if got := mustRead(t, m.path("copy")); got != string(pattern(bigSize)) {
				t.Errorf("the copy of %s differs", from)
			}
		}
	})
}

func TestHolesOfTheLowerAreSeenAndCopied(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		for _, when := range []string{"lower", "metacopy"} {
			st := mustStat(t, m.path("holed"))
			if st.Size != holedAt+holedData || st.Blocks != holedData/512 {
				t.Errorf("%s: %d bytes in %d blocks", when, st.Size, st.Blocks)
			}
			f := mustOpen(t, m.path("holed"), os.O_RDONLY)
			if pos, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA); pos != holedAt || err != nil {
				t.Errorf("%s: data at %d, %v", when, pos, err)
			}
			if pos, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE); pos != 0 || err != nil {
				t.Errorf("%s: a hole at %d, %v", when, pos, err)
			}
			reads := m.requests("READ", func() {
				if out, err := exec.Command("cp", "--sparse=auto", m.path("holed"), m.path("copy")).CombinedOutput(); err != nil {
					t.Errorf("cp: %s", out)
				}
			})
			if reads > 2 {
				t.Errorf("%s: a copy took %d reads", when, reads)
			}
			if st := mustStat(t, m.path("copy")); st.Blocks*512 > 2*holedData {
				t.Errorf("%s: the copy takes %d blocks", when, st.Blocks)
			}
			if mustRead(t, m.path("copy")) != mustRead(t, m.path("holed")) {
				t.Errorf("%s: the copy differs", when)
			}
			if err := os.Chmod(m.path("holed"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestTimesKeepNanosecondsAndTheYearsBefore1970(t *testing.T) {
	m := mount(t, rootOptions(true))
	for _, name := range []string{"hello", "dir", "link"} {
		want := []unix.Timespec{{Sec: -86400, Nsec: 123456789}, {Sec: 1 << 33, Nsec: 987654321}}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, m.path(name), want, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
		if st := mustStat(t, m.path(name)); st.Atim != want[0] || st.Mtim != want[1] {
			t.Errorf("%s: %v and %v", name, st.Atim, st.Mtim)
		}
	}
}

func TestNamesOfEveryKind(t *testing.T) {
	m := mount(t, rootOptions(true))
	list := []string{strings.Repeat("n", 255), "\xff\xfe not UTF-8", ".wh.whiteout", ".wh..wh..opq", "new\nline", " ", "..."}
	for _, name := range list {
		mustWrite(t, m.path("open.d/"+name), name)
	}
	got := mustList(t, m.path("open.d"))
	slices.Sort(list)
	slices.Sort(got)
	if !slices.Equal(got, list) {
		t.Errorf("listed: %q", got)
	}
	for _, name := range list {
		if mustRead(t, m.path("open.d/"+name)) != name {
			t.Errorf("%q reads wrong", name)
		}
	}
	if err := os.WriteFile(m.path(strings.Repeat("n", 256)), nil, 0o644); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Errorf("a name of 256 bytes: %v", err)
	}
}

func TestPipesAndSocketsConnect(t *testing.T) {
	m := mount(t, rootOptions(true))
	if err := unix.Mkfifo(m.path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() {
		data, _ := os.ReadFile(m.path("fifo"))
		got <- string(data)
	}()
	mustWrite(t, m.path("fifo"), "through the pipe")
	if s := <-got; s != "through the pipe" {
		t.Errorf("%q", s)
	}
	l, err := net.Listen("unix", m.path("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", m.path("socket"))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestExtendedAttributesOnTheMount(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		p := m.path("labelled")
		for name, value := range map[string]string{"user.three": "333", "trusted.x": "t", "user.overlay.opaque": "y", "user.empty": ""} {
			if err := unix.Setxattr(p, name, []byte(value), 0); err != nil {
				t.Errorf("set %s: %v", name, err)
			}
			buf := make([]byte, 100)
			if n, err := unix.Getxattr(p, name, buf); err != nil || string(buf[:n]) != value {
				t.Errorf("%s is %q, %v", name, buf[:max(n, 0)], err)
			}
		}
		if err := unix.Setxattr(p, "user.one", nil, unix.XATTR_CREATE); !errors.Is(err, unix.EEXIST) {
			t.Errorf("create what is there: %v", err)
		}
		if err := unix.Setxattr(p, "user.four", nil, unix.XATTR_REPLACE); !errors.Is(err, unix.ENODATA) {
			t.Errorf("replace what is not there: %v", err)
		}
		buf := make([]byte, 1000)
		n, err := unix.Listxattr(p, buf)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"user.one", "user.two", "user.three", "trusted.x", "user.overlay.opaque", "user.empty"} {
			if !bytes.Contains(buf[:n], []byte(want+"\x00")) {
				t.Errorf("%s is not in %q", want, buf[:n])
			}
		}
	})
}

func TestTheUpperHasWhatWasWritten(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		mustWrite(t, m.path("dir/new"), "new")
		if err := os.Remove(m.path("dir/a")); err != nil {
			t.Fatal(err)
		}
		if got := mustRead(t, filepath.Join(m.upper, "dir/new")); got != "new" {
			t.Errorf("%q", got)
		}
		if st := mustStat(t, filepath.Join(m.upper, "dir/a")); st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("no whiteout but mode %o", st.Mode)
		}
	})
}
