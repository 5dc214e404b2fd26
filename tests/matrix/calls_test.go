package matrix

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

const callsText = `dir . 0755
dir d 0755
file d/f 0644 @100000
file d/g 0644 "small"
file d/empty 0644 ""
`

// calls are less usual system calls on the tree of callsText, each of which returns
// what it saw.
var calls = map[string]func(dir string) (string, error){
	"watch a file over its copy-up": func(dir string) (string, error) {
		return watched(filepath.Join(dir, "f"), func() error { return changeFile(filepath.Join(dir, "f")) })
	},
	"watch a directory over copy-ups in it": func(dir string) (string, error) {
		return watched(dir, func() error {
			return errors.Join(changeFile(filepath.Join(dir, "g")), os.WriteFile(filepath.Join(dir, "new"), nil, 0o644),
				os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "renamed")), os.Remove(filepath.Join(dir, "renamed")))
		})
	},
	"share blocks by FICLONE": func(dir string) (string, error) {
		return withFiles(dir, func(from, to *os.File) (string, error) {
			return "", unix.IoctlFileClone(int(to.Fd()), int(from.Fd()))
		})
	},
	"share a range of blocks": func(dir string) (string, error) {
		return withFiles(dir, func(from, to *os.File) (string, error) {
			return "", unix.IoctlFileCloneRange(int(to.Fd()), &unix.FileCloneRange{Src_fd: int64(from.Fd()), Src_length: 4096})
		})
	},
	"sendfile": func(dir string) (string, error) {
		return withFiles(dir, func(from, to *os.File) (string, error) {
			n, err := unix.Sendfile(int(to.Fd()), int(from.Fd()), nil, 1<<20)
			return fmt.Sprint(n), err
		})
	},
	"splice through a pipe": func(dir string) (string, error) {
		return withFiles(dir, func(from, to *os.File) (string, error) {
			var p [2]int
			if err := unix.Pipe(p[:]); err != nil {
				return "", err
			}
			defer unix.Close(p[0])
			defer unix.Close(p[1])
			in, err := unix.Splice(int(from.Fd()), nil, p[1], nil, 30000, 0)
			if err != nil {
				return "", err
			}
			out, err := unix.Splice(p[0], nil, int(to.Fd()), nil, 30000, 0)
			return fmt.Sprint(in, out), err
		})
	},
	"copy_file_range from a file of the layers": func(dir string) (string, error) {
		return withFiles(dir, func(from, to *os.File) (string, error) {
			off := int64(50000)
			n, err := unix.CopyFileRange(int(from.Fd()), &off, int(to.Fd()), nil, 20000, 0)
			return fmt.Sprint(n, off), err
		})
	},
	"read unbuffered": func(dir string) (string, error) {
		fd, err := unix.Open(filepath.Join(dir, "f"), unix.O_RDONLY|unix.O_DIRECT, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		b := make([]byte, 3*4096)
		skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & 4095
		n, err := unix.Pread(fd, b[skip:skip+8192], 4096)
		return fmt.Sprint(n, b[skip:skip+16]), err
	},
	"read with and without O_NOATIME": func(dir string) (string, error) {
		quiet, err := readChangesAtime(filepath.Join(dir, "g"), unix.O_NOATIME)
		if err != nil {
			return "", err
		}
		plain, err := readChangesAtime(filepath.Join(dir, "g"), 0)
		return fmt.Sprint(quiet, plain), err
	},
	"lock whole files against each other": func(dir string) (string, error) {
		return twoOpens(dir, func(a, b int) []error {
			return []error{unix.Flock(a, unix.LOCK_SH), unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB), unix.Flock(b, unix.LOCK_SH|unix.LOCK_NB),
				unix.Flock(a, unix.LOCK_UN), unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB), unix.Flock(a, unix.LOCK_SH|unix.LOCK_NB)}
		})
	},
	"lock ranges of open files against each other": func(dir string) (string, error) {
		return twoOpens(dir, func(a, b int) []error {
			set := func(fd int, typ int16, start, n int64) error {
				return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ, Start: start, Len: n})
			}
			return []error{set(a, unix.F_WRLCK, 0, 100), set(b, unix.F_WRLCK, 50, 10), set(b, unix.F_RDLCK, 100, 0), set(a, unix.F_RDLCK, 200, 1),
				set(a, unix.F_WRLCK, 200, 1), set(a, unix.F_UNLCK, 40, 30), set(b, unix.F_WRLCK, 50, 10)}
		})
	},
	"name an unnamed file": func(dir string) (string, error) {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o640)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		if _, err := unix.Write(fd, []byte("unnamed")); err != nil {
			return "", err
		}
		name := filepath.Join(dir, "named")
		if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW); err != nil {
			return "", err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return "", err
		}
		b, err := os.ReadFile(name)
		return fmt.Sprint(st.Nlink, string(b)), err
	},
	"advise and read ahead": func(dir string) (string, error) {
		return withFiles(dir, func(from, to *os.File) (string, error) {
			return "", errors.Join(unix.Fadvise(int(from.Fd()), 0, 0, unix.FADV_WILLNEED), unix.Fadvise(int(to.Fd()), 0, 0, unix.FADV_DONTNEED),
				unix.SyncFileRange(int(to.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE))
		})
	},
	"vectors": func(dir string) (string, error) {
		return withFiles(dir, func(from, to *os.File) (string, error) {
			n, err := unix.Preadv2(int(from.Fd()), [][]byte{make([]byte, 10), make([]byte, 5000)}, 99000, 0)
			m, err2 := unix.Pwritev2(int(to.Fd()), [][]byte{[]byte("a"), []byte("bc")}, 5, unix.RWF_SYNC)
			return fmt.Sprint(n, m), errors.Join(err, err2)
		})
	},
}

