package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var modelTree = []string{
	"d a 755", "d a/b 700", "d a/b/c 755", "d e 755", "d a/s 2775", "o a/s 7 8",
	"f a/f 644 one", "f a/b/g 4755 two words", "f a/b/c/h 600 three", "f top 644 four", "f z 640 ",
	"h e/hard a/f", "h a/b/hard2 a/b/c/h", "l a/l f", "l e/broken nowhere", "p e/fifo 644", "c e/null 666 1 3",
	"x a/f user.note hello", "o a/b/g 5 6",
}

// disk is the same tree on the local file system, which is always right.
type disk struct {
	t    *testing.T
	root string
}

func newDisk(t *testing.T, lines []string) *disk {
	t.Helper()
	d := &disk{t, t.TempDir()}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	num := func(s string, f string) (v uint32) {
		_, err := fmt.Sscanf(s, f, &v)
		must(err)
		return v
	}
	must(os.Chmod(d.root, 0o755))
	for _, line := range lines {
		w := strings.Fields(line)
		p := filepath.Join(d.root, w[1])
		switch w[0] {
		case "d":
			must(unix.Mkdir(p, num(w[2], "%o")))
			must(unix.Chmod(p, num(w[2], "%o")))
		case "f":
			must(os.WriteFile(p, []byte(strings.Join(w[3:], " ")), 0o600))
			must(unix.Chmod(p, num(w[2], "%o")))
		case "l":
			must(os.Symlink(w[2], p))
		case "h":
			must(os.Link(filepath.Join(d.root, w[2]), p))
		case "p":
			must(unix.Mkfifo(p, num(w[2], "%o")))
			must(unix.Chmod(p, num(w[2], "%o")))
		case "c":
			must(unix.Mknod(p, unix.S_IFCHR, int(unix.Mkdev(num(w[3], "%d"), num(w[4], "%d")))))
			must(unix.Chmod(p, num(w[2], "%o")))
		case "x":
			must(unix.Setxattr(p, w[2], []byte(w[3]), 0))
		case "o":
			var st unix.Stat_t
			must(unix.Lstat(p, &st))
			must(os.Lchown(p, int(num(w[2], "%d")), int(num(w[3], "%d"))))
			must(unix.Chmod(p, st.Mode&0o7777))
		}
	}
	return d
}

func (d *disk) path(p string) string { return filepath.Join(d.root, p) }

func (d *disk) listing() string {
	var lines []string
	first := map[uint64]string{}
	err := filepath.WalkDir(d.root, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(d.root, p)
		s := fmt.Sprintf("%s %o %d:%d n%d", rel, st.Mode, st.Uid, st.Gid, st.Nlink)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			s += fmt.Sprintf(" %q", data)
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			s += " -> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			s += fmt.Sprintf(" dev %d", st.Rdev)
		}
		list := make([]byte, xattrListMax)
		n, err := unix.Llistxattr(p, list)
		if err != nil {
			return err
		}
		s += describeXattrs(list[:n], func(name string) ([]byte, error) {
			value := make([]byte, 1024)
			n, err := unix.Lgetxattr(p, name, value)
			return value[:max(n, 0)], err
		})
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			if have, ok := first[st.Ino]; ok {
				s += " = " + have
			} else {
				first[st.Ino] = rel
			}
		}
		lines = append(lines, s)
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// op is one random operation, done to both.
type op struct {
	name   string
	onFS   func(x *fixture) error
	onDisk func(d *disk) error
}

var modelNames = []string{"a", "a/b", "a/b/c", "a/f", "a/b/g", "a/b/c/h", "a/b/hard2", "a/l", "a/s", "a/s/n", "e", "e/hard",
	"e/broken", "e/fifo", "top", "z", "n1", "n2", "e/n3", "a/n4", "a/b/n5", "n1/x", "n1/y", "n2/x", "e/n3/b", "e/n3/c"}

