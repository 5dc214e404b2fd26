package tests

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// stranger is a user whose bundle root works on.
const stranger = 1002

// foreign is a bundle of a stranger's, not mounted, and what root has elsewhere.
type foreign struct {
	t      *testing.T
	bundle string
	image  string
	victim string // a file of root's
	dir    string // a directory of root's
}

func newForeign(t *testing.T) *foreign {
	t.Helper()
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	top := t.TempDir()
	const text = "dir etc 0755\nfile etc/conf 0644 old\nfile su 4755 x\nchar null 0666 1,3\n"
	f := &foreign{
		t: t, image: imagetest.Layout(t, imagetest.Image{Tag: "a", Layers: []imagetest.Layer{{Text: text}}}) + ":a",
		bundle: filepath.Join(top, "home", "bundle"), victim: filepath.Join(top, "victim"), dir: filepath.Join(top, "dir"),
	}
	if err := errors.Join(
		os.Mkdir(filepath.Join(top, "home"), 0o755), os.Chown(filepath.Join(top, "home"), stranger, stranger),
		os.WriteFile(f.victim, []byte("keep\n"), 0o600), os.Mkdir(f.dir, 0o700),
	); err != nil {
		t.Fatal(err)
	}
	b := env.MountAt(t, f.bundle, f.image)
	b.Umount(t)
	err := filepath.WalkDir(f.bundle, func(p string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(p, stranger, stranger))
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// replace puts a symlink in a name's place.
func (f *foreign) replace(name, target string) {
	f.t.Helper()
	p := filepath.Join(f.bundle, name)
	if err := errors.Join(os.RemoveAll(p), os.Symlink(target, p), os.Lchown(p, stranger, stranger)); err != nil {
		f.t.Fatal(err)
	}
}

// untouched fails where root's own files are not as they were.
func (f *foreign) untouched() {
	f.t.Helper()
	if data, err := os.ReadFile(f.victim); err != nil || string(data) != "keep\n" {
		f.t.Errorf("root's file: %q, %v", data, err)
	}
	if info, err := os.Stat(f.victim); err != nil || info.Mode().Perm() != 0o600 {
		f.t.Errorf("root's file: %v, %v", info, err)
	}
	if list, err := os.ReadDir(f.dir); err != nil || len(list) > 0 {
		f.t.Errorf("in root's directory: %v, %v", list, err)
	}
	if _, err := os.Lstat(f.victim + "-new"); err == nil {
		f.t.Error("a file was made elsewhere")
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(table), " "+f.dir+" ") {
		f.t.Errorf("mounted elsewhere (%v)", err)
	}
}

// TestNoNameInABundleLeadsRootAstray replaces each name in another user's bundle with a
// symlink to what is root's, and has root work on it.
func TestNoNameInABundleLeadsRootAstray(t *testing.T) {
	for name, to := range map[string]func(f *foreign) string{
		"rootfs":                  func(f *foreign) string { return f.dir },
		"upper":                   func(f *foreign) string { return f.dir },
		"work":                    func(f *foreign) string { return f.dir },
		".umoci-mount":            func(f *foreign) string { return f.dir },
		".umoci-mount/log":        func(f *foreign) string { return f.victim },
		".umoci-mount/lock":       func(f *foreign) string { return f.victim + "-new" },
		".umoci-mount/mounted":    func(f *foreign) string { return f.victim + "-new" },
		".umoci-mount/entered":    func(f *foreign) string { return f.victim + "-new" },
		".umoci-mount/points":     func(f *foreign) string { return f.victim },
		".umoci-mount/control":    func(f *foreign) string { return f.victim },
		".umoci-mount/state.json": func(f *foreign) string { return f.victim },
		"umoci.json":              func(f *foreign) string { return f.victim },
		"config.json":             func(f *foreign) string { return f.victim },
	} {
		t.Run(name, func(t *testing.T) {
			f := newForeign(t)
			f.replace(name, to(f))
			r := env.Run(t, "mount", "--image", f.image, f.bundle)
			f.untouched()
			if r.Code == 0 {
				_ = os.WriteFile(filepath.Join(f.bundle, "rootfs", "new"), []byte("x"), 0o644)
				env.Run(t, "exec", f.bundle, "/none")
				env.Run(t, "repack", "--image", f.image, "--refresh-bundle", f.bundle)
				f.untouched()
			} else if name == "config.json" || strings.HasSuffix(name, "/control") {
				t.Errorf("exit %d: %s", r.Code, r.Stderr) // nothing of it is read: it is made anew
			}
			if name == "rootfs" && !strings.Contains(r.Stderr, "symbolic link") {
				t.Errorf("exit %d, and the reason is %q", r.Code, r.Stderr)
			}
			env.Run(t, "umount", f.bundle)
			env.Run(t, "mount", "--image", f.image, "--fresh", f.bundle)
			env.Run(t, "umount", "--discard", f.bundle)
			f.untouched()
		})
	}
}

// TestALogThatIsAnotherFileTooIsReplaced: a hard link to root's file is no log.
func TestALogThatIsAnotherFileTooIsReplaced(t *testing.T) {
	f := newForeign(t)
	log := filepath.Join(f.bundle, ".umoci-mount", "log")
	if err := errors.Join(os.Remove(log), os.Link(f.victim, log)); err != nil {
		t.Fatal(err)
	}
	env.Must(t, "mount", "--image", f.image, f.bundle)
	env.Must(t, "umount", f.bundle)
	f.untouched()
	if data, err := os.ReadFile(log); err != nil || !strings.Contains(string(data), "mounted") {
		t.Errorf("the log: %q, %v", data, err)
	}
}

// TestRootWorksOnABundleOfAnotherUser is the ordinary use, by way of a symlink to the
// bundle; the mount lends its owner no program of the image's root, and no device.
func TestRootWorksOnABundleOfAnotherUser(t *testing.T) {
	f := newForeign(t)
	link := filepath.Join(t.TempDir(), "run")
	if err := os.Symlink(filepath.Dir(f.bundle), link); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(link, "bundle")
	env.Must(t, "mount", "--image", f.image, bundle)
	rootfs := filepath.Join(bundle, "rootfs")
	if err := os.WriteFile(filepath.Join(rootfs, "new"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(rootfs, &st); err != nil || st.Flags&unix.MS_NOSUID == 0 || st.Flags&unix.MS_NODEV == 0 {
		t.Errorf("flags of the mount: %#x, %v", st.Flags, err)
	}
	if d, err := os.Open(filepath.Join(rootfs, "null")); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a device was opened: %v, %v", d, err)
	}
	if out := env.Must(t, "status"); !strings.Contains(out, f.bundle) {
		t.Errorf("status: %s", out)
	}
	if out := env.Must(t, "diff", bundle); !strings.Contains(out, "/new") {
		t.Errorf("diff: %s", out)
	}
	env.Must(t, "repack", "--image", f.image, "--refresh-bundle", bundle)
	env.Must(t, "umount", bundle)
	env.Must(t, "mount", bundle)
	env.Must(t, "umount", bundle)
}

// TestAStateOfAnotherUserNamesNoPlaces: root's cache is not where it says, and it shows
// no layout but its writer's.
func TestAStateOfAnotherUserNamesNoPlaces(t *testing.T) {
	f := newForeign(t)
	if r := env.Run(t, "mount", f.bundle); r.Code == 0 || !strings.Contains(r.Stderr, "name the image") {
		t.Errorf("exit %d: %s", r.Code, r.Stderr)
		env.Must(t, "umount", f.bundle)
	}
	name := filepath.Join(f.bundle, ".umoci-mount", "state.json")
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	layout := strings.TrimSuffix(f.image, ":a")
	cache := filepath.Join(filepath.Dir(layout), "made")
	text := strings.Replace(string(data), os.Getenv("UMOCI_MOUNT_CACHE"), cache, 1)
	if err := errors.Join(os.WriteFile(name, []byte(text), 0o600), os.Chown(layout, stranger, stranger)); err != nil {
		t.Fatal(err)
	}
	env.Must(t, "diff", f.bundle)
	if _, err := os.Lstat(cache); err == nil {
		t.Error("the cache was made where the bundle's owner said")
	}
}

// TestAConfigOfOnesOwnMayBeASymlink: runtimes follow one.
func TestAConfigOfOnesOwnMayBeASymlink(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	layout := imagetest.Layout(t, imagetest.Image{Tag: "a", Layers: []imagetest.Layer{{Text: "dir etc 0755\n"}}})
	b := env.Mount(t, layout+":a")
	config := filepath.Join(b.Path, "config.json")
	if err := errors.Join(os.Rename(config, filepath.Join(b.Path, "mine.json")), os.Symlink("mine.json", config)); err != nil {
		t.Fatal(err)
	}
	r := env.Run(t, "exec", b.Path)
	if strings.Contains(r.Stderr, "symbolic link") {
		t.Errorf("exit %d: %s", r.Code, r.Stderr)
	}
	b.Umount(t)
}

// TestTheMountpointIsNoSymlinkInTheEnd swaps the mountpoint and a symlink to root's
// directory all the while.
func TestTheMountpointIsNoSymlinkInTheEnd(t *testing.T) {
	f := newForeign(t)
	rootfs, other := filepath.Join(f.bundle, "rootfs"), filepath.Join(f.bundle, "other")
	f.replace("other", f.dir)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, rootfs, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE)
			}
		}
	}()
	mounted := 0
	for range imagetest.Fewer(20) {
		r := env.Run(t, "mount", "--image", f.image, f.bundle)
		f.untouched()
		if r.Code == 0 {
			mounted++
			env.Run(t, "umount", f.bundle)
		}
	}
	close(stop)
	<-done
	t.Logf("mounted %d times", mounted)
}

