package repack

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// smallTree is what the images of these tests hold.
func smallTree(t *testing.T) func(dir string) {
	return func(dir string) {
		for _, d := range []string{"etc", "usr/lib/sub", "var/data", "usr/bin"} {
			must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
		}
		for name, data := range map[string]string{
			"etc/conf": "conf", "etc/passwd": "root", "usr/lib/a": "a", "usr/lib/sub/deep": "deep", "var/data/db": "db",
			"usr/bin/tool": strings.Repeat("tool", 100_000),
		} {
			must(t, os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644))
		}
		must(t, os.Link(filepath.Join(dir, "usr/lib/a"), filepath.Join(dir, "usr/lib/b")))
		must(t, os.Symlink("a", filepath.Join(dir, "usr/lib/l")))
		must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
			return errors.Join(err, setTime(p, 1_000_000_000)) // so that any change is one of times too
		}))
	}
}

func setTime(p string, sec int64) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Sec: sec}, {Sec: sec}}, unix.AT_SYMLINK_NOFOLLOW)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) write(name, data string) {
	f.t.Helper()
	must(f.t, os.WriteFile(f.root(name), []byte(data), 0o644))
}

func TestNoChangeGivesNoLayerAndSaysSo(t *testing.T) {
	f := newFixture(t, smallTree(t))
	base := f.image("base")
	tag, said := f.repack("--full-check")
	img := f.image(tag)
	if !strings.Contains(said, "nothing has changed") || len(img.Layers) != len(base.Layers) {
		t.Errorf("said %q, %d layers", said, len(img.Layers))
	}
	if n := len(img.history); n != len(base.history)+1 || img.history[n-1]["empty_layer"] != true {
		t.Errorf("history %v", img.history)
	}
	tag, _ = f.repack("--no-history")
	if f.image(tag).digest != base.digest {
		t.Error("without history it is another image")
	}
	tag, _ = f.repack("--allow-empty")
	if len(f.image(tag).Layers) != len(base.Layers)+1 {
		t.Error("no empty layer, although it was asked for")
	}
	f.wantEntries(tag)
	f.sameAsStock(tag)
	f.umount()
}

func TestAFileThatWasTouchedAndRevertedIsInNoLayer(t *testing.T) {
	f := newFixture(t, smallTree(t))
	e := &editor{t: t, root: f.root("")}
	must(t, e.revert(f.root("etc/conf")))
	must(t, e.revert(f.root("usr/bin/tool")))
	must(t, os.Chmod(f.root("etc/passwd"), 0o600))
	must(t, os.Chmod(f.root("etc/passwd"), 0o644))
	if got := run(t, program, "diff", f.bundle); got != "" {
		t.Errorf("diff says\n%s", got)
	}
	if _, said := f.repack("--full-check"); !strings.Contains(said, "nothing has changed") {
		t.Errorf("said %q", said)
	}
	f.umount()
}

func TestALayerHoldsOnlyWhatDiffers(t *testing.T) {
	f := newFixture(t, smallTree(t))
	var dir unix.Stat_t
	must(t, unix.Stat(f.root("etc"), &dir))
	f.write("etc/conf", "other")
	must(t, os.Remove(f.root("etc/passwd")))
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, f.root("etc"), []unix.Timespec{dir.Atim, dir.Mtim}, 0))
	must(t, os.Remove(f.root("usr/lib/b")))
	tag, _ := f.repack("--full-check")
	f.wantEntries(tag, "etc/conf", "etc/.wh.passwd", "usr/lib/", "usr/lib/.wh.b")
	f.sameAsStock(tag)
	want := "C /etc/conf\nD /etc/passwd\nC /usr/lib\nD /usr/lib/b\n"
	if got := run(t, program, "diff", f.bundle); got != want {
		t.Errorf("diff says\n%swant\n%s", got, want)
	}
	f.umount()
}

