package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func mustMap(t *testing.T, f *os.File, n, prot int) []byte {
	t.Helper()
	b, err := unix.Mmap(int(f.Fd()), 0, n, prot, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

func TestAMappingAcrossCopyUpSeesLaterWrites(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		r := mustOpen(t, m.path("big"), os.O_RDONLY)
		b := mustMap(t, r, 8192, unix.PROT_READ)
		if !bytes.Equal(b, pattern(8192)) {
			t.Fatal("maps wrong")
		}
		w := mustOpen(t, m.path("big"), os.O_RDWR)
		if _, err := w.WriteAt([]byte("changed"), 5000); err != nil {
			t.Fatal(err)
		}
		if got := string(b[5000:5007]); got != "changed" {
			t.Errorf("the mapping shows %q", got)
		}
		wb := mustMap(t, w, 8192, unix.PROT_READ|unix.PROT_WRITE)
		copy(wb[6000:], "mapped")
		if got := string(b[6000:6006]); got != "mapped" {
			t.Errorf("the mapping shows %q of another mapping's write", got)
		}
		if err := unix.Msync(wb, unix.MS_SYNC); err != nil {
			t.Fatal(err)
		}
		upper, err := os.ReadFile(filepath.Join(m.upper, "big"))
		if err != nil || string(upper[6000:6006]) != "mapped" {
			t.Errorf("the upper has %q, %v", upper[6000:6006], err)
		}
	})
}

// What the page cache holds from before must not come back after passthrough.
func TestDataCachedBeforePassthroughIsNotSeenAfter(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		if got := mustRead(t, m.path("hello")); got != "hello, lower\n" {
			t.Fatalf("%q", got)
		}
		for i := range 4 {
			want := fmt.Sprintf("generation %d\n", i)
			f := mustOpen(t, m.path("hello"), os.O_WRONLY)
			if _, err := f.WriteAt([]byte(want), 0); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if got := mustRead(t, m.path("hello")); got != want {
				t.Errorf("reads %q, want %q", got, want)
			}
			r := mustOpen(t, m.path("hello"), os.O_RDONLY)
			if b := mustMap(t, r, len(want), unix.PROT_READ); string(b) != want {
				t.Errorf("maps %q, want %q", b, want)
			}
		}
	})
}

// mtimeShown asks for nothing but the time of change, as mmap(2) makes the kernel
// ask for the time of access again, and with it for all.
func mtimeShown(t testing.TB, path string) unix.StatxTimestamp {
	t.Helper()
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MTIME, &st); err != nil {
		t.Fatal(err)
	}
	return st.Mtime
}

func TestAWriteThroughAMappingChangesTheTimesShown(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		mustWrite(t, m.path("new"), strings.Repeat("x", 4096))
		mustStat(t, m.path("big"))
		for _, name := range []string{"new", "big", "new", "created and truncated", "created and allocated"} {
			p := m.path(name)
			f, err := os.OpenFile(p, os.O_RDWR|os.O_CREATE, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case strings.HasSuffix(name, "truncated"):
				err = f.Truncate(4096)
			case strings.HasSuffix(name, "allocated"):
				err = unix.Fallocate(int(f.Fd()), 0, 0, 4096)
			}
			if err != nil {
				t.Fatal(err)
			}
			before := mtimeShown(t, p)
			b, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				t.Fatal(err)
			}
			last := before
			for i := range 3 {
				time.Sleep(20 * time.Millisecond)
				b[0] = byte('0' + i)
				if err := unix.Msync(b, unix.MS_SYNC); err != nil {
					t.Fatal(err)
				}
				now := mtimeShown(t, p)
				if now == last {
					t.Errorf("%s: write %d through a mapping leaves mtime %v", name, i, now)
				}
				last = now
			}
			if err := errors.Join(unix.Munmap(b), f.Close()); err != nil {
				t.Fatal(err)
			}
			if after := mtimeShown(t, p); after != last {
				t.Errorf("%s: mtime %v became %v at close", name, last, after)
			}
			onDisk := mustStat(t, filepath.Join(m.upper, name)).Mtim
			if onDisk.Sec != last.Sec || onDisk.Nsec != int64(last.Nsec) {
				t.Errorf("%s: the upper has %v, shown is %v", name, onDisk, last)
			}
		}
	})
}