// What root leaves in a stranger's bundle does not keep the stranger out of it.
func TestABundleThatRootHasWorkedOnIsItsOwnersAsBefore(t *testing.T) {
	imagetest.NeedTools(t, "setpriv", "fusermount3")
	f := newForeign(t)
	layout := strings.TrimSuffix(f.image, ":a")
	home := filepath.Dir(f.bundle)
	env.MustCommand(t, "chown", "-R", "65534:65534", layout, home) // whom fusermount3 knows
	env.MustCommand(t, "chmod", "0755", filepath.Dir(home), filepath.Dir(filepath.Dir(home)), filepath.Dir(layout))
	if err := os.RemoveAll(filepath.Join(f.bundle, ".umoci-mount/mounted")); err != nil { // as mount --no-mount makes it
		t.Fatal(err)
	}
	env.Must(t, "mount", f.bundle)
	env.MustCommand(t, "sh", "-ec", `"$0" exec "$1" true || [ $? = 127 ]`, env.Bin, f.bundle)
	env.Must(t, "umount", f.bundle)
	script := `export UMOCI_MOUNT_CACHE=$1/cache; cd $1
		$0 diff bundle >/dev/null; $0 mount bundle; cat bundle/rootfs/etc/conf; $0 umount bundle; $0 exec bundle true || [ $? = 127 ]`
	r := env.Command(t, nil, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-ec", script, env.Bin, home)
	if r.Code != 0 || r.Stdout != "old" {
		t.Errorf("exit %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
}
