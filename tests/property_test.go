package tests

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// Random operations through the mount: whatever they were, the diff is what two
// listings of the tree differ by, and the layer that stock umoci applies gives the
// tree. UMOCI_MOUNT_SEED=N runs seed N alone; UMOCI_MOUNT_SEEDS=N runs that many.
func TestRandomOperationsAreInTheDiffAndInTheLayer(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "umoci")
	seeds := []uint64{1, 2, 3, 4, 5, 6}
	if n, err := strconv.ParseUint(os.Getenv("UMOCI_MOUNT_SEED"), 10, 64); err == nil {
		seeds = []uint64{n}
	} else if n, err := strconv.Atoi(os.Getenv("UMOCI_MOUNT_SEEDS")); err == nil {
		seeds = nil
		for i := range n {
			seeds = append(seeds, uint64(i)+1)
		}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { randomRun(t, seed) })
	}
}

func randomRun(t *testing.T, seed uint64) {
	const operations = 400
	rnd := rand.New(rand.NewPCG(seed, 0))
	layout := imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: randomLayers(rnd)})
	l := &loop{layout: layout, tag: "base"}
	b := env.Mount(t, l.image("base"))
	base := imagetest.MustReadTree(t, b.Rootfs())
	imagetest.SameTree(t, "mounted tree against stock umoci's", l.stock(t, "base"), base, imagetest.CompareOptions{DirNlink: true})

	ops := &randomOps{t: t, rnd: rnd, root: b.Rootfs()}
	for i := range operations {
		if i == operations/2 {
			ops.closeAll()
			b.Umount(t)
			b.Remount(t)
		}
		ops.one()
		if t.Failed() {
			t.Fatalf("at operation %d:\n%s", i, strings.Join(ops.log, "\n"))
		}
	}
	ops.closeAll()
	edited := imagetest.MustReadTree(t, b.Rootfs())
	checkDiff(t, b, base, edited)
	env.Must(t, "repack", "--full-check", "--image", l.image("new"), b.Path)
	b.Umount(t)
	imagetest.SameTree(t, "stock umoci's tree of the layer", edited, l.stock(t, "new"),
		imagetest.CompareOptions{Seconds: true, NoSockets: true})
	again := env.Mount(t, l.image("new"))
	imagetest.SameTree(t, "mounted tree of the layer", edited, imagetest.MustReadTree(t, again.Rootfs()),
		imagetest.CompareOptions{Seconds: true, NoSockets: true, DirNlink: true})
	again.Umount(t)
	if t.Failed() {
		t.Logf("operations:\n%s", strings.Join(ops.log, "\n"))
	}
}

// randomNames are few, so that operations meet.
var randomNames = []string{"a", "b", "c", "d", "é", "long-" + strings.Repeat("x", 200)}

// randomPath is of depth 1 to 4.
func randomPath(rnd *rand.Rand) string {
	parts := make([]string, 1+rnd.IntN(4))
	for i := range parts {
		parts[i] = randomNames[rnd.IntN(len(randomNames))]
	}
	return strings.Join(parts, "/")
}

// randomLayers are three layers with the names that the operations use. Each
// entry's parents are entries too.
func randomLayers(rnd *rand.Rand) []imagetest.Layer {
	var out []imagetest.Layer
	kinds := []string{imagetest.Gzip, imagetest.Plain} // stock umoci 0.4.7 reads these
	for n := range 3 {
		text := strings.Builder{}
		if n == 0 {
			text.WriteString("dir . 0755\n")
		}
		kind := map[string]string{} // of this layer's paths
		var files []string
		for range 150 {
			p := randomPath(rnd)
			if kind[p] != "" || !randomParents(&text, kind, p) {
				continue
			}
			line, isFile := randomEntry(rnd, p, files)
			text.WriteString(line + "\n")
			kind[p] = strings.Fields(line)[0]
			if isFile {
				files = append(files, p)
			}
		}
		if n > 0 {
			for range 40 {
				if p := randomPath(rnd); kind[p] == "" && kind[filepath.Dir(p)] == "dir" {
					text.WriteString("whiteout " + strconv.Quote(p) + "\n")
				}
			}
		}
		out = append(out, imagetest.Layer{Text: text.String(), Compress: kinds[rnd.IntN(2)]})
	}
	return out
}

// randomParents writes the directories above p that the layer lacks; false where
// one of them is something else.
func randomParents(text *strings.Builder, kind map[string]string, p string) bool {
	var parents []string
	for dir := filepath.Dir(p); dir != "."; dir = filepath.Dir(dir) {
		if k := kind[dir]; k != "" && k != "dir" {
			return false
		}
		parents = append(parents, dir)
	}
	slices.Reverse(parents)
	for _, dir := range parents {
		if kind[dir] == "" {
			fmt.Fprintf(text, "dir %q 0755\n", dir)
			kind[dir] = "dir"
		}
	}
	return true
}

