package crash

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// changing are the system calls by which a command changes what outlives it.
const changing = "write,pwrite64,writev,fsync,fdatasync,sync_file_range,ftruncate,rename,renameat,renameat2,unlink,unlinkat," +
	"link,linkat,symlinkat,mkdir,mkdirat,rmdir,fchmod,fchmodat,fchown,fchownat,setxattr,fsetxattr,lsetxattr,fallocate,copy_file_range,mount"

// killAtEach runs a command again and again, and kills it at its first, second, ...
// system call of a kind that changes something, until there are no more. prepare puts
// everything back before each run; check looks at what a kill has left.
func killAtEach(t *testing.T, prepare func(), check func(at int), args ...string) {
	t.Helper()
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "strace", "cp")
	const most = 2000 // a thread counts for itself: far more than any makes
	for at := 1; at < most; at++ {
		prepare()
		killed := runKilled(t, at, args...)
		if t.Failed() {
			return
		}
		check(at)
		if t.Failed() {
			t.Fatalf("killed at call %d of %s", at, strings.Join(args, " "))
		}
		if !killed {
			t.Logf("%s: killed at each of %d calls", args[0], at-1)
			if at == 1 {
				t.Error("no call was found")
			}
			return
		}
	}
	t.Fatalf("%s makes more than %d calls", args[0], most)
}

