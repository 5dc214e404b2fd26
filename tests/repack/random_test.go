package repack

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

var (
	stackRounds = flag.Int("stacks", 6, "random stacks of layers that are changed")
	stackSeed   = flag.Uint64("stackseed", 1, "the first one's seed")
)

// editor makes random changes of a tree.
type editor struct {
	t    *testing.T
	r    *rand.Rand
	root string
}

// paths are all in the tree but the root, in a fixed order.
func (e *editor) paths(keep func(d fs.DirEntry) bool) []string {
	var out []string
	err := filepath.WalkDir(e.root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && p != e.root && keep(d) {
			out = append(out, p)
		}
		return err
	})
	if err != nil {
		e.t.Fatal(err)
	}
	return out
}

func isDir(d fs.DirEntry) bool    { return d.IsDir() }
func isFile(d fs.DirEntry) bool   { return d.Type().IsRegular() }
func isNotDir(d fs.DirEntry) bool { return !d.IsDir() }
func isAnything(fs.DirEntry) bool { return true }

// some is one of the paths, or "".
func (e *editor) some(keep func(d fs.DirEntry) bool) string {
	list := e.paths(keep)
	if len(list) == 0 {
		return ""
	}
	return list[e.r.IntN(len(list))]
}

// fresh is a path in some directory; it may be taken.
func (e *editor) fresh() string {
	dir := e.root
	if list := e.paths(isDir); len(list) > 0 && e.r.IntN(4) > 0 {
		dir = list[e.r.IntN(len(list))]
	}
	names := []string{"a", "b", "c", "a-b", "a b", "ä", "d.x", strings.Repeat("long", 30), "\xff\xfe"}
	return filepath.Join(dir, names[e.r.IntN(len(names))])
}

func (e *editor) data() []byte {
	sizes := []int{0, 1, 100, 4096, 70000, 300000}
	b := make([]byte, sizes[e.r.IntN(len(sizes))])
	for i := range b {
		b[i] = byte(e.r.IntN(4)) + 'a'
	}
	return b
}

// edit makes one change. What cannot be done in the present state is no failure.
func (e *editor) edit() {
	op := e.r.IntN(22)
	err := e.try(op)
	var no unix.Errno
	// EACCES: of a sticky directory (fs.protected_regular), or a device.
	if err == nil || errors.As(err, &no) && (no == unix.EACCES || no == unix.EEXIST || no == unix.EISDIR || no == unix.ENOTDIR ||
		no == unix.ENOTEMPTY || no == unix.ENOENT || no == unix.EINVAL || no == unix.ENXIO || no == unix.ELOOP) {
		return
	}
	e.t.Fatalf("edit %d: %v", op, err)
}

func (e *editor) try(op int) error {
	any, file, to := e.some(isAnything), e.some(isFile), e.fresh()
	if any == "" || file == "" {
		op = 0
	}
	switch op {
	case 0, 1:
		return e.write(to)
	case 2:
		return e.write(file)
	case 3:
		return e.append(file)
	case 4:
		return os.Truncate(file, int64(e.r.IntN(5000)))
	case 5:
		return unix.Fchmodat(unix.AT_FDCWD, any, uint32(e.r.IntN(0o10000)), 0)
	case 6:
		return os.Lchown(any, e.r.IntN(3), e.r.IntN(70000))
	case 7:
		sec := int64(e.r.IntN(2_000_000_000))
		return unix.UtimesNanoAt(unix.AT_FDCWD, any, []unix.Timespec{{Sec: sec}, {Sec: sec, Nsec: 5}}, unix.AT_SYMLINK_NOFOLLOW)
	case 8, 9:
		return os.Mkdir(to, 0o755)
	case 10:
		return os.RemoveAll(any)
	case 11, 12, 13:
		return unix.Rename(any, to)
	case 14:
		return unix.Renameat2(unix.AT_FDCWD, any, unix.AT_FDCWD, e.some(isAnything), unix.RENAME_EXCHANGE)
	case 15, 16:
		return unix.Linkat(unix.AT_FDCWD, e.some(isNotDir), unix.AT_FDCWD, to, 0)
	case 17:
		return os.Symlink("../"+filepath.Base(any), to)
	case 18: // major 240 is for local use: nothing answers
		modes := []uint32{unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFSOCK}
		return unix.Mknod(to, modes[e.r.IntN(4)]|0o600, int(unix.Mkdev(240, uint32(1+e.r.IntN(300)))))
	case 19:
		return e.xattr(any)
	case 20:
		return e.revert(file)
	default:
		return e.copyOver(file)
	}
}

// write makes or overwrites a file. On a fifo it does not wait for a reader.
func (e *editor) write(p string) error {
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(e.data())
	return errors.Join(err, f.Close())
}

func (e *editor) append(p string) error {
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("more")
	return errors.Join(err, f.Close())
}