func randomEntry(rnd *rand.Rand, p string, files []string) (line string, isFile bool) {
	switch n := rnd.IntN(10); {
	case n < 5:
		return fmt.Sprintf("file %q %#o @%d uid=%d xattr:user.n=%d", p, 0o600+rnd.IntN(0o200), rnd.IntN(30_000), rnd.IntN(3), rnd.IntN(9)), true
	case n < 7:
		return fmt.Sprintf("dir %q %#o gid=%d", p, 0o700+rnd.IntN(0o100), rnd.IntN(3)), false
	case n < 8 && len(files) > 0:
		return fmt.Sprintf("hardlink %q %q", p, files[rnd.IntN(len(files))]), false
	case n < 9:
		return fmt.Sprintf("symlink %q %q", p, randomNames[rnd.IntN(4)]), false
	}
	return fmt.Sprintf("fifo %q 0644", p), false
}

// randomOps changes a mounted tree. Operations that cannot be are refused, as on
// any file system; only errors that such a refusal does not have fail the test.
type randomOps struct {
	t    *testing.T
	rnd  *rand.Rand
	root string
	open []*os.File
	log  []string

	known []string // paths of the tree, as they were a few operations ago
	dirs  []string // those of them that are directories
}

// refusals are what operations on the wrong kind of object, or on none, give.
var refusals = []error{
	unix.ENOENT, unix.EEXIST, unix.ENOTDIR, unix.EISDIR, unix.ENOTEMPTY, unix.EINVAL, unix.ELOOP, unix.ENODATA,
	unix.ENXIO, // open of a fifo for writing
	unix.EPERM, // user attributes of symlinks and fifos, hard links of directories
}

func (o *randomOps) closeAll() {
	for _, f := range o.open {
		if err := f.Close(); err != nil {
			o.t.Errorf("close %s: %v", f.Name(), err)
		}
	}
	o.open = nil
}

// look lists the tree anew.
func (o *randomOps) look() {
	o.t.Helper()
	o.known, o.dirs = nil, []string{o.root}
	err := filepath.WalkDir(o.root, func(name string, d fs.DirEntry, err error) error {
		if err == nil && name != o.root {
			o.known = append(o.known, name)
			if d.IsDir() {
				o.dirs = append(o.dirs, name)
			}
		}
		return err
	})
	if err != nil {
		o.t.Errorf("list the tree: %v", err)
	}
}

// path is most of the time one that exists.
func (o *randomOps) path() string {
	if len(o.known) == 0 || o.rnd.IntN(10) == 0 {
		return filepath.Join(o.root, randomPath(o.rnd))
	}
	return o.known[o.rnd.IntN(len(o.known))]
}

// place is a name in a directory: most of the time nothing has it.
func (o *randomOps) place() string {
	return filepath.Join(o.dirs[o.rnd.IntN(len(o.dirs))], randomNames[o.rnd.IntN(len(randomNames))])
}

func (o *randomOps) one() {
	o.t.Helper()
	if len(o.log)%10 == 0 {
		o.look()
	}
	// p of a making operation is a place, and that of others a path.
	const place = true
	ops := []struct {
		name string
		p, q bool
		run  func(p, q string) error
	}{
		{"write", false, false, o.write}, {"write", place, false, o.write}, {"append", false, false, o.append},
		{"truncate", false, false, o.truncate}, {"keep open", false, false, o.keepOpen},
		{"write to an open file", false, false, o.writeOpen},
		{"mkdir", place, false, func(p, _ string) error { return os.Mkdir(p, 0o755) }},
		{"mkdir", place, false, func(p, _ string) error { return os.Mkdir(p, 0o755) }},
		{"remove", false, false, func(p, _ string) error { return os.Remove(p) }},
		{"remove all", place, false, removeAll},
		{"rename", false, place, os.Rename}, {"rename", false, place, os.Rename}, {"rename", false, false, os.Rename},
		{"link", false, place, os.Link}, {"link", false, place, os.Link}, {"exchange", false, false, exchange},
		{"symlink", place, false, func(p, q string) error { return os.Symlink(filepath.Base(q), p) }},
		{"chmod", false, false, func(p, _ string) error { return unix.Fchmodat(unix.AT_FDCWD, p, uint32(o.rnd.IntN(0o10000)), 0) }},
		{"chown", false, false, func(p, _ string) error { return os.Lchown(p, o.rnd.IntN(5), o.rnd.IntN(5)) }},
		{"utimes", false, false, o.utimes}, {"set attribute", false, false, o.setXattr},
		{"remove attribute", false, false, func(p, _ string) error { return unix.Lremovexattr(p, "user.n") }},
		{"mkfifo", place, false, func(p, _ string) error { return unix.Mkfifo(p, 0o600) }},
		{"mknod", place, false, func(p, _ string) error {
			return unix.Mknod(p, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(1+o.rnd.IntN(300)))))
		}},
		{"punch", false, false, o.punch}, {"copy", false, place, o.copy}, {"unnamed file", place, false, o.unnamed},
	}
	op, p, q := ops[o.rnd.IntN(len(ops))], o.path(), o.path()
	if op.p {
		p = o.place()
	}
	if op.q {
		q = o.place()
	}
	err := op.run(p, q)
	rel := func(s string) string { return strings.ReplaceAll(s, strings.Repeat("x", 200), "x…") }
	o.log = append(o.log, fmt.Sprintf("%s %s %s: %v", op.name, rel(p[len(o.root):]), rel(q[len(o.root):]), err))
	if err == nil {
		return
	}
	for _, refusal := range refusals {
		if errors.Is(err, refusal) {
			return
		}
	}
	o.t.Errorf("%s %s %s: %v", op.name, p, q, err)
}