func randomOp(r *rand.Rand) op {
	p, q := modelNames[r.IntN(len(modelNames))], modelNames[r.IntN(len(modelNames))]
	switch r.IntN(14) {
	case 0:
		return op{"mkdir " + p, func(x *fixture) error {
			dir, name, err := x.split(p)
			if err != nil {
				return err
			}
			_, err = x.fs.Mkdir(dir, name, 0o755, Caller{})
			return err
		}, func(d *disk) error { return unix.Mkdir(d.path(p), 0o755) }}
	case 1:
		return op{"unlink " + p, func(x *fixture) error { return onName(x, p, x.fs.Unlink) },
			func(d *disk) error { return unix.Unlink(d.path(p)) }}
	case 2:
		return op{"rmdir " + p, func(x *fixture) error { return onName(x, p, x.fs.Rmdir) },
			func(d *disk) error { return unix.Rmdir(d.path(p)) }}
	case 3, 4, 5:
		flags := []uint32{0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}[r.IntN(5)]
		return op{fmt.Sprintf("rename %s %s %d", p, q, flags), func(x *fixture) error { return fsRename(x, p, q, flags) },
			func(d *disk) error {
				return unix.Renameat2(unix.AT_FDCWD, d.path(p), unix.AT_FDCWD, d.path(q), uint(flags))
			}}
	case 6:
		return op{"link " + p + " " + q, func(x *fixture) error {
			ino, err := x.ino(p)
			if err != nil {
				return err
			}
			dir, name, err := x.split(q)
			if err != nil {
				return err
			}
			_, err = x.fs.Link(ino, dir, name)
			return err
		}, func(d *disk) error { return unix.Linkat(unix.AT_FDCWD, d.path(p), unix.AT_FDCWD, d.path(q), 0) }}
	case 7:
		return op{"symlink " + p, func(x *fixture) error {
			dir, name, err := x.split(p)
			if err != nil {
				return err
			}
			_, err = x.fs.Symlink(dir, name, "somewhere", Caller{})
			return err
		}, func(d *disk) error { return unix.Symlink("somewhere", d.path(p)) }}
	case 8:
		mode := uint32(r.IntN(0o1000))
		return op{fmt.Sprintf("chmod %s %o", p, mode), func(x *fixture) error {
			ino, err := x.ino(p)
			if err != nil {
				return err
			}
			_, err = x.fs.SetAttr(ino, SetAttr{Valid: SetMode, Mode: mode})
			return err
		}, func(d *disk) error { return d.unlessLink(p, func() error { return unix.Chmod(d.path(p), mode) }) }}
	case 9:
		id := uint32(r.IntN(5))
		return op{fmt.Sprintf("chown %s %d", p, id), func(x *fixture) error {
			ino, err := x.ino(p)
			if err != nil {
				return err
			}
			_, err = x.fs.SetAttr(ino, SetAttr{Valid: SetUID | SetGID, UID: id, GID: id})
			return err
		}, func(d *disk) error { return unix.Lchown(d.path(p), int(id), int(id)) }}
	case 10:
		size := int64(r.IntN(9))
		return op{fmt.Sprintf("truncate %s %d", p, size), func(x *fixture) error {
			ino, err := x.ino(p)
			if err != nil {
				return err
			}
			_, err = x.fs.SetAttr(ino, SetAttr{Valid: SetSize, Size: size})
			return err
		}, func(d *disk) error { return d.unlessLink(p, func() error { return unix.Truncate(d.path(p), size) }) }}
	case 11, 12:
		text := fmt.Sprintf("<%d>", r.IntN(100))
		off := int64(r.IntN(6))
		return op{fmt.Sprintf("write %s %d %s", p, off, text), func(x *fixture) error { return fsWrite(x, p, text, off) },
			func(d *disk) error { return d.write(p, text, off) }}
	default:
		return op{"create " + p, func(x *fixture) error {
			dir, name, err := x.split(p)
			if err != nil {
				return err
			}
			h, _, err := x.fs.Create(dir, name, unix.O_RDWR, 0o640, Caller{})
			if err != nil {
				return err
			}
			return h.Close()
		}, func(d *disk) error {
			fd, err := unix.Open(d.path(p), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o640)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		}}
	}
}

func onName(x *fixture, p string, f func(Ino, string) error) error {
	dir, name, err := x.split(p)
	if err != nil {
		return err
	}
	if _, err := x.fs.Lookup(dir, name); err != nil {
		return err
	}
	return f(dir, name)
}

// fsRename does what the kernel's VFS checks before it calls a file system.
func fsRename(x *fixture, p, q string, flags uint32) error {
	od, on, err := x.split(p)
	if err != nil {
		return err
	}
	nd, nn, err := x.split(q)
	if err != nil {
		return err
	}
	if strings.HasPrefix(q+"/", p+"/") && p != q {
		return unix.EINVAL
	}
	if strings.HasPrefix(p+"/", q+"/") && p != q {
		return unix.ENOTEMPTY
	}
	if p == q && flags&unix.RENAME_NOREPLACE == 0 {
		_, err := x.ino(p)
		return err
	}
	return x.fs.Rename(od, on, nd, nn, flags)
}

