package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func mustStat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st
}

func mustWrite(t testing.TB, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func mustList(t testing.TB, path string) []string {
	t.Helper()
	list, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

// noRequests fails if f causes a request of one of the kinds.
func (m *mounted) noRequests(what string, f func(), kinds ...string) {
	m.t.Helper()
	before := m.stats()
	f()
	after := m.stats()
	for _, kind := range kinds {
		if n := after[kind] - before[kind]; n != 0 {
			m.t.Errorf("%s: %d %s requests", what, n, kind)
		}
	}
}

func TestNamesAndAttributesAreAskedOnce(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		again := func() {
			mustStat(t, m.path("dir/sub/deep"))
			if _, err := os.Lstat(m.path("dir/nothing")); !os.IsNotExist(err) {
				t.Error(err)
			}
			if _, err := os.Readlink(m.path("link")); err != nil {
				t.Error(err)
			}
		}
		again()
		m.noRequests("a second look", again, "LOOKUP", "GETATTR", "READLINK")
	})
}

func TestANegativeEntryEndsWithTheNamesCreation(t *testing.T) {
	m := mount(t, rootOptions(true))
	for i, create := range []func(string) error{
		func(p string) error { return os.WriteFile(p, nil, 0o644) },
		func(p string) error { return os.Mkdir(p, 0o755) },
		func(p string) error { return os.Symlink("x", p) },
		func(p string) error { return os.Link(m.path("hello"), p) },
		func(p string) error { return os.Rename(m.path("empty"), p) },
		func(p string) error { return unix.Mkfifo(p, 0o644) },
	} {
		p := m.path(fmt.Sprintf("soon-%d", i))
		if _, err := os.Lstat(p); !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if err := create(p); err != nil {
			t.Fatal(err)
		}
		mustStat(t, p)
		if err := os.RemoveAll(p); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(p); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", p, err)
		}
	}
}

func TestAListingIsKeptUntilTheDirectoryChanges(t *testing.T) {
	m := mount(t, rootOptions(true))
	list := func() []string { return mustList(t, m.path("dir")) }
	want := []string{"a", "b", "sub"}
	if got := list(); !slices.Equal(got, want) {
		t.Fatalf("%v", got)
	}
	m.noRequests("a second listing", func() { list() }, "READDIR", "READDIRPLUS")

	steps := []struct {
		name string
		do   func() error
		want []string
	}{
		{"create", func() error { return os.WriteFile(m.path("dir/c"), nil, 0o644) }, []string{"a", "b", "c", "sub"}},
		{"unlink", func() error { return os.Remove(m.path("dir/a")) }, []string{"b", "c", "sub"}},
		{"rename within", func() error { return os.Rename(m.path("dir/b"), m.path("dir/z")) }, []string{"c", "sub", "z"}},
		{"rename away", func() error { return os.Rename(m.path("dir/z"), m.path("z")) }, []string{"c", "sub"}},
		{"rename in", func() error { return os.Rename(m.path("z"), m.path("dir/y")) }, []string{"c", "sub", "y"}},
		{"mkdir", func() error { return os.Mkdir(m.path("dir/d"), 0o755) }, []string{"c", "d", "sub", "y"}},
		{"rmdir", func() error { return os.Remove(m.path("dir/d")) }, []string{"c", "sub", "y"}},
		{"link", func() error { return os.Link(m.path("hello"), m.path("dir/l")) }, []string{"c", "l", "sub", "y"}},
		{"symlink", func() error { return os.Symlink("x", m.path("dir/m")) }, []string{"c", "l", "m", "sub", "y"}},
		{"mknod", func() error { return unix.Mkfifo(m.path("dir/p"), 0o644) }, []string{"c", "l", "m", "p", "sub", "y"}},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if got := list(); !slices.Equal(got, s.want) {
			t.Errorf("after %s: %v, want %v", s.name, got, s.want)
		}
		if got := list(); !slices.Equal(got, s.want) {
			t.Errorf("again after %s: %v, want %v", s.name, got, s.want)
		}
	}
}