func TestARenamedDirectoryIsComplete(t *testing.T) {
	f := newFixture(t, smallTree(t))
	must(t, os.Rename(f.root("usr/lib"), f.root("opt")))
	tag, _ := f.repack("--full-check")
	f.wantEntries(tag, ".", "opt/", "opt/a", "opt/b = opt/a", "opt/l", "opt/sub/", "opt/sub/deep", "usr/", "usr/.wh.lib")
	f.sameAsStock(tag)
	f.umount()
}

func TestARenameThatWasTakenBackAfterARefreshIsUndone(t *testing.T) {
	f := newFixture(t, smallTree(t))
	must(t, os.Rename(f.root("usr/lib"), f.root("opt")))
	f.repack("--refresh-bundle", "--full-check")
	must(t, os.Rename(f.root("opt"), f.root("usr/lib")))
	tag, _ := f.repack("--refresh-bundle", "--full-check")
	f.wantEntries(tag, ".", ".wh.opt", "usr/", "usr/lib/", "usr/lib/a", "usr/lib/b = usr/lib/a", "usr/lib/l", "usr/lib/sub/", "usr/lib/sub/deep")
	f.sameAsStock(tag)
	if _, said := f.repack("--full-check"); !strings.Contains(said, "nothing has changed") {
		t.Errorf("said %q", said)
	}
	f.umount()
}

func TestVolumesAndMaskedPathsAreLeftOut(t *testing.T) {
	f := newFixture(t, smallTree(t))
	f.umount()
	run(t, "umoci", "config", "--image", f.layout+":base", "--config.volume", "/var/data")
	run(t, program, "mount", "--fresh", "--image", f.layout+":base", f.bundle)
	f.write("var/data/db", "changed")
	f.write("etc/conf", "changed")
	f.write("etc/passwd", "changed")
	tag, _ := f.repack("--mask-path", "/etc/passwd", "--full-check")
	f.wantEntries(tag, "etc/conf")
	tag, _ = f.repack("--no-mask-volumes")
	f.wantEntries(tag, "etc/conf", "etc/passwd", "var/data/db")
	f.sameAsStock(tag)
	f.umount()
}

// A masked directory counts in its parent's links, which no layer says.
func TestAVolumeThatWasMadeIsRepackedNoMoreThanOnce(t *testing.T) {
	f := newFixture(t, smallTree(t))
	f.umount()
	run(t, "umoci", "config", "--image", f.layout+":base", "--config.volume", "/var/lib")
	run(t, program, "mount", "--fresh", "--image", f.layout+":base", f.bundle)
	must(t, os.MkdirAll(f.root("var/lib/sub"), 0o755))
	tag, _ := f.repack("--refresh-bundle", "--full-check")
	f.wantEntries(tag, "var/")
	for range 2 {
		if _, said := f.repack("--refresh-bundle", "--full-check"); !strings.Contains(said, "nothing has changed") {
			t.Errorf("said %q", said)
		}
	}
	must(t, os.Mkdir(f.root("usr/masked"), 0o755))
	must(t, setTime(f.root("usr"), 1_000_000_000))
	if _, said := f.repack("--mask-path", "usr/masked/", "--full-check"); !strings.Contains(said, "nothing has changed") {
		t.Errorf("without a refresh it said %q", said)
	}
	tag, _ = f.repack("--full-check")
	f.wantEntries(tag, "usr/", "usr/masked/")
	f.umount()
}

func TestASocketIsLeftOutAndAWhiteoutsNameIsRefused(t *testing.T) {
	f := newFixture(t, smallTree(t))
	must(t, unix.Mknod(f.root("var/sock"), unix.S_IFSOCK|0o600, 0))
	tag, said := f.repack("--full-check")
	f.wantEntries(tag, "var/")
	if !strings.Contains(said, "socket") || !strings.Contains(said, "var/sock") {
		t.Errorf("said %q", said)
	}
	f.write("etc/.wh.x", "")
	out, err := try(t, program, "repack", "--image", f.layout+":no", f.bundle)
	if err == nil || !strings.Contains(out, "etc/.wh.x") {
		t.Errorf("error %v: %s", err, out)
	}
	f.umount()
}

