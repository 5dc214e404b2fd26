package crash

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// smallDisk mounts a file system of some size, in kB, for the life of a test.
func smallDisk(t *testing.T, dir string, kb int) {
	t.Helper()
	newDisk(t, dir, kb, "mkfs.ext4", "-q", "-m", "0", "-I", "256", "-O", "^has_journal")
}

// quotaDisk mounts a file system at dir, of which dir/limited may take some megabytes.
func quotaDisk(t *testing.T, dir string, limitMB int) {
	t.Helper()
	imagetest.NeedTools(t, "btrfs")
	imagetest.NeedFilesystem(t, "btrfs")
	newDisk(t, dir, 256<<10, "mkfs.btrfs", "-q")
	limited := filepath.Join(dir, "limited")
	env.MustCommand(t, "btrfs", "quota", "enable", dir)
	env.MustCommand(t, "btrfs", "subvolume", "create", limited)
	env.MustCommand(t, "btrfs", "qgroup", "limit", strconv.Itoa(limitMB)+"M", limited)
}

// newDisk mounts what mkfs makes for the life of a test.
func newDisk(t *testing.T, dir string, kb int, mkfs ...string) {
	t.Helper()
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, mkfs[0])
	image := dir + ".image"
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(image, nil, 0o600), os.Truncate(image, int64(kb)<<10)); err != nil {
		t.Fatal(err)
	}
	env.MustCommand(t, mkfs[0], append(mkfs[1:], image)...)
	env.MustCommand(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// fill takes all the room of a disk but some, and returns what gives it back.
func fill(t *testing.T, dir string, leave int64) (free func()) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "fill")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	take := int64(st.Bavail)*st.Bsize - leave
	for err = unix.ENOSPC; errors.Is(err, unix.ENOSPC) && take > 0; take -= st.Bsize { // its own extents take room too
		err = unix.Fallocate(int(f.Fd()), 0, 0, take)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

func debris(t *testing.T, bundle string) []string {
	t.Helper()
	var out []string
	entries, err := os.ReadDir(filepath.Join(bundle, "work"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "whiteout" {
			out = append(out, e.Name())
		}
	}
	return out
}

func TestAFullDiskReachesTheProgramAndLeavesTheTreeRight(t *testing.T) {
	imagetest.NeedFuse(t)
	disk := filepath.Join(t.TempDir(), "disk")
	smallDisk(t, disk, 20<<10)
	layout := imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: baseLayers})
	for _, flags := range [][]string{nil, {"--passthrough"}} {
		b := env.MountAt(t, filepath.Join(disk, "bundle"+strconv.Itoa(len(flags))), layout+":base", flags...)
		large := filepath.Join(b.Rootfs(), "a/deep/large")
		before := imagetest.MustReadTree(t, b.Rootfs())
		if err := os.WriteFile(filepath.Join(b.Rootfs(), "a/warm"), nil, 0o644); err != nil { // makes what directories it takes
			t.Fatal(err)
		}
		free := fill(t, disk, 100<<10)
		f, err := os.OpenFile(large, os.O_RDWR, 0)
		if err == nil { // copied up at the first write
			_, err = f.WriteAt([]byte("x"), 0)
			_ = f.Close()
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%v: copy-up on a full disk: %v", flags, err)
		}
		err = os.WriteFile(filepath.Join(b.Rootfs(), "a/new"), make([]byte, 1<<20), 0o644)
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%v: write on a full disk: %v", flags, err)
		}
		if err := errors.Join(os.Remove(filepath.Join(b.Rootfs(), "a/new")), os.Remove(filepath.Join(b.Rootfs(), "a/warm"))); err != nil {
			t.Errorf("%v: remove on a full disk: %v", flags, err)
		}
		if left := debris(t, b.Path); len(left) > 0 {
			t.Errorf("%v: left in work/: %v", flags, left)
		}
		imagetest.SameTree(t, "the tree on a full disk", before, imagetest.MustReadTree(t, b.Rootfs()), imagetest.CompareOptions{
			IgnoreTime: func(p string) bool { return p == "a" },
		})
		free()
		if err := os.WriteFile(large, []byte("again"), 0o644); err != nil {
			t.Errorf("%v: with room again: %v", flags, err)
		}
		b.Umount(t)
		if err := os.RemoveAll(b.Path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAQuotaReachesTheProgramAndLeavesTheTreeRight(t *testing.T) {
	imagetest.NeedFuse(t)
	disk := filepath.Join(t.TempDir(), "disk")
	quotaDisk(t, disk, 8)
	layout := imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: baseLayers})
	for _, flags := range [][]string{nil, {"--passthrough"}} {
		b := env.MountAt(t, filepath.Join(disk, "limited/bundle"+strconv.Itoa(len(flags))), layout+":base", flags...)
		before := imagetest.MustReadTree(t, b.Rootfs())
		much := make([]byte, 64<<10)
		f, err := os.Create(filepath.Join(b.Rootfs(), "a/new"))
		if err != nil {
			t.Fatal(err)
		}
		written := 0
		for err == nil && written < 64<<20 {
			var n int
			n, err = f.Write(much)
			written += n
		}
		if !errors.Is(err, unix.EDQUOT) {
			t.Errorf("%v: %d bytes where 8 MB are allowed: %v", flags, written, err)
		}
		large := filepath.Join(b.Rootfs(), "a/deep/large")
		if err := appendByte(large); !errors.Is(err, unix.EDQUOT) {
			t.Errorf("%v: copy-up beyond the quota: %v", flags, err)
		}
		if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
			t.Errorf("%v: remove beyond the quota: %v", flags, err)
		}
		if left := debris(t, b.Path); len(left) > 0 {
			t.Errorf("%v: left in work/: %v", flags, left)
		}
		imagetest.SameTree(t, "the tree at its quota", before, imagetest.MustReadTree(t, b.Rootfs()), imagetest.CompareOptions{
			IgnoreTime: func(p string) bool { return p == "a" },
		})
		unix.Sync() // what was removed counts until it is committed
		if err := appendByte(large); err != nil {
			t.Errorf("%v: below the quota again: %v", flags, err)
		}
		b.Umount(t)
		if err := os.RemoveAll(b.Path); err != nil {
			t.Fatal(err)
		}
		unix.Sync()
	}
}

