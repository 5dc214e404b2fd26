package fusefs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func mustOpen(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func readAt(t *testing.T, f *os.File, off int64, n int) string {
	t.Helper()
	buf := make([]byte, n)
	got, err := f.ReadAt(buf, off)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return string(buf[:got])
}

func TestAFileOpenedReadOnlyBeforeACopyUpSeesLaterWrites(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		r := mustOpen(t, m.path("hello"), os.O_RDONLY)
		if got := readAt(t, r, 0, 5); got != "hello" {
			t.Fatalf("%q", got)
		}
		w := mustOpen(t, m.path("hello"), os.O_RDWR)
		if _, err := w.WriteAt([]byte("HELLO, upper and longer\n"), 0); err != nil {
			t.Fatal(err)
		}
		if got := readAt(t, r, 0, 100); got != "HELLO, upper and longer\n" {
			t.Errorf("the reader sees %q", got)
		}
	})
}

func TestCachedAndPassthroughOpensOfOneInodeAtOnce(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		lower := mustOpen(t, m.path("hello"), os.O_RDONLY) // cached: not copied up
		for i := range 3 {
			w := mustOpen(t, m.path("hello"), os.O_RDWR)
			if _, err := w.WriteAt([]byte{byte('0' + i)}, 0); err != nil {
				t.Fatal(err)
			}
			r := mustOpen(t, m.path("hello"), os.O_RDONLY)
			for _, f := range []*os.File{lower, r, w} {
				if got := readAt(t, f, 0, 1); got != string(rune('0'+i)) {
					t.Errorf("reads %q", got)
				}
			}
			if err := errors.Join(w.Close(), r.Close()); err != nil {
				t.Fatal(err)
			}
		}
		if err := lower.Close(); err != nil {
			t.Fatal(err)
		}
		// All closed: passthrough from here, where there is one.
		w := mustOpen(t, m.path("hello"), os.O_RDWR)
		if _, err := w.WriteAt([]byte("P"), 0); err != nil {
			t.Fatal(err)
		}
		if got := mustRead(t, m.path("hello")); got[0] != 'P' {
			t.Errorf("reads %q", got)
		}
	})
}

func TestSizeAndTimesAreFreshAfterWrites(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		f := mustOpen(t, m.path("new"), os.O_CREATE|os.O_WRONLY)
		before := mustStat(t, m.path("new"))
		time.Sleep(20 * time.Millisecond)
		if _, err := f.WriteString("12345"); err != nil {
			t.Fatal(err)
		}
		after := mustStat(t, m.path("new"))
		if after.Size != 5 || after.Mtim == before.Mtim || after.Ctim == before.Ctim {
			t.Errorf("size %d, mtime %v then %v", after.Size, before.Mtim, after.Mtim)
		}
		onDisk := mustStat(t, filepath.Join(m.upper, "new"))
		if onDisk.Mtim != after.Mtim || onDisk.Blocks != after.Blocks {
			t.Errorf("the upper has mtime %v and %d blocks, shown are %v and %d", onDisk.Mtim, onDisk.Blocks, after.Mtim, after.Blocks)
		}
	})
}

func TestAppendsOfTwoWritersDoNotOverlap(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		const each = 300
		var wg sync.WaitGroup
		for w := range 2 {
			f := mustOpen(t, m.path("hello"), os.O_WRONLY|os.O_APPEND)
			wg.Go(func() {
				for i := range each {
					if _, err := fmt.Fprintf(f, "writer %d line %04d\n", w, i); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		lines := strings.Split(strings.TrimSuffix(mustRead(t, m.path("hello")), "\n"), "\n")
		if len(lines) != 2*each+1 || lines[0] != "hello, lower" {
			t.Errorf("%d lines, the first %q", len(lines), lines[0])
		}
		for _, l := range lines[1:] {
			if len(l) != len("writer 0 line 0000") {
				t.Fatalf("torn line %q", l)
			}
		}
	})
}

func TestOpenUnlinkedFilesStayReadableAndWritable(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		mustWrite(t, m.path("new"), "hello, upper\n")
		for _, name := range []string{"hello", "new"} {
			r := mustOpen(t, m.path(name), os.O_RDONLY)
			w := mustOpen(t, m.path(name), os.O_RDWR)
			if err := os.Remove(m.path(name)); err != nil {
				t.Fatal(err)
			}
			mustWrite(t, m.path(name), "another file of that name\n")
			if _, err := w.WriteAt([]byte("HELLO"), 0); err != nil {
				t.Fatal(err)
			}
			if got := readAt(t, r, 0, 6); got != "HELLO," {
				t.Errorf("%s: reads %q", name, got)
			}
			var st unix.Stat_t
			if err := unix.Fstat(int(r.Fd()), &st); err != nil || st.Nlink != 0 || st.Size != 13 {
				t.Errorf("%s: %d links, size %d, %v", name, st.Nlink, st.Size, err)
			}
			if err := w.Truncate(3); err != nil {
				t.Errorf("%s: truncate: %v", name, err)
			}
			if err := unix.Fchmod(int(w.Fd()), 0o600); err != nil {
				t.Errorf("%s: chmod: %v", name, err)
			}
			if got := readAt(t, r, 0, 100); got != "HEL" {
				t.Errorf("%s: reads %q after truncate", name, got)
			}
		}
	})
}