func TestTheHistorySaysWhatIsAskedFor(t *testing.T) {
	f := newFixture(t, smallTree(t))
	f.write("etc/conf", "changed")
	tag, _ := f.repack("--history.author", "A <a@example.org>", "--history.comment", "c", "--history.created_by", "by",
		"--history.created", "2020-01-02T03:04:05Z")
	h := f.image(tag).history
	last := h[len(h)-1]
	if last["author"] != "A <a@example.org>" || last["comment"] != "c" || last["created_by"] != "by" || last["created"] != "2020-01-02T03:04:05Z" {
		t.Errorf("history %v", last)
	}
	tag, said := f.repack("--no-history")
	if n := len(f.image(tag).history); n != len(h)-1 || !strings.Contains(said, "no history entry") {
		t.Errorf("%d entries, said %q", n, said)
	}
	if out, err := try(t, program, "repack", "--image", f.layout+":x", "--no-history", "--history.author", "a", f.bundle); err == nil {
		t.Errorf("both --no-history and an author: %s", out)
	}
	f.umount()
}

func TestSourceDateEpochMakesALayerReproducible(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1500000000")
	f := newFixture(t, smallTree(t))
	f.write("etc/conf", "changed")
	a, _ := f.repack("--refresh-bundle=false")
	time.Sleep(1100 * time.Millisecond)
	f.write("etc/conf", "changed")
	b, _ := f.repack("--refresh-bundle")
	if f.image(a).digest != f.image(b).digest {
		t.Error("two images of the same changes")
	}
	if _, said := f.repack("--full-check"); !strings.Contains(said, "nothing has changed") {
		t.Errorf("what was clamped is a change: %q", said)
	}
	f.umount()
}

func TestStockUmociRepacksARefreshedMount(t *testing.T) {
	f := newFixture(t, smallTree(t))
	f.umount()
	run(t, program, "mount", "--fresh", "--mtree", "--image", f.layout+":base", f.bundle)
	f.write("etc/conf", "changed")
	f.write("etc/new", "new")
	f.repack("--refresh-bundle", "--full-check")
	if list, err := filepath.Glob(filepath.Join(f.bundle, "*.mtree*")); err != nil || len(list) != 1 {
		t.Errorf("manifests %q, %v", list, err)
	}
	must(t, os.Remove(f.root("etc/new")))
	must(t, setTime(f.root("etc"), 1_100_000_000))
	run(t, "umoci", "repack", "--image", f.layout+":stock", f.bundle)
	f.wantEntries("stock", "etc/", "etc/.wh.new")
	f.sameAsStock("stock")
	tag, _ := f.repack()
	f.wantEntries(tag, "etc/", "etc/.wh.new")
	f.umount()
}

// It writes times to the nearest second.
func TestWhatStockUmociHasRepackedIsInNoFurtherLayer(t *testing.T) {
	f := newFixture(t, smallTree(t))
	f.umount()
	run(t, program, "mount", "--fresh", "--mtree", "--image", f.layout+":base", f.bundle)
	f.write("etc/conf", "changed")
	must(t, os.Mkdir(f.root("etc/dir"), 0o700))
	must(t, os.Symlink("to", f.root("etc/dir/link")))
	for _, name := range []string{"etc/conf", "etc/dir/link", "etc/dir", "etc", ""} {
		at := unix.Timespec{Sec: 1_100_000_000, Nsec: 700_000_000}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, f.root(name), []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW))
	}
	run(t, "umoci", "repack", "--refresh-bundle", "--image", f.layout+":stock", f.bundle)
	if _, said := f.repack("--full-check"); !strings.Contains(said, "nothing has changed") {
		t.Errorf("what stock umoci has rounded is a change: %q", said)
	}
	f.write("etc/conf", "changEd")
	tag, _ := f.repack("--full-check")
	f.wantEntries(tag, "etc/conf")
	f.umount()
}