// appendByte makes a file a byte longer.
func appendByte(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte("x"))
	return errors.Join(err, f.Close())
}

func TestARepackOntoAFullDiskLeavesTheLayoutAsItWas(t *testing.T) {
	imagetest.NeedFuse(t)
	disk := filepath.Join(t.TempDir(), "disk")
	smallDisk(t, disk, 20<<10)
	layout := filepath.Join(disk, "img")
	if err := imagetest.WriteLayout(layout, imagetest.Image{Tag: "base", Layers: baseLayers}); err != nil {
		t.Fatal(err)
	}
	b := env.Mount(t, layout+":base")
	env.MustCommand(t, "dd", "if=/dev/urandom", "of="+filepath.Join(b.Rootfs(), "random"), "bs=1M", "count=8", "status=none")
	before := imagetest.MustReadTree(t, layout)
	free := fill(t, disk, 3<<20)
	r := env.Run(t, "repack", "--image", layout+":new", b.Path)
	if r.Code != imagetest.CodeSpace || !strings.Contains(r.Stderr, "space") || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("exit %d: %s", r.Code, r.Stderr)
	}
	after := imagetest.MustReadTree(t, layout)
	delete(after, ".lock-umoci-mount")
	delete(before, ".lock-umoci-mount")
	imagetest.SameTree(t, "the layout", before, after, imagetest.CompareOptions{DirNlink: true, IgnoreTime: func(string) bool { return true }})
	free()
	env.Must(t, "repack", "--image", layout+":new", b.Path)
	env.Must(t, "fsck", "--layout", layout)
	b.Umount(t)
}