func TestListingWhileRemovingReachesEveryName(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		mustList(t, m.path("many")) // the kernel has it cached
		d := mustOpen(t, m.path("many"), os.O_RDONLY)
		seen := 0
		for {
			list, err := d.Readdirnames(64)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range list {
				seen++
				if err := os.Remove(m.path("many/" + name)); err != nil {
					t.Error(err)
				}
			}
		}
		if seen != manyFiles {
			t.Errorf("%d names were listed, want %d", seen, manyFiles)
		}
		if err := os.Remove(m.path("many")); err != nil {
			t.Error(err)
		}
	})
}

func TestRemovingATreeWhileOthersListIt(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						_, _ = os.ReadDir(m.path("many")) // may be gone
					}
				}
			})
		}
		if out, err := exec.Command("rm", "-rf", m.path("many"), m.path("dir")).CombinedOutput(); err != nil {
			t.Errorf("rm -rf: %s", out)
		}
		close(stop)
		wg.Wait()
		if _, err := os.Lstat(m.path("many")); !os.IsNotExist(err) {
			t.Errorf("many is still there: %v", err)
		}
	})
}

func TestAProgramRunsFromBothLayersAndAfterBeingWritten(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		program, err := os.ReadFile("/bin/true")
		if err != nil {
			t.Skip(err)
		}
		for range 2 {
			if err := os.WriteFile(m.path("prog"), program, 0o755); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(m.path("prog")).CombinedOutput(); err != nil {
				t.Errorf("run: %v: %s", err, out)
			}
		}
		w := mustOpen(t, m.path("prog"), os.O_WRONLY)
		if err := exec.Command(m.path("prog")).Run(); !errors.Is(err, syscall.ETXTBSY) {
			t.Errorf("run while open for writing: %v", err)
		}
		_ = w.Close()
	})
}

func TestUnnamedFilesCanBeGivenAName(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		fd, err := unix.Open(m.path("dir"), unix.O_TMPFILE|unix.O_RDWR, 0o640)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "unnamed")
		defer f.Close()
		if _, err := f.WriteString("unnamed"); err != nil {
			t.Fatal(err)
		}
		if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, m.path("dir/named"), unix.AT_SYMLINK_FOLLOW); err != nil {
			t.Fatal(err)
		}
		if got := mustRead(t, m.path("dir/named")); got != "unnamed" {
			t.Errorf("reads %q", got)
		}
		if st := mustStat(t, m.path("dir/named")); st.Nlink != 1 {
			t.Errorf("%d links", st.Nlink)
		}
	})
}

func TestWritesAreSeenThroughEveryHardLink(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		r := mustOpen(t, m.path("hard2"), os.O_RDONLY)
		mustWrite(t, m.path("hard1"), "changed\n")
		if got := readAt(t, r, 0, 100); got != "changed\n" {
			t.Errorf("the other name's reader sees %q", got)
		}
		a, b := mustStat(t, m.path("hard1")), mustStat(t, m.path("hard2"))
		if a.Ino != b.Ino || a.Nlink != 2 || b.Nlink != 2 {
			t.Errorf("inodes %d and %d, links %d and %d", a.Ino, b.Ino, a.Nlink, b.Nlink)
		}
		if err := os.Remove(m.path("hard1")); err != nil {
			t.Fatal(err)
		}
		if b = mustStat(t, m.path("hard2")); b.Nlink != 1 {
			t.Errorf("%d links after one went", b.Nlink)
		}
	})
}

func TestLocksAreSeenByOtherProcesses(t *testing.T) {
	flock, err := exec.LookPath("flock")
	if err != nil {
		t.Skip(err)
	}
	m := mount(t, rootOptions(true))
	f := mustOpen(t, m.path("hello"), os.O_RDWR)
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(flock, "-n", m.path("hello"), "true").Run(); err == nil {
		t.Error("a second exclusive lock was given")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command(flock, "-n", m.path("hello"), "true").Run(); err != nil {
		t.Errorf("an unlocked file: %v", err)
	}
	if n := m.stats()["LOCK"]; n != 0 {
		t.Errorf("%d requests about locks", n)
	}
}

func TestTheKernelChecksPermissions(t *testing.T) {
	m := mount(t, rootOptions(true))
	mustWrite(t, m.path("secret"), "x")
	if err := os.Chmod(m.path("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	asUser(t, plainUser, func() {
		if _, err := os.ReadFile(m.path("secret")); !errors.Is(err, syscall.EACCES) {
			t.Errorf("read a file of mode 600: %v", err)
		}
		if err := os.Mkdir(m.path("dir/x"), 0o755); !errors.Is(err, syscall.EACCES) {
			t.Errorf("mkdir in a directory of mode 755: %v", err)
		}
		p := m.path("open.d/mine")
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			t.Errorf("create in a directory of mode 1777: %v", err)
		}
	})
	if st := mustStat(t, m.path("open.d/mine")); st.Uid != plainUser || st.Gid == 0 && st.Uid == 0 {
		t.Errorf("owner %d:%d", st.Uid, st.Gid)
	}
}
