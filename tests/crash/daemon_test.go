package crash

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// world is a mounted bundle, and a directory on a local disk that all that the mount
// acknowledged was done to as well.
type world struct {
	t      *testing.T
	dir    string
	bundle string
	shadow string
	user   *syscall.Credential // nil: root
	flags  []string
}

const nobody = 65534

// newWorld mounts an image of layers as root or as a plain user.
func newWorld(t *testing.T, layers []imagetest.Layer, plain bool, flags ...string) *world {
	t.Helper()
	dir := t.TempDir()
	for name := dir; name != env.Dir; name = filepath.Dir(name) {
		if err := os.Chmod(name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{t: t, dir: filepath.Join(dir, "w"), flags: flags}
	w.bundle, w.shadow = filepath.Join(w.dir, "bundle"), filepath.Join(w.dir, "shadow")
	if err := imagetest.WriteLayout(filepath.Join(w.dir, "img"), imagetest.Image{Tag: "base", Layers: layers}); err != nil {
		t.Fatal(err)
	}
	if plain {
		w.user = &syscall.Credential{Uid: nobody, Gid: nobody}
		err := filepath.WalkDir(w.dir, func(p string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(p, nobody, nobody))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(w.bundle, "rootfs"), unix.MNT_DETACH) }) // of a test that failed
	w.um(append([]string{"mount", "--image", w.image("base")}, flags...)...)
	w.must("cp", "-a", w.root()+"/.", w.shadow)
	return w
}

func (w *world) root() string            { return filepath.Join(w.bundle, "rootfs") }
func (w *world) image(tag string) string { return filepath.Join(w.dir, "img") + ":" + tag }

func (w *world) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(w.t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "HOME="+w.dir, "UMOCI_MOUNT_CACHE="+filepath.Join(w.dir, "cache"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: w.user}
	return cmd
}

func (w *world) must(name string, args ...string) string {
	w.t.Helper()
	out, err := w.command(name, args...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return string(out)
}

// um runs umoci-mount on the bundle.
func (w *world) um(args ...string) string {
	w.t.Helper()
	return w.must(env.Bin, append(args, w.bundle)...)
}

// child runs one of the workers.
func (w *world) child(args ...string) *exec.Cmd {
	cmd := w.command(workerBin, args...)
	cmd.Env = append(cmd.Env, workerVar+"=1")
	return cmd
}

func (w *world) work(args ...string) string {
	w.t.Helper()
	out, err := w.child(args...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// daemon is the process that serves the mount.
func (w *world) daemon() int {
	w.t.Helper()
	var list []struct{ PID int }
	out := w.must(env.Bin, "status", "--json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
	for _, m := range list {
		line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(m.PID), "cmdline"))
		if err == nil && bytes.Contains(line, []byte(w.bundle+"\x00")) {
			return m.PID
		}
	}
	w.t.Fatalf("the mount is not among %s", out)
	return 0
}

// survive has a program write until the daemon is killed after some time, mounts the
// bundle again, and compares the tree with what was acknowledged.
func (w *world) survive(seed uint64) {
	w.t.Helper()
	r := rand.New(rand.NewPCG(seed, 2))
	pid := w.daemon()
	before := w.work("inodes", w.root())
	cmd := w.child("write", w.root(), w.shadow, strconv.FormatUint(seed, 10))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	time.Sleep(time.Duration(r.IntN(60_000)) * time.Microsecond)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		w.t.Fatalf("seed %d: the writer: %v\n%s", seed, err, out.String())
	}
	w.um("mount")
	if _, err := os.Stat(filepath.Join(w.bundle, "work")); err != nil {
		w.t.Error(err)
	}
	if said, err := w.child("compare", w.root(), w.shadow, out.String()).CombinedOutput(); err != nil {
		w.t.Fatalf("seed %d: %s", seed, said)
	}
	w.sameInodes(seed, before)
}

// sameInodes fails if a path that was there before and that nothing was done to has
// another inode number now. What has another type is another object; renames and
// exchanges among equals are told by the comparison of the trees.
func (w *world) sameInodes(seed uint64, before string) {
	w.t.Helper()
	now := w.work("inodes", w.root())
	w.um("umount")
	w.um("mount")
	if again := w.work("inodes", w.root()); again != now {
		w.t.Errorf("seed %d: inode numbers after a remount:\n%s\nbefore:\n%s", seed, again, now)
	}
	first, _, _ := strings.Cut(before, "\n")
	if !strings.HasPrefix(now, first+"\n") {
		w.t.Errorf("seed %d: the root was %q, and is in\n%s", seed, first, now)
	}
}

func surviveRounds(t *testing.T, plain bool, flags ...string) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	if plain {
		imagetest.NeedTools(t, "fusermount3")
	}
	w := newWorld(t, baseLayers, plain, flags...)
	for i := range imagetest.Fewer(*rounds) {
		if i%10 == 9 { // a tree that has grown strange makes place for a new one
			w.um("umount")
			w = newWorld(t, baseLayers, plain, flags...)
		}
		w.survive(*seed + uint64(i))
	}
	w.um("umount")
}

func TestADaemonKilledAtAnyMomentLosesNothingOfRoot(t *testing.T) { surviveRounds(t, false) }

func TestADaemonKilledUnderPassthroughLosesNothingOfRoot(t *testing.T) {
	surviveRounds(t, false, "--passthrough")
}

func TestADaemonKilledAtAnyMomentLosesNothingOfAPlainUser(t *testing.T) { surviveRounds(t, true) }

func TestADaemonKilledUnderRealIdsLosesNothing(t *testing.T) {
	surviveRounds(t, true, "--ids", "real")
}