// removeAll is os.RemoveAll where the parent is a directory: that opens the parent,
// and would wait for a writer of a fifo.
func removeAll(p, _ string) error {
	if info, err := os.Stat(filepath.Dir(p)); err != nil || !info.IsDir() {
		return unix.ENOTDIR
	}
	return os.RemoveAll(p)
}

func exchange(p, q string) error {
	return unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, q, unix.RENAME_EXCHANGE)
}

// openFile opens without waiting for the other side of a fifo.
func (o *randomOps) openFile(p string, flags int) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, unix.EINVAL
	}
	return os.OpenFile(p, flags|unix.O_NONBLOCK, 0o644)
}

func (o *randomOps) bytes() []byte {
	b := make([]byte, 1+o.rnd.IntN(20_000))
	for i := range b {
		b[i] = byte(o.rnd.Uint32())
	}
	return b
}

func closeAfter(f *os.File, err error) error { return errors.Join(err, f.Close()) }

func (o *randomOps) write(p, _ string) error {
	f, err := o.openFile(p, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(o.bytes(), o.rnd.Int64N(50_000))
	return closeAfter(f, err)
}

func (o *randomOps) append(p, _ string) error {
	f, err := o.openFile(p, os.O_WRONLY|os.O_APPEND)
	if err != nil {
		return err
	}
	_, err = f.Write(o.bytes())
	return closeAfter(f, err)
}

func (o *randomOps) truncate(p, _ string) error {
	f, err := o.openFile(p, os.O_WRONLY)
	if err != nil {
		return err
	}
	return closeAfter(f, f.Truncate(o.rnd.Int64N(60_000)))
}

func (o *randomOps) keepOpen(p, _ string) error {
	f, err := o.openFile(p, os.O_RDWR)
	if err == nil {
		o.open = append(o.open, f)
	}
	return err
}

// writeOpen writes to a file that was opened some time ago: it may have been
// renamed, unlinked or copied up since.
func (o *randomOps) writeOpen(string, string) error {
	if len(o.open) == 0 {
		return nil
	}
	_, err := o.open[o.rnd.IntN(len(o.open))].WriteAt(o.bytes(), o.rnd.Int64N(50_000))
	return err
}

func (o *randomOps) utimes(p, _ string) error {
	at := unix.NsecToTimespec(time.Unix(1_500_000_000+o.rnd.Int64N(1000), o.rnd.Int64N(1e9)).UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
}

func (o *randomOps) setXattr(p, _ string) error {
	names := []string{"user.n", "user.m", "trusted.t", "user.overlay.opaque"}
	return unix.Lsetxattr(p, names[o.rnd.IntN(len(names))], []byte(strconv.Itoa(o.rnd.IntN(100))), 0)
}

func (o *randomOps) punch(p, _ string) error {
	f, err := o.openFile(p, os.O_RDWR)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, o.rnd.Int64N(20_000), 1+o.rnd.Int64N(20_000))
	return closeAfter(f, err)
}

func (o *randomOps) copy(p, q string) error {
	from, err := o.openFile(p, os.O_RDONLY)
	if err != nil {
		return err
	}
	to, err := o.openFile(q, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return closeAfter(from, err)
	}
	_, err = unix.CopyFileRange(int(from.Fd()), nil, int(to.Fd()), nil, 10_000, 0)
	return errors.Join(err, from.Close(), to.Close())
}

// unnamed makes a file without a name, and gives it one.
func (o *randomOps) unnamed(p, _ string) error {
	fd, err := unix.Open(filepath.Dir(p), unix.O_TMPFILE|unix.O_RDWR, 0o640)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "unnamed")
	if _, err := f.Write(o.bytes()); err != nil {
		return closeAfter(f, err)
	}
	return closeAfter(f, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, p, unix.AT_SYMLINK_FOLLOW))
}
