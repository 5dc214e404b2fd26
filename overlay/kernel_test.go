package overlay

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKernelOverlayfsReadsTheUpper mounts the upper with Linux overlayfs over the
// extracted lower: whiteouts, opaque directories and copied files mean the same.
// Without the module's redirect and metacopy, which userxattr switches off, those
// two are left out here.
func TestKernelOverlayfsReadsTheUpper(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mount(2)")
	}
	x := newFixtureWith(t, newMemLower(modelTree...), UpperOptions{})
	for _, step := range []func() error{
		func() error { return onName(x, "top", x.fs.Unlink) },
		func() error { return fsWrite(x, "a/b/g", "new", 0) },
		func() error { return removeAll(x, "a/s") },
		func() error { return mkdir(x, "a/s", Caller{}) },
		func() error { return mkdir(x, "n1", Caller{}) },
		func() error { return fsWrite(x, "a/f", "both names", 0) },
		func() error { return onName(x, "e/fifo", x.fs.Unlink) },
	} {
		must(t, step())
	}
	want := x.listing()
	x.unmount()
	d := newDisk(t, modelTree)
	work, merged := filepath.Join(x.dir, "kernel-work"), filepath.Join(x.dir, "merged")
	must(t, os.Mkdir(work, 0o755))
	must(t, os.Mkdir(merged, 0o755))
	opts := "userxattr,lowerdir=" + d.root + ",upperdir=" + filepath.Join(x.dir, "upper") + ",workdir=" + work
	if err := unix.Mount("overlay", merged, "overlay", 0, opts); err != nil {
		t.Skipf("kernel overlayfs: %v", err)
	}
	defer func() { must(t, unix.Unmount(merged, 0)) }()
	// overlayfs shows a merged directory's link count as 1.
	strip := func(s string) string { return dirLinks.ReplaceAllString(s, "$1 n*") }
	got := (&disk{t, merged}).listing()
	if strip(got) != strip(want) {
		t.Error(diffLines(strip(want), strip(got)))
	}
}

var dirLinks = regexp.MustCompile(`(?m)^(\S+ 4\d+ \d+:\d+) n\d+`)

// TestTheUpperCanLieOnKernelOverlayfs works in a directory of an overlayfs mount,
// as in a container's own root, where no whiteout device can be made.
func TestTheUpperCanLieOnKernelOverlayfs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mount(2)")
	}
	base := t.TempDir()
	for _, d := range []string{"l", "u", "w", "m"} {
		must(t, os.Mkdir(filepath.Join(base, d), 0o755))
	}
	opts := "lowerdir=" + base + "/l,upperdir=" + base + "/u,workdir=" + base + "/w"
	if err := unix.Mount("overlay", base+"/m", "overlay", 0, opts); err != nil {
		t.Skipf("kernel overlayfs: %v", err)
	}
	defer func() { must(t, unix.Unmount(base+"/m", 0)) }()
	x := &fixture{t: t, lower: newMemLower(modelTree...), dir: base + "/m"}
	must(t, os.Mkdir(x.dir+"/upper", 0o755))
	must(t, os.Mkdir(x.dir+"/work", 0o755))
	x.mount()
	must(t, onName(x, "top", x.fs.Unlink))
	must(t, fsRename(x, "a/b", "n1", 0))
	must(t, fsRename(x, "a/f", "e/fifo", 0))
	want := x.listing()
	x.remount()
	if got := x.listing(); got != want {
		t.Error(diffLines(want, got))
	}
	x.unmount()
}