// A copy-up changes the ctimes of the directories above in the upper, and nobody asked for
// that. tar(1) looks at a directory's before and after it reads it, and reading has the
// kernel ask for attributes again: both must be the same, and those of directories that
// were not changed the ones of before.
func TestACopyUpLeavesTheCtimesOfDirectories(t *testing.T) {
	type change struct {
		name   string
		do     func(m *mounted) error
		ofDirs bool // dir itself is changed
	}
	for _, c := range []change{
		{"a file is written", func(m *mounted) error { return os.WriteFile(m.path("dir/sub/new"), []byte("x"), 0o644) }, false},
		{"modes are changed", func(m *mounted) error {
			return errors.Join(os.Chmod(m.path("dir/a"), 0o600), os.Chmod(m.path("dir/sub"), 0o700))
		}, false},
		{"a directory is renamed", func(m *mounted) error { return os.Rename(m.path("dir/sub"), m.path("dir/other")) }, true},
		{"a file is removed", func(m *mounted) error { return os.Remove(m.path("dir/a")) }, true},
		{"its mode is changed", func(m *mounted) error { return os.Chmod(m.path("dir"), 0o700) }, true},
		{"an attribute is set", func(m *mounted) error { return unix.Setxattr(m.path("dir"), "user.x", []byte("y"), 0) }, true},
		{"a file was copied up before", func(m *mounted) error {
			return errors.Join(os.Chmod(m.path("dir/a"), 0o600), os.Chmod(m.path("dir"), 0o700))
		}, true},
	} {
		for _, passthrough := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, passthrough %v", c.name, passthrough), func(t *testing.T) {
				opt := rootOptions(true)
				opt.Passthrough = passthrough
				m := mount(t, opt)
				root, dir := mustStat(t, m.path("")), mustStat(t, m.path("dir"))
				if err := c.do(m); err != nil {
					t.Fatal(err)
				}
				for range 2 { // as the kernel has it, and as it asks for it again
					if now := mustStat(t, m.path("")); now.Ctim != root.Ctim {
						t.Errorf("the root's ctime was %v, is %v", root.Ctim, now.Ctim)
					}
					now := mustStat(t, m.path("dir"))
					if changed := now.Ctim != dir.Ctim; changed != c.ofDirs {
						t.Errorf("the directory's ctime was %v, is %v", dir.Ctim, now.Ctim)
					}
					mustList(t, m.path(""))
					mustList(t, m.path("dir"))
					if again := mustStat(t, m.path("dir")); again.Ctim != now.Ctim {
						t.Errorf("the directory's ctime is %v, and %v once it is read", now.Ctim, again.Ctim)
					}
				}
			})
		}
	}
}

// The kernel may cache the listing that is read here; it must have the file.
func TestAFileMadeBetweenOpendirAndReaddirIsListedForEver(t *testing.T) {
	m := mount(t, rootOptions(true))
	d, err := os.Open(m.path("dir"))
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, m.path("dir/between"), "x")
	if _, err := d.Readdirnames(-1); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := mustList(t, m.path("dir")); !slices.Contains(got, "between") {
		t.Errorf("listed: %v", got)
	}
}

func TestLowerDataIsKeptAcrossOpens(t *testing.T) {
	m := mount(t, rootOptions(true))
	read := func() {
		if mustRead(t, m.path("big")) != string(pattern(bigSize)) {
			t.Error("big reads wrong")
		}
	}
	read()
	m.noRequests("a second read", read, "READ")
}

func TestPassthroughMakesNoReadOrWriteRequests(t *testing.T) {
	needPassthrough(t)
	m := mount(t, rootOptions(true))
	m.noRequests("write and read an upper file", func() {
		for range 3 {
			mustWrite(t, m.path("new"), string(pattern(100000)))
			if mustRead(t, m.path("new")) != string(pattern(100000)) {
				t.Error("reads wrong")
			}
		}
	}, "READ", "WRITE")
	if m.logged("passthrough is off") {
		t.Error("passthrough was refused")
	}
}

// In whole pages: of one written in part the kernel knows no more than that part.
func TestCachedUpperDataIsKeptAcrossOpens(t *testing.T) {
	m := mount(t, rootOptions(false))
	const size = 24 * 4096
	mustWrite(t, m.path("new"), string(pattern(size)))
	m.noRequests("read what was written", func() {
		if mustRead(t, m.path("new")) != string(pattern(size)) {
			t.Error("reads wrong")
		}
	}, "READ")
}

func TestACloseAsksNothing(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		for i := range 5 {
			mustWrite(t, m.path(fmt.Sprintf("f%d", i)), "x")
		}
		if n := m.stats()["FLUSH"]; n > 1 {
			t.Errorf("%d FLUSH requests", n)
		}
	})
}

func TestAWriteAsksForNoAttribute(t *testing.T) {
	m := mount(t, rootOptions(false))
	f, err := os.Create(m.path("new"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write := func() {
		if _, err := f.WriteString("line\n"); err != nil {
			t.Fatal(err)
		}
	}
	write()
	m.noRequests("20 writes", func() {
		for range 20 {
			write()
		}
	}, "GETXATTR", "GETATTR", "SETATTR")
}

func TestOpeningWithTruncateIsOneRequest(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		other := "SETATTR"
		if !m.opt.Passthrough {
			mustRead(t, m.path("hello")) // the kernel learns that it need not ask
			other = "OPEN"
		}
		m.noRequests("open with O_TRUNC", func() {
			mustWrite(t, m.path("big"), "short")
		}, other)
		if got := mustRead(t, m.path("big")); got != "short" {
			t.Errorf("reads %.20q", got)
		}
		if st := mustStat(t, m.path("big")); st.Size != 5 {
			t.Errorf("size %d", st.Size)
		}
	})
}