func TestADaemonOutOfDescriptorsSaysSoAndGoesOn(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "prlimit")
	b := env.Mount(t, imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: baseLayers})+":base", "--passthrough")
	pid := strconv.Itoa(daemonOf(t, b.Path))
	const files = 60
	for i := range files {
		if err := os.WriteFile(filepath.Join(b.Rootfs(), fmt.Sprint("f", i)), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir("/proc/" + pid + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	env.MustCommand(t, "prlimit", "--pid", pid, fmt.Sprintf("--nofile=%d:", len(entries)+20))
	var open []*os.File
	for i := range files {
		f, oerr := os.OpenFile(filepath.Join(b.Rootfs(), fmt.Sprint("f", i)), os.O_RDWR, 0)
		if oerr != nil {
			err = oerr
			break
		}
		open = append(open, f)
	}
	if !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) {
		t.Errorf("after %d of %d files: %v", len(open), files, err)
	}
	for _, f := range open {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if data, err := os.ReadFile(filepath.Join(b.Rootfs(), "f59")); err != nil || string(data) != "x" {
		t.Errorf("after that: %q, %v", data, err)
	}
	b.Umount(t)
}

// A file that the kernel opened by itself needs no descriptor but while it is used.
func TestADaemonOutOfDescriptorsServesFilesThatTheKernelOpened(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "prlimit")
	b := env.Mount(t, imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: baseLayers})+":base")
	pid := strconv.Itoa(daemonOf(t, b.Path))
	entries, err := os.ReadDir("/proc/" + pid + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	env.MustCommand(t, "prlimit", "--pid", pid, fmt.Sprintf("--nofile=%d:", len(entries)+20))
	var open []*os.File
	for i := range 60 {
		f, err := os.Create(filepath.Join(b.Rootfs(), fmt.Sprint("f", i)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		open = append(open, f)
	}
	for round := range 2 {
		for i, f := range open {
			if _, err := f.WriteString(fmt.Sprintf("%d of %d;", round, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, f := range open {
		want := fmt.Sprintf("0 of %d;1 of %d;", i, i)
		if data, err := os.ReadFile(f.Name()); err != nil || string(data) != want {
			t.Errorf("%s: %q, %v", f.Name(), data, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	b.Umount(t)
}

// What is kept open only to be quick leaves room for what is asked for.
func TestAMountWithFewDescriptorsTakesManyDirectoriesAndFiles(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "prlimit")
	b := env.Mount(t, imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: baseLayers})+":base")
	b.Umount(t)
	few := func(args ...string) string {
		t.Helper()
		return env.MustCommand(t, "prlimit", append([]string{"--nofile=128:128", env.Bin}, args...)...)
	}
	few("mount", b.Path)
	const directories = 300
	for i := range directories {
		sub := filepath.Join(b.Rootfs(), fmt.Sprint("d", i))
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, "f"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	daemonOf(t, b.Path)
	changed := few("diff", b.Path)
	few("umount", b.Path)
	if again := few("diff", b.Path); again != changed || strings.Count(changed, "\n") < 2*directories {
		t.Errorf("mounted:\n%s\nand not:\n%s", changed, again)
	}
}

func TestAMountWithFewDescriptorsTakesManyFilesWithNoName(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "prlimit")
	b := env.Mount(t, imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: baseLayers})+":base")
	b.Umount(t)
	env.MustCommand(t, "prlimit", "--nofile=128:128", env.Bin, "mount", b.Path)
	nameless := func(i int, make func(string) error, flags int) *os.File {
		t.Helper()
		name := filepath.Join(b.Rootfs(), fmt.Sprint("n", i))
		if err := make(name); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(name, flags, 0)
		if err == nil {
			err = os.Remove(name)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	var files, dirs []*os.File
	for i := range 200 {
		files = append(files, nameless(i, func(name string) error { return os.WriteFile(name, nil, 0o600) }, os.O_RDWR))
		dirs = append(dirs, nameless(i, func(name string) error { return os.Mkdir(name, 0o700) }, os.O_RDONLY))
	}
	for i, f := range files {
		var got [3]byte
		if _, err := fmt.Fprintf(f, "%03d", i); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(got[:], 0); err != nil || string(got[:]) != fmt.Sprintf("%03d", i) {
			t.Errorf("file %d: %q, %v", i, got, err)
		}
	}
	for i, f := range dirs {
		if err := f.Chmod(0o711); err != nil {
			t.Errorf("directory %d: %v", i, err)
		}
	}
	for _, f := range slices.Concat(files, dirs) {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Nlink != 0 {
			t.Errorf("%s has %d links, %v", f.Name(), st.Nlink, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	b.Umount(t)
	if left, err := os.ReadDir(filepath.Join(b.Path, "work")); err != nil || len(left) > 1 { // the whiteout
		t.Errorf("%d objects are left in work/, %v", len(left), err)
	}
}

// A limit of the shell that mounts is not that of programs in the mount.
func TestAMountHasNoLimitOnTheLengthOfFiles(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "prlimit")
	b := env.Mount(t, imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: baseLayers})+":base")
	b.Umount(t)
	env.MustCommand(t, "prlimit", "--fsize=100000:", env.Bin, "mount", b.Path)
	if err := os.WriteFile(filepath.Join(b.Rootfs(), "long"), make([]byte, 200_000), 0o644); err != nil {
		t.Error(err)
	}
	b.Umount(t)
}

// daemonOf is the process that serves a bundle.
func daemonOf(t *testing.T, bundle string) int {
	t.Helper()
	w := &world{t: t, bundle: bundle, dir: env.Dir}
	return w.daemon()
}

func TestADamagedBlobIsEIOForItsFilesAlone(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	layout := imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: baseLayers})
	t.Setenv("UMOCI_MOUNT_CACHE", filepath.Join(t.TempDir(), "cache"))
	b := env.Mount(t, layout+":base")
	_, m, _ := imagetest.Manifest(t, layout, "base")
	name := imagetest.BlobPath(layout, m.Layers[0].Digest)
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(filepath.Join(b.Rootfs(), "a/deep/large")); !errors.Is(err, unix.EIO) {
		t.Errorf("a file of the damaged layer: %v", err)
	}
	for _, p := range []string{"a/four", "d/one"} {
		if _, err := os.ReadFile(filepath.Join(b.Rootfs(), p)); err != nil {
			t.Errorf("a file of the other layer: %v", err)
		}
	}
	if _, err := os.ReadDir(filepath.Join(b.Rootfs(), "a/deep")); err != nil {
		t.Errorf("a directory of the damaged layer: %v", err)
	}
	if log := b.Log(); !strings.Contains(log, m.Layers[0].Digest.String()) {
		t.Errorf("the log does not name the layer:\n%s", log)
	}
	r := env.Run(t, "fsck", "--layout", layout)
	if r.Code != imagetest.CodeImage || !strings.Contains(r.Stdout+r.Stderr, m.Layers[0].Digest.String()) {
		t.Errorf("fsck: exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	b.Umount(t)
}

func TestACacheCutUnderAMountIsEIOAndMadeAgain(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	cache := filepath.Join(t.TempDir(), "cache")
	t.Setenv("UMOCI_MOUNT_CACHE", cache)
	b := env.Mount(t, imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: baseLayers})+":base")
	before := imagetest.MustReadTree(t, b.Rootfs())
	pid := daemonOf(t, b.Path)
	err := filepath.WalkDir(cache, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return os.Truncate(p, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	env.MustCommand(t, "sh", "-c", `echo 2 >/proc/sys/vm/drop_caches; ls -lR "$0" >/dev/null 2>&1; cat "$0"/*/* >/dev/null 2>&1; true`, b.Rootfs())
	if err := unix.Kill(pid, 0); err != nil {
		t.Fatalf("the daemon: %v\n%s", err, b.Log())
	}
	b.Umount(t)
	b.Remount(t)
	imagetest.SameTree(t, "the next mount", before, imagetest.MustReadTree(t, b.Rootfs()), imagetest.CompareOptions{})
	b.Umount(t)
}

func TestRootsDaemonHasFewCapabilitiesAndNoNetworkSocket(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	b := env.Mount(t, imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: baseLayers})+":base")
	dir := fmt.Sprintf("/proc/%d/", daemonOf(t, b.Path))
	status, err := os.ReadFile(dir + "status")
	if err != nil {
		t.Fatal(err)
	}
	const want = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
		1<<unix.CAP_MKNOD | 1<<unix.CAP_SETFCAP | 1<<unix.CAP_SYS_ADMIN
	for _, line := range []string{fmt.Sprintf("CapPrm:\t%016x", want), fmt.Sprintf("CapBnd:\t%016x", want), "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !bytes.Contains(status, []byte(line+"\n")) {
			t.Errorf("no %q in\n%s", line, status)
		}
	}
	for _, name := range []string{"tcp", "tcp6", "udp", "udp6", "raw", "packet", "netlink"} {
		if inodes := socketsOf(t, dir, name); len(inodes) > 0 {
			t.Errorf("%s sockets: %v", name, inodes)
		}
	}
	b.Umount(t)
}

// socketsOf are the sockets of a family that a process has open.
func socketsOf(t *testing.T, proc, family string) []string {
	t.Helper()
	table, err := os.ReadFile(proc + "net/" + family)
	if err != nil {
		return nil // a family that the kernel lacks
	}
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, fd := range fds {
		link, err := os.Readlink(proc + "fd/" + fd.Name())
		inode, ok := strings.CutPrefix(link, "socket:[")
		if err == nil && ok && bytes.Contains(table, []byte(" "+strings.TrimSuffix(inode, "]")+" ")) {
			out = append(out, inode)
		}
	}
	return out
}

func TestOthersCannotReadABundleOrTheCache(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "setpriv")
	w := newWorld(t, baseLayers, false)
	script := `for p in bundle/.umoci-mount/control bundle/.umoci-mount/log bundle/upper bundle/rootfs; do
		if [ -e "$0/$p" ]; then echo "sees $p"; fi; done`
	out := env.MustCommand(t, "setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "sh", "-c", script, w.dir)
	if out != "" {
		t.Errorf("another user %s", out)
	}
	var list []json.RawMessage
	status := env.MustCommand(t, "setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", env.Bin, "status", "--json")
	if err := json.Unmarshal([]byte(status), &list); err != nil || len(list) > 0 {
		t.Errorf("another user's status: %s, %v", status, err)
	}
	w.um("umount")
}

// The room grows block by block until everything fits: whatever a copy-up, a hard link
// over one, a rename of a directory of the layers or a whiteout lacked, the tree is as
// before it or as after it.
func TestEachAmountOfRoomGivesAWholeChangeOrNone(t *testing.T) {
	imagetest.NeedFuse(t)
	disk := filepath.Join(t.TempDir(), "disk")
	smallDisk(t, disk, 20<<10)
	layout := imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: baseLayers})
	changes := map[string]func(root string) error{
		"copy-up": func(root string) error {
			f, err := os.OpenFile(filepath.Join(root, "a/deep/large"), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			return f.Close()
		},
		"link":   func(root string) error { return os.Link(filepath.Join(root, "a/one"), filepath.Join(root, "b/linked")) },
		"rename": func(root string) error { return os.Rename(filepath.Join(root, "b"), filepath.Join(root, "a/moved")) },
		"remove": func(root string) error { return os.Remove(filepath.Join(root, "b/one")) },
		"attributes": func(root string) error {
			return unix.Setxattr(filepath.Join(root, "a/one"), "user.long", bytes.Repeat([]byte("v"), 600), 0)
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			b := env.MountAt(t, filepath.Join(disk, name), layout+":base")
			before := imagetest.MustReadTree(t, b.Rootfs())
			refused := 0
			for leave := int64(0); ; leave += 4096 {
				if leave > 8<<20 {
					t.Fatal("it never fits")
				}
				free := fill(t, disk, leave)
				err := change(b.Rootfs())
				if err == nil {
					free()
					break
				}
				refused++
				if !errors.Is(err, unix.ENOSPC) {
					t.Errorf("with %d bytes of room: %v", leave, err)
				}
				imagetest.SameTree(t, fmt.Sprintf("the tree with %d bytes of room", leave), before, imagetest.MustReadTree(t, b.Rootfs()), imagetest.CompareOptions{})
				if left := debris(t, b.Path); len(left) > 0 {
					t.Errorf("with %d bytes of room, left in work/: %v", leave, left)
				}
				free()
				if t.Failed() {
					break
				}
			}
			after := imagetest.MustReadTree(t, b.Rootfs())
			b.Umount(t)
			b.Remount(t)
			imagetest.SameTree(t, "mounted again", after, imagetest.MustReadTree(t, b.Rootfs()), imagetest.CompareOptions{})
			b.Umount(t)
			t.Logf("refused %d times", refused)
			if err := os.RemoveAll(b.Path); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestARepackWithEachAmountOfRoomIsWholeOrNothing(t *testing.T) {
	imagetest.NeedFuse(t)
	disk := filepath.Join(t.TempDir(), "disk")
	smallDisk(t, disk, 20<<10)
	layout := filepath.Join(disk, "img")
	if err := imagetest.WriteLayout(layout, imagetest.Image{Tag: "base", Layers: baseLayers}); err != nil {
		t.Fatal(err)
	}
	b := env.Mount(t, layout+":base")
	env.MustCommand(t, "dd", "if=/dev/urandom", "of="+filepath.Join(b.Rootfs(), "random"), "bs=1k", "count=200", "status=none")
	refused := 0
	for leave := int64(0); ; leave += 12 << 10 {
		if leave > 8<<20 {
			t.Fatal("it never fits")
		}
		free := fill(t, disk, leave)
		r := env.Run(t, "repack", "--image", layout+":new", b.Path)
		if check := env.Run(t, "fsck", "--layout", layout); check.Code != 0 {
			t.Errorf("with %d bytes of room: exit %d, fsck: %s%s", leave, r.Code, check.Stdout, check.Stderr)
		}
		free()
		if r.Code == 0 {
			break
		}
		refused++
		if r.Code != imagetest.CodeSpace || strings.Count(r.Stderr, "\n") != 1 {
			t.Errorf("with %d bytes of room: exit %d: %s", leave, r.Code, r.Stderr)
		}
		if t.Failed() {
			break
		}
	}
	t.Logf("refused %d times", refused)
	b.Umount(t)
}