// runKilled runs umoci-mount, which is killed when a thread of it makes its at-th
// call. It reports whether that came to pass. A command that serves a mount is ended
// when the mount is live.
func runKilled(t *testing.T, at int, args ...string) bool {
	t.Helper()
	inject := fmt.Sprintf("inject=%s:signal=KILL:when=%d", changing, at)
	cmd := exec.Command("strace", append([]string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=" + changing, "-e", inject, env.Bin}, args...)...)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000", "GOMAXPROCS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	live := time.NewTicker(5 * time.Millisecond)
	defer live.Stop()
	deadline := time.After(30 * time.Second)
	for {
		select {
		case err := <-ended:
			var exit *exec.ExitError
			switch status, _ := waitStatus(err); {
			case err == nil:
				return false
			case errors.As(err, &exit) && status.Signaled() && status.Signal() == unix.SIGKILL:
				return true
			}
			t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out.String())
			return false
		case <-live.C:
			if args[0] == "mount" && isLive(args[len(args)-1]) {
				env.Must(t, "umount", args[len(args)-1])
			}
		case <-deadline:
			_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
			_ = unix.Unmount(filepath.Join(args[len(args)-1], "rootfs"), unix.MNT_FORCE) // aborts a connection
			t.Fatalf("%s hangs\n%s", strings.Join(args, " "), out.String())
		}
	}
}

func waitStatus(err error) (syscall.WaitStatus, bool) {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return status, ok
}

// isLive reports whether a bundle's control socket is there, which is last.
func isLive(bundle string) bool {
	var st unix.Stat_t
	return unix.Lstat(filepath.Join(bundle, ".umoci-mount", "control"), &st) == nil && mounted(filepath.Join(bundle, "rootfs"))
}

func mounted(path string) bool {
	data, err := os.ReadFile("/proc/thread-self/mountinfo") // see ownMounts
	return err == nil && strings.Contains(string(data), " "+path+" ")
}

// layoutFiles lists a layout's files but for blobs and locks.
func layoutFiles(t *testing.T, layout string) string {
	t.Helper()
	blob := regexp.MustCompile(`^blobs/sha256/[0-9a-f]{64}$`)
	var out []string
	err := fs.WalkDir(os.DirFS(layout), ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !blob.MatchString(p) && !strings.HasPrefix(p, ".lock") {
			out = append(out, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

// saved is a layout and a bundle, and how they were before a command.
type saved struct {
	*world
	keep string
}

// bundleFiles lists what is in a bundle that is not mounted, but for logs and the changes.
func (s *saved) bundleFiles() string {
	s.t.Helper()
	return s.must("sh", "-ec", `cd "$0"; ls -d *; ls .umoci-mount | grep -v log`, s.bundle)
}

// newSaved makes changes in a bundle, unmounts it and keeps a copy of everything.
func newSaved(t *testing.T) *saved {
	t.Helper()
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	w := newWorld(t, baseLayers, false)
	w.must("sh", "-ec", `cd "$0"; echo changed >a/one; rm b/one; mv b/c moved; mkdir -p new/dir; head -c 300000 /dev/zero >new/dir/zeros`, w.root())
	w.um("umount")
	s := &saved{w, w.dir + ".saved"}
	w.must("cp", "-a", w.dir, s.keep)
	return s
}

func (s *saved) restore() {
	s.t.Helper()
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Fatal(err)
	}
	s.must("cp", "-a", s.keep, s.dir)
}

// mountedTree is what a mount of the bundle shows.
func (s *saved) mountedTree() imagetest.Tree {
	s.t.Helper()
	env.Must(s.t, "mount", s.bundle)
	defer env.Must(s.t, "umount", s.bundle)
	return imagetest.MustReadTree(s.t, s.root())
}

// checkLayout fails unless the layout is whole and has the tags it had, each as it
// was, and perhaps the new one, which leads to want then.
func (s *saved) checkLayout(tag, want string) {
	s.t.Helper()
	layout := filepath.Join(s.dir, "img")
	if r := env.Run(s.t, "fsck", "--layout", layout); r.Code != 0 {
		s.t.Errorf("fsck: exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	was, _, _ := imagetest.Manifest(s.t, filepath.Join(s.keep, "img"), "base")
	now, _, _ := imagetest.Manifest(s.t, layout, "base")
	if was.Digest != now.Digest {
		s.t.Errorf("base leads to %s, and was %s", now.Digest, was.Digest)
	}
	if got := s.tagged(tag); got != "" && got != want {
		s.t.Errorf("%s leads to %s, want %s", tag, got, want)
	}
}

// tagged is the digest of the layers that a tag leads to; "" for none. A repack of a
// bundle that was refreshed just now has nothing to add but to the history.
func (s *saved) tagged(tag string) string {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, "img", "index.json"))
	if err != nil {
		s.t.Fatal(err)
	}
	if !strings.Contains(string(data), `"`+tag+`"`) {
		return ""
	}
	_, m, _ := imagetest.Manifest(s.t, filepath.Join(s.dir, "img"), tag)
	var out strings.Builder
	for _, l := range m.Layers {
		out.WriteString(l.Digest.String())
	}
	return digest.FromString(out.String()).String()
}

func TestARepackKilledAtAnyCallLeavesTheLayoutWholeAndCanBeRepeated(t *testing.T) {
	s := newSaved(t)
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	t.Setenv("UMOCI_MOUNT_CACHE", filepath.Join(s.dir, "cache"))
	for _, flags := range [][]string{nil, {"--refresh-bundle"}} {
		args := append(append([]string{"repack", "--image", s.image("new")}, flags...), s.bundle)
		s.restore()
		env.Must(t, args...)
		want, files := s.tagged("new"), layoutFiles(t, filepath.Join(s.dir, "img"))
		killAtEach(t, s.restore, func(int) {
			s.checkLayout("new", want)
			env.Must(t, args...)
			s.checkLayout("new", want)
			if got := s.tagged("new"); got != want {
				t.Errorf("repeated, it makes %q, want %s", got, want)
			}
			if got := layoutFiles(t, filepath.Join(s.dir, "img")); got != files {
				t.Errorf("left in the layout: %s, want %s", got, files)
			}
		}, args...)
	}
}

func TestAMountKilledAtAnyCallCanBeRepeated(t *testing.T) {
	s := newSaved(t)
	t.Setenv("UMOCI_MOUNT_CACHE", filepath.Join(s.dir, "cache"))
	s.restore()
	want := s.mountedTree()
	t.Run("of changes", func(t *testing.T) {
		killAtEach(t, s.restore, func(int) {
			imagetest.SameTree(t, "the tree after it", want, s.mountedTree(), imagetest.CompareOptions{})
		}, "mount", "--foreground", s.bundle)
	})
	t.Run("of a new bundle", func(t *testing.T) {
		prepare := func() {
			s.restore()
			if err := errors.Join(os.RemoveAll(filepath.Join(s.dir, "cache")), os.RemoveAll(s.bundle)); err != nil {
				t.Fatal(err)
			}
		}
		prepare()
		first := []string{"mount", "--image", s.image("base")}
		env.Must(t, append(first, s.bundle)...)
		fresh := imagetest.MustReadTree(t, s.root())
		env.Must(t, "umount", s.bundle)
		killAtEach(t, prepare, func(int) {
			env.Must(t, append(first, s.bundle)...)
			imagetest.SameTree(t, "the tree after it", fresh, imagetest.MustReadTree(t, s.root()), imagetest.CompareOptions{})
			env.Must(t, "umount", s.bundle)
		}, append(first, "--foreground", s.bundle)...)
	})
}

func TestADiscardKilledAtAnyCallLeavesAllChangesOrNone(t *testing.T) {
	s := newSaved(t)
	t.Setenv("UMOCI_MOUNT_CACHE", filepath.Join(s.dir, "cache"))
	s.restore()
	all := s.mountedTree()
	env.Must(t, "umount", "--discard", s.bundle)
	none := s.mountedTree()
	killAtEach(t, s.restore, func(int) {
		now := s.mountedTree()
		if len(imagetest.Compare(all, now, imagetest.CompareOptions{})) == 0 {
			return
		}
		imagetest.SameTree(t, "the tree after it", none, now, imagetest.CompareOptions{})
	}, "umount", "--discard", s.bundle)
}

// diff compares what is mounted with the image that the bundle says it is of.
func TestAFreshMountKilledAtAnyCallLeavesTheBundleAsItWasOrAnew(t *testing.T) {
	s := newSaved(t)
	t.Setenv("UMOCI_MOUNT_CACHE", filepath.Join(s.dir, "cache"))
	s.must("sh", "-ec", `echo added >"$0/added"`, s.dir)
	env.Must(t, "insert", "--image", s.image("base"), "--tag", "other", filepath.Join(s.dir, "added"), "/added")
	if err := errors.Join(os.RemoveAll(s.keep), os.Rename(s.dir, s.keep)); err != nil {
		t.Fatal(err)
	}
	s.restore()
	all, changes, files := s.mountedTree(), env.Must(t, "diff", s.bundle), s.bundleFiles()
	fresh := []string{"mount", "--fresh", "--mtree", "--image", s.image("other")}
	env.Must(t, append(fresh, "--no-mount", s.bundle)...)
	anew, freshFiles := s.mountedTree(), s.bundleFiles()
	for _, how := range []string{"--foreground", "--no-mount"} {
		seen := map[string]int{}
		killAtEach(t, s.restore, func(at int) {
			var tree imagetest.Tree
			if at%2 == 0 { // else the first command that sees the bundle mounts nothing
				tree = s.mountedTree()
			}
			diff := env.Must(t, "diff", s.bundle)
			if at%2 != 0 {
				tree = s.mountedTree()
			}
			seen[diff]++
			want, wantFiles := all, files
			if diff == "" {
				want, wantFiles = anew, freshFiles
			}
			imagetest.SameTree(t, "the tree after it", want, tree, imagetest.CompareOptions{})
			if got := s.bundleFiles(); got != wantFiles {
				t.Errorf("the bundle has %s, want %s", got, wantFiles)
			}
		}, append(append(fresh, how), s.bundle)...)
		if len(seen) != 2 || seen[""] == 0 || seen[changes] == 0 {
			t.Errorf("%s: diff said %v", how, seen)
		}
	}
}