func fsWrite(x *fixture, p, text string, off int64) error {
	ino, err := x.ino(p)
	if err != nil {
		return err
	}
	h, err := x.fs.Open(ino, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer h.Close()
	if _, err := h.WriteAt([]byte(text), off); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := h.ReadAt(got, off); err != nil && err != io.EOF || string(got) != text {
		return fmt.Errorf("read back %q: %v", got, err)
	}
	return nil
}

func (d *disk) unlessLink(p string, f func() error) error {
	var st unix.Stat_t
	if err := unix.Lstat(d.path(p), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	return f()
}

func (d *disk) write(p, text string, off int64) error {
	var st unix.Stat_t
	if err := unix.Lstat(d.path(p), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return unix.EINVAL
	}
	f, err := os.OpenFile(d.path(p), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt([]byte(text), off)
	return err
}

// TestRandomOperationsEqualALocalDisk runs the same random operations on the
// union and on the local file system: results and trees are equal, after a
// remount too, and the record of changes names every path that differs.
func TestRandomOperationsEqualALocalDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners on the local disk")
	}
	unix.Umask(0)
	seeds := 200
	if testing.Short() {
		seeds = 30
	}
	for _, kind := range []struct {
		name    string
		opt     UpperOptions
		crowded bool
	}{
		{"owners in the inode", UpperOptions{}, false},
		{"owners in override_stat", UpperOptions{Rootless: true}, false},
		{"whiteouts that are files", UpperOptions{FileWhiteouts: true}, false},
		{"many files with no name", UpperOptions{}, true},
	} {
		t.Run(kind.name, func(t *testing.T) {
			for seed := range seeds {
				t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { runModel(t, kind.opt, kind.crowded, uint64(seed), 60) })
			}
		})
	}
}

func runModel(t *testing.T, opt UpperOptions, crowded bool, seed uint64, steps int) {
	r := rand.New(rand.NewPCG(seed, 1))
	x := newFixtureWith(t, newMemLower(modelTree...), opt)
	if x.crowded = crowded; crowded {
		x.remount()
	}
	d := newDisk(t, modelTree)
	before := d.listing()
	if got := x.listing(); got != before {
		t.Fatalf("before anything:\n%s", diffLines(before, got))
	}
	var log []string
	for range steps {
		o := randomOp(r)
		err := o.onFS(x)
		if opt.Rootless && errors.Is(err, ErrUnsupported) {
			continue // a symlink with several names cannot be given an owner there
		}
		fsErr, diskErr := errnoOf(err), errnoOf(o.onDisk(d))
		log = append(log, fmt.Sprintf("%s: %v", o.name, diskErr))
		if (fsErr == 0) != (diskErr == 0) {
			t.Fatalf("%s: union %v, disk %v\n%s", o.name, fsErr, diskErr, strings.Join(log, "\n"))
		}
		if r.IntN(10) == 0 {
			log = append(log, "remount")
			x.remount()
		}
		if r.IntN(6) == 0 {
			if want, got := d.listing(), x.listing(); want != got {
				t.Fatalf("after %s:\n%s\n%s", o.name, diffLines(want, got), strings.Join(log, "\n"))
			}
		}
	}
	want := d.listing()
	if got := x.listing(); want != got {
		t.Fatalf("at the end:\n%s\n%s", diffLines(want, got), strings.Join(log, "\n"))
	}
	x.remount()
	if got := x.listing(); want != got {
		t.Fatalf("after remount:\n%s\n%s", diffLines(want, got), strings.Join(log, "\n"))
	}
	checkCandidates(t, x, before, want, log)
}

// checkCandidates sees that each path whose description changed is a candidate or
// below a removed one.
func checkCandidates(t *testing.T, x *fixture, before, after string, log []string) {
	t.Helper()
	have := map[string]bool{}
	last := ""
	for c, err := range x.fs.Candidates(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		if last != "" && c.Path != "." && strings.ReplaceAll(c.Path, "/", "\x01") <= strings.ReplaceAll(last, "/", "\x01") && last != "." {
			t.Fatalf("candidates out of order: %q after %q", c.Path, last)
		}
		last = c.Path
		have[c.Path] = true
	}
	for _, line := range strings.Split(diffLines(before, after), "\n") {
		if line == "" {
			continue
		}
		p := strings.Fields(line[2:])[0]
		ok := false
		for q := p; q != "."; q = filepath.Dir(q) {
			ok = ok || have[q]
		}
		if !ok && p != "." {
			t.Fatalf("%s changed and is no candidate\n%s\n%s", p, line, strings.Join(log, "\n"))
		}
	}
}

func diffLines(want, got string) string {
	w, g := map[string]bool{}, map[string]bool{}
	for _, l := range strings.Split(want, "\n") {
		w[l] = true
	}
	for _, l := range strings.Split(got, "\n") {
		g[l] = true
	}
	var out []string
	for l := range w {
		if !g[l] {
			out = append(out, "- "+l)
		}
	}
	for l := range g {
		if !w[l] {
			out = append(out, "+ "+l)
		}
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}