func TestABundleOfStockUmociIsRepacked(t *testing.T) {
	f := newFixture(t, smallTree(t))
	f.umount()
	f.bundle = filepath.Join(filepath.Dir(f.bundle), "plain")
	run(t, "umoci", "unpack", "--image", f.layout+":base", f.bundle)
	if _, said := f.repack("--refresh-bundle"); !strings.Contains(said, "nothing has changed") {
		t.Errorf("said %q", said)
	}
	f.write("etc/conf", "changed")
	must(t, os.RemoveAll(f.root("var")))
	must(t, os.Link(f.root("usr/lib/a"), f.root("etc/a")))
	must(t, unix.Mknod(f.root("etc/sock"), unix.S_IFSOCK|0o600, 0))
	tag, _ := f.repack("--refresh-bundle")
	f.wantEntries(tag, ".", "etc/", "etc/a", "etc/conf", "usr/lib/a = etc/a", "usr/lib/b = etc/a", ".wh.var")
	f.sameAsStock(tag)
	must(t, os.Remove(f.root("etc/sock")))
	run(t, "umoci", "repack", "--image", f.layout+":stock", f.bundle)
	if n, m := len(f.image("stock").Layers), len(f.image(tag).Layers); n > m+1 {
		t.Errorf("stock umoci adds %d layers after a refresh", n-m)
	}
}

func TestRepackOntoAnotherLayoutIsRefused(t *testing.T) {
	f := newFixture(t, smallTree(t))
	other := filepath.Join(t.TempDir(), "other")
	run(t, "umoci", "init", "--layout", other)
	out, err := try(t, program, "repack", "--image", other+":x", f.bundle)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 5 || !strings.Contains(out, "not in this layout") || strings.Count(out, "\n") != 1 {
		t.Errorf("error %v: %s", err, out)
	}
	f.umount()
}

func TestEachCompressionIsReadBack(t *testing.T) {
	f := newFixture(t, smallTree(t))
	f.write("etc/big", strings.Repeat("0123456789abcdef", 1<<17))
	for _, c := range []string{"gzip", "zstd", "none"} {
		tag, _ := f.repack("--compress", c, "--full-check")
		second := filepath.Join(t.TempDir(), "second")
		run(t, program, "mount", "--image", f.layout+":"+tag, second)
		t.Cleanup(func() { _ = unix.Unmount(filepath.Join(second, "rootfs"), unix.MNT_DETACH) })
		if d := differences(t, f.root(""), filepath.Join(second, "rootfs")); d != "" {
			t.Errorf("%s: a mount of it is another tree:\n%s", c, d)
		}
		run(t, program, "umount", second)
	}
	f.umount()
}

func TestARepackWhileAWriterGoesOnIsConsistentOrRefused(t *testing.T) {
	f := newFixture(t, smallTree(t))
	f.write("etc/log", "")
	stop := make(chan struct{})
	done := make(chan error)
	go func() {
		log, err := os.OpenFile(f.root("etc/log"), os.O_WRONLY|os.O_APPEND, 0)
		for err == nil {
			select {
			case <-stop:
				done <- log.Close()
				return
			default:
				_, err = log.WriteString("line\n")
			}
		}
		done <- err
	}()
	for range 5 {
		f.count++
		tag := "w" + string(rune('0'+f.count))
		out, err := try(t, program, "repack", "--image", f.layout+":"+tag, f.bundle)
		if err != nil && !strings.Contains(out, "keeps changing") {
			t.Errorf("repack: %v: %s", err, out)
		}
		if err == nil {
			f.unpack(tag)
		}
	}
	close(stop)
	must(t, <-done)
	tag, _ := f.repack("--full-check")
	f.sameAsStock(tag)
	f.umount()
}