// A kernel that was told ENOSYS once stops asking.
func TestNoOperationIsSwitchedOff(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		if err := os.Truncate(m.path("hello"), 1<<20); err != nil {
			t.Fatal(err)
		}
		tmp := func() (int, error) { return unix.Open(m.root, unix.O_TMPFILE|unix.O_RDWR, 0o600) }
		f, err := os.OpenFile(m.path("hello"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		d, err := os.Open(m.root)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		fd := int(f.Fd())
		tests := []struct {
			kind string
			do   func() error
		}{
			{"FSYNC", func() error { return f.Sync() }},
			{"FSYNCDIR", func() error { return unix.Fsync(int(d.Fd())) }},
			{"FALLOCATE", func() error {
				return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 8192)
			}},
			{"LSEEK", func() error { _, err := unix.Seek(fd, 0, unix.SEEK_HOLE); return err }},
			{"COPY_FILE_RANGE", func() error {
				var from, to int64 = 0, 500000
				_, err := unix.CopyFileRange(fd, &from, fd, &to, 4096, 0)
				return err
			}},
			{"SETXATTR", func() error { return unix.Setxattr(m.path("hello"), "user.x", []byte("1"), 0) }},
			{"GETXATTR", func() error { _, err := unix.Getxattr(m.path("hello"), "user.x", make([]byte, 9)); return err }},
			{"LISTXATTR", func() error { _, err := unix.Listxattr(m.path("hello"), make([]byte, 999)); return err }},
			{"STATFS", func() error { return unix.Statfs(m.root, &unix.Statfs_t{}) }},
			{"TMPFILE", func() error {
				fd, err := tmp()
				if err == nil {
					err = unix.Close(fd)
				}
				return err
			}},
		}
		for _, tt := range tests {
			for i := range 3 {
				n := m.requests(tt.kind, func() {
					if err := tt.do(); err != nil {
						t.Errorf("%s: %v", tt.kind, err)
					}
				})
				if n == 0 {
					t.Errorf("%s is not asked for at time %d", tt.kind, i)
				}
			}
		}
		if err := unix.Setxattr(m.path("link"), "user.no", nil, 0); err == nil {
			t.Log("user attributes go on symlinks here")
		}
	})
}

func TestTheTimeOfBirthIsShown(t *testing.T) {
	m := mount(t, rootOptions(true))
	mustWrite(t, m.path("new"), "x")
	for range 2 {
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, m.path("new"), 0, unix.STATX_BTIME|unix.STATX_BASIC_STATS, &st); err != nil {
			t.Fatal(err)
		}
		if st.Mask&unix.STATX_BTIME == 0 || st.Btime.Sec == 0 {
			t.Errorf("mask %#x, btime %v", st.Mask, st.Btime)
		}
	}
}

func TestAFileHandleCanBeNamedAndNotOpened(t *testing.T) {
	m := mount(t, rootOptions(true))
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, m.path("hello"), 0)
	if err != nil {
		t.Skipf("no file handles: %v", err)
	}
	d, err := os.Open(m.root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if fd, err := unix.OpenByHandleAt(int(d.Fd()), h, unix.O_RDONLY); err == nil {
		_ = unix.Close(fd)
		t.Error("a number that may be used again was taken for a lasting handle")
	}
}

func TestListingBigDirectoriesWithAttributesIsFewRequests(t *testing.T) {
	m := mount(t, rootOptions(true))
	before := m.stats()
	out, err := exec.Command("ls", "-l", m.path("many")).Output()
	if err != nil {
		t.Fatal(err)
	}
	after := m.stats()
	if n := bytes.Count(out, []byte("name-")); n != manyFiles {
		t.Errorf("%d names", n)
	}
	if n := after["LOOKUP"] - before["LOOKUP"] + after["GETATTR"] - before["GETATTR"]; n > 20 {
		t.Errorf("%d LOOKUP and GETATTR requests beside %d READDIRPLUS", n, after["READDIRPLUS"])
	}
}

func TestASequentialReaderIsReadAheadFor(t *testing.T) {
	m := mount(t, rootOptions(true))
	n := m.requests("READ", func() { mustRead(t, m.path("big")) })
	if most := uint64(bigSize/(256<<10)) + 2; n > most {
		t.Errorf("%d READ requests for %d bytes, want %d at most", n, bigSize, most)
	}
}