// readChangesAtime writes to a file, drops what the kernel has of its data, and says whether
// reading it through an open with flags changes its access time.
func readChangesAtime(name string, flags int) (bool, error) {
	if err := changeFile(name); err != nil {
		return false, err
	}
	long := unix.Timespec{Sec: 978307200}
	if err := unix.UtimesNano(name, []unix.Timespec{long, {Nsec: unix.UTIME_OMIT}}); err != nil {
		return false, err
	}
	fd, err := unix.Open(name, unix.O_RDONLY|flags, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Fsync(fd), unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)); err != nil {
		return false, err
	}
	if _, err := unix.Read(fd, make([]byte, 3)); err != nil {
		return false, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return st.Atim != long, err
}

// changeFile does to a file what its watchers hear of.
func changeFile(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("written")
	return errors.Join(err, f.Truncate(3), f.Chmod(0o600), f.Close(), os.Rename(name, name+"2"), os.Rename(name+"2", name))
}

// watched lists the events that do causes for watchers of a path.
func watched(path string, do func() error) (string, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_ALL_EVENTS); err != nil {
		return "", err
	}
	if err := do(); err != nil {
		return "", err
	}
	var said []string
	buf := make([]byte, 65536)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			return strings.Join(said, " "), nil
		}
		if err != nil {
			return "", err
		}
		for b := buf[:n]; len(b) > 0; {
			e := (*unix.InotifyEvent)(unsafe.Pointer(unsafe.SliceData(b)))
			name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+int(e.Len)]), "\x00")
			said = append(said, fmt.Sprintf("%#x:%s", e.Mask, name))
			b = b[unix.SizeofInotifyEvent+int(e.Len):]
		}
	}
}

// withFiles opens f for reading and empty for writing.
func withFiles(dir string, use func(from, to *os.File) (string, error)) (said string, err error) {
	from, err := os.Open(filepath.Join(dir, "f"))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := os.OpenFile(filepath.Join(dir, "empty"), os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	said, err = use(from, to)
	if err != nil {
		return said, err
	}
	b, err := os.ReadFile(to.Name())
	return fmt.Sprintf("%s, then %d bytes %x", said, len(b), b[:min(len(b), 8)]), err
}

// twoOpens opens g twice, first for reading and then, which copies it up, for both.
func twoOpens(dir string, use func(a, b int) []error) (string, error) {
	name := filepath.Join(dir, "g")
	a, err := unix.Open(name, unix.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(a)
	b, err := unix.Open(name, unix.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(b)
	return fmt.Sprint(use(a, b)), nil
}

func TestLessUsualCallsAreAsOnALocalDisk(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	layout := imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: []imagetest.Layer{{Text: callsText}}})
	for mode, flags := range map[string][]string{"passthrough": {"--passthrough"}, "without passthrough": nil} {
		for name, call := range calls {
			t.Run(mode+"/"+name, func(t *testing.T) {
				b := env.Mount(t, layout+":base", flags...)
				local := filepath.Join(t.TempDir(), "local")
				env.MustCommand(t, "cp", "-a", b.Rootfs()+"/.", local)
				b.Umount(t)
				b = env.Mount(t, layout+":base", flags...) // nothing of it is cached
				s := step{name, call}
				if got, want := outcome(s, b.Rootfs()+"/d"), outcome(s, local+"/d"); got != want {
					t.Errorf("%s\non a local disk %s", got, want)
				}
				b.Umount(t)
			})
		}
	}
}

func TestADirectoryOf200000NamesIsListedWhole(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	const many = 200_000
	var text strings.Builder
	text.WriteString("dir . 0755\ndir big 0755\n")
	for i := range many {
		fmt.Fprintf(&text, "file big/%d 0644 \"\"\n", i)
	}
	layout := imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: []imagetest.Layer{{Text: text.String()}}})
	b := env.Mount(t, layout+":base")
	defer b.Umount(t)
	big := filepath.Join(b.Rootfs(), "big")
	list := func(want int) []string {
		t.Helper()
		f, err := os.Open(big)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		names, err := f.Readdirnames(-1)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		if n := len(slices.Compact(names)); n != want || n != len(names) {
			t.Fatalf("%d names, %d of them different, want %d", len(names), n, want)
		}
		return names
	}
	names := list(many)
	for _, name := range names[:1000] {
		if err := os.Remove(filepath.Join(big, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(big, "new"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	list(many - 999)
	env.Must(t, "repack", "--image", layout+":less", b.Path)
	if got := strings.Count(env.Must(t, "diff", b.Path), "\n"); got != 1002 {
		t.Errorf("%d lines of differences", got)
	}
}