func (e *editor) xattr(p string) error {
	name := []string{"user.a", "trusted.b"}[e.r.IntN(2)]
	if e.r.IntN(3) == 0 {
		err := unix.Lremovexattr(p, name)
		if errors.Is(err, unix.ENODATA) {
			return nil
		}
		return onlyUnsupported(err)
	}
	return onlyUnsupported(unix.Lsetxattr(p, name, []byte(strings.Repeat("v\x00=\n", e.r.IntN(500)+1)), 0))
}

// onlyUnsupported forgives that symlinks and devices take no user attributes.
func onlyUnsupported(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// revert changes a file and puts everything back.
func (e *editor) revert(p string) error {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return err
	}
	data, err := os.ReadFile(p)
	if err != nil {
		return err
	}
	if err := os.WriteFile(p, []byte("something else"), 0); err != nil {
		return err
	}
	if err := os.WriteFile(p, data, 0); err != nil {
		return err
	}
	if err := unix.Fchmodat(unix.AT_FDCWD, p, st.Mode&0o7777, 0); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// copyOver lets a copy take the place of a file, as editors do.
func (e *editor) copyOver(p string) error {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return err
	}
	data, err := os.ReadFile(p)
	if err != nil {
		return err
	}
	temp := filepath.Join(e.root, "temporary")
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return err
	}
	if err := os.Lchown(temp, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmodat(unix.AT_FDCWD, temp, st.Mode&0o7777, 0); err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, temp, []unix.Timespec{st.Atim, st.Mtim}, 0); err != nil {
		return err
	}
	return os.Rename(temp, p)
}

func TestRandomChangesComeOutOfStockUmociAsTheyWereMounted(t *testing.T) {
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	for seed := range uint64(rounds) {
		r := rand.New(rand.NewPCG(seed, 7))
		f := newFixture(t, func(dir string) {
			e := &editor{t: t, r: r, root: dir}
			for range 150 {
				if op := r.IntN(22); op != 14 {
					e.edit()
				}
			}
			for _, p := range e.paths(func(d fs.DirEntry) bool { return d.Type() == fs.ModeSocket }) {
				if err := os.Remove(p); err != nil {
					t.Fatal(err)
				}
			}
		})
		f.sameAsStock("base")
		e := &editor{t: t, r: r, root: f.root("")}
		for round := range 5 {
			start := time.Now()
			for range 1 + r.IntN(40) {
				e.edit()
			}
			switch r.IntN(4) {
			case 0:
				f.remount()
			case 1:
				f.umount()
			}
			args := []string{"--full-check", "--compress", []string{"gzip", "none"}[r.IntN(2)]}
			refresh := r.IntN(2) == 0
			if refresh {
				args = append(args, "--refresh-bundle")
			}
			tag, _ := f.repack(args...)
			if !f.mounted() {
				run(t, program, "mount", f.bundle)
			}
			f.sameAsStock(tag)
			if refresh {
				if _, said := f.repack("--full-check", "--refresh-bundle"); !strings.Contains(said, "nothing has changed") {
					t.Fatalf("seed %d, round %d: a repack after a refresh found a change: %s\n%s", seed, round, said, run(t, program, "diff", f.bundle))
				}
			}
			t.Logf("seed %d, round %d: %v", seed, round, time.Since(start).Round(time.Millisecond))
		}
		f.umount()
	}
}

// As above, of stacks of layers as they are: whose directories have no entries, whose files
// were made, removed and linked in different layers, with ids, times, attributes and
// names of all sorts.
func TestRandomStacksChangedComeOutOfStockUmociAsTheyWereMounted(t *testing.T) {
	rounds := imagetest.Fewer(*stackRounds)
	compared := 0
	for seed := *stackSeed; seed < *stackSeed+uint64(rounds); seed++ {
		layers, err := imagetest.RandomStack(seed, 1+int(seed%5), false).Plain()
		must(t, err)
		dir := t.TempDir()
		f := &fixture{t: t, layout: imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: layers}), bundle: filepath.Join(dir, "bundle")}
		if _, err := try(t, "umoci", "raw", "unpack", "--image", f.layout+":base", filepath.Join(dir, "rootfs")); err != nil {
			continue // a file above an entry, which 0.4.7 refuses
		}
		compared++
		f.mount(f.layout + ":base")
		e := &editor{t: t, r: rand.New(rand.NewPCG(seed, 9)), root: f.root("")}
		for round := range 3 {
			for range 1 + e.r.IntN(25) {
				e.edit()
			}
			if e.r.IntN(3) == 0 {
				f.remount()
			}
			tag, _ := f.repack("--full-check")
			start := time.Now()
			stock, ours := imagetest.MustReadTree(t, f.unpack(tag)), imagetest.MustReadTree(t, f.root(""))
			stock.MaskClock(ours, start)
			imagetest.SameTree(t, fmt.Sprintf("seed %d, round %d: %s", seed, round, tag), ours, stock, imagetest.CompareOptions{Seconds: true, NoSockets: true})
			if t.Failed() {
				t.FailNow()
			}
		}
		f.umount()
	}
	if compared < rounds/2 {
		t.Errorf("only %d of %d stacks were compared", compared, rounds)
	}
}
