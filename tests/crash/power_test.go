package crash

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// powerCase is what the power is cut of.
type powerCase struct {
	name  string
	fs    string
	kb    int      // of the disk
	mkfs  []string // flags
	plain bool     // a plain user's bundle
	flags []string // of mount
	steps func(*powerRun)
	share int // of the rounds, in percent
	// ordered: what the file system was told of names, owners and modes is on the disk in
	// the order in which it was told, and so the same is to be said of the view.
	ordered bool
}

// powerRun is a world on a disk that notes what is written to it: first it is worked in,
// step by step, then looked at as it is after each of many power cuts.
type powerRun struct {
	*world
	powerCase
	served string // directory of the disk's file system
	disk   string // where the disk is mounted
	rnd    *rand.Rand

	steps   []stepDone
	mounted int // the step that made the bundle
	log     []logEntry
	marks   []int // where in the log the steps were done
}

// step is something that is done on the disk.
type step struct {
	name    string
	do      func()
	settles []string // paths of the view, with all below, that are on the disk as they are now when do returns
	loose   []string // files that may have any content until they are settled
}

// stepDone is a step, and what was there after it.
type stepDone struct {
	step
	tree  imagetest.Tree    // the view; nil: there is no bundle yet
	files map[string]string // layouts' and the bundle's own files, by path in the world
}

// ownMounts gives the calling goroutine, and what it begins, a mount namespace of its own,
// for as long as it runs. Namespaces that others make meanwhile have copies of the mounts
// that they see, and such a copy would keep a disk that is unmounted here.
func ownMounts(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
}

// recordLimit is how long the steps may take: then the disk fails, and all that waits for it.
const recordLimit = 4 * time.Minute

// newPowerRun makes the disk, and does the steps on it.
func newPowerRun(t *testing.T, c powerCase, seed uint64) *powerRun {
	t.Helper()
	dir := t.TempDir()
	for name := dir; name != env.Dir; name = filepath.Dir(name) {
		if err := os.Chmod(name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r := &powerRun{
		powerCase: c, served: filepath.Join(dir, "served"), disk: filepath.Join(dir, "mnt"), mounted: -1,
		rnd: rand.New(rand.NewPCG(seed, 4)),
	}
	r.world = &world{t: t, dir: filepath.Join(r.disk, "w"), flags: c.flags}
	r.bundle = filepath.Join(r.world.dir, "bundle")
	if c.plain {
		r.user = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	if err := errors.Join(os.Mkdir(r.served, 0o755), os.Mkdir(r.disk, 0o755)); err != nil {
		t.Fatal(err)
	}
	end := r.serve(filepath.Join(dir, "log"))
	env.MustCommand(t, "mkfs."+c.fs, append(slices.Clone(c.mkfs), filepath.Join(r.served, diskFile))...)
	env.MustCommand(t, "mount", "-o", "loop", filepath.Join(r.served, diskFile), r.disk)
	if err := os.Mkdir(r.world.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c.steps(r)
	if isLive(r.bundle) {
		r.um("umount")
	}
	if err := unix.Unmount(r.disk, 0); err != nil {
		t.Fatal(err)
	}
	end()
	var err error
	if r.log, err = readLog(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	for i, e := range r.log {
		if e.kind == logMark {
			r.marks = append(r.marks, i)
		}
	}
	if len(r.marks) != len(r.steps) {
		t.Fatalf("%d steps, and %d marks", len(r.steps), len(r.marks))
	}
	return r
}

// serve begins the disk's file system. What it returns ends that, when nothing uses the
// disk any more.
func (r *powerRun) serve(log string) (end func()) {
	t := r.t
	cmd := exec.Command(workerBin, "disk", r.served, strconv.Itoa(r.kb), log) // it outlives the test's context: cleaning up needs it
	cmd.Env = append(os.Environ(), workerVar+"=1")
	cmd.Stderr = os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(recordLimit, func() {
		t.Errorf("the steps take more than %v: the disk is ended", recordLimit)
		_ = cmd.Process.Kill()
	})
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		if err := unix.Unmount(r.served, 0); err != nil {
			t.Errorf("unmount the disk's file system: %v", err)
			_ = in.Close() // it ends, and leaves a mount
			_ = unix.Unmount(r.served, unix.MNT_DETACH)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the disk: %v", err)
		}
		watchdog.Stop()
	}
	t.Cleanup(func() { // of a test that failed
		_ = unix.Unmount(filepath.Join(r.bundle, "rootfs"), unix.MNT_DETACH)
		for end := time.Now().Add(10 * time.Second); errors.Is(unix.Unmount(r.disk, 0), unix.EBUSY) && time.Now().Before(end); {
			time.Sleep(20 * time.Millisecond)
		}
		end()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("the disk is not served: %q, %v", line, err)
	}
	return end
}

// step does a step, marks in the disk's log that it is done, and looks at what there is
// then. Now and then it has the file system write out what it has of names, but no data.
func (r *powerRun) step(s step) {
	r.t.Helper()
	if s.do != nil {
		s.do()
	}
	mark := []byte(strconv.Itoa(len(r.steps)))
	if err := withFile(filepath.Join(r.served, markFile), os.O_WRONLY, func(f *os.File) error { _, err := f.Write(mark); return err }); err != nil {
		r.t.Fatal(err)
	}
	done := stepDone{step: s, files: r.files()}
	if isLive(r.bundle) {
		done.tree = r.tree()
		if r.mounted < 0 {
			r.mounted = len(r.steps)
		}
	} else if n := len(r.steps); n > 0 {
		done.tree = r.steps[n-1].tree
	}
	r.steps = append(r.steps, done)
	if r.rnd.IntN(2) == 0 {
		r.commit()
	}
}

// tree is the view, read by whom it belongs to.
func (r *powerRun) tree() imagetest.Tree {
	r.t.Helper()
	tree := imagetest.Tree{}
	out, err := r.child("tree", r.root()).Output()
	if err == nil {
		err = json.Unmarshal(out, &tree)
	}
	if err != nil {
		r.t.Fatalf("read the tree: %v\n%s", err, out)
	}
	return tree
}

// edit is a step of a program in the bundle.
func (r *powerRun) edit(line string, settles ...string) {
	r.t.Helper()
	r.step(step{name: line, settles: settles, do: func() { r.edits(line) }})
}

// editLoose is edit of a file that may have any content thereafter.
func (r *powerRun) editLoose(line string, files ...string) {
	r.t.Helper()
	r.step(step{name: line, loose: files, do: func() { r.edits(line) }})
}

func (r *powerRun) edits(lines string) {
	r.t.Helper()
	r.work(append([]string{"edit", r.root(), strconv.Itoa(len(r.steps))}, strings.Split(lines, "; ")...)...)
}

// command is a step of umoci-mount.
func (r *powerRun) command(args ...string) {
	r.t.Helper()
	r.step(step{name: strings.ReplaceAll(strings.Join(args, " "), r.world.dir+"/", ""), do: func() { r.must(env.Bin, args...) }})
}

// files reads what commands have made beside the view.
func (r *powerRun) files() map[string]string {
	r.t.Helper()
	out := map[string]string{}
	for _, pattern := range []string{"img/index.json", "second/index.json", "second/oci-layout", "bundle/*.json", "bundle/*.mtree"} {
		names, err := filepath.Glob(filepath.Join(r.world.dir, pattern))
		if err != nil {
			r.t.Fatal(err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				r.t.Fatal(err)
			}
			out[strings.TrimPrefix(name, r.world.dir+"/")] = string(data)
		}
	}
	return out
}

// Requests of linux/btrfs.h.
const (
	btrfsStartSync = 0x80089418 // BTRFS_IOC_START_SYNC
	btrfsWaitSync  = 0x40089416 // BTRFS_IOC_WAIT_SYNC
)

// commit has the file system write its journal, as it does by itself every few seconds.
// Data that waits in the page cache without a place on the disk goes on waiting.
func (r *powerRun) commit() {
	r.t.Helper()
	err := withFile(filepath.Join(r.disk, "other"), os.O_WRONLY|os.O_CREATE, func(f *os.File) error {
		if r.fs != "btrfs" {
			_, err := f.Write([]byte{'x'})
			return errors.Join(err, f.Sync())
		}
		if _, err := unix.IoctlGetInt(int(f.Fd()), btrfsStartSync); err != nil {
			return err
		}
		return unix.IoctlSetInt(int(f.Fd()), btrfsWaitSync, 0)
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// syncAll writes all there is, as sync(1) does.
func (r *powerRun) syncAll() {
	r.t.Helper()
	r.step(step{name: "sync", settles: []string{"."}, do: func() {
		if err := withFile(r.disk, os.O_RDONLY, func(f *os.File) error { return unix.Syncfs(int(f.Fd())) }); err != nil {
			r.t.Fatal(err)
		}
	}})
}

// cuts are n moments after the first step: at its end and at each flush, and any, with
// what was not flushed on the disk or not.
func (r *powerRun) cuts(n int) []cut {
	var flushes []int
	for i := r.marks[0]; i < len(r.log); i++ {
		if r.log[i].kind == logFlush {
			flushes = append(flushes, i)
		}
	}
	steps := r.rnd.Perm(len(r.marks))
	var out []cut
	for i := range n {
		c := cut{kept: keptNone, seed: r.rnd.Uint64()}
		switch {
		case i%3 > 0 && len(steps) > 0:
			c.at, steps = r.marks[steps[0]]+1, steps[1:]
		case i%6 == 0:
			c.at = flushes[r.rnd.IntN(len(flushes))] + 1
		default:
			c.at = r.marks[0] + 1 + r.rnd.IntN(len(r.log)-r.marks[0])
			c.kept = []keptWrites{keptAll, keptRandom, keptRandom}[r.rnd.IntN(3)]
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b cut) int { return a.at - b.at })
	return out
}

// checkCuts looks at the disk after each cut.
func (r *powerRun) checkCuts(cuts []cut, seed uint64) {
	t := r.t
	t.Helper()
	all := replay{log: r.log}
	image := r.disk + ".image"
	for i, c := range cuts {
		choice := rand.New(rand.NewPCG(c.seed, 5))
		keep := func() bool { return c.kept == keptAll || c.kept == keptRandom && choice.IntN(2) == 0 }
		if err := all.diskAfter(c, keep).store(image, int64(r.kb)<<10); err != nil {
			t.Fatal(err)
		}
		if err := r.check(r.last(c), image, i%3 == 0); err != nil {
			t.Errorf("seed %d: %s: %v", seed, r.describe(c), err)
			if mounted(r.disk) {
				return
			}
		}
	}
}

// last is the last step that was done before a cut.
func (r *powerRun) last(c cut) int {
	n, _ := slices.BinarySearch(r.marks, c.at)
	return n - 1
}

func (r *powerRun) describe(c cut) string {
	last, when := r.last(c), "at the end"
	if c.at < len(r.log) {
		when = fmt.Sprintf("%d entries of the log after it", c.at-1-r.marks[last])
	}
	next := "the end"
	if last+1 < len(r.steps) {
		next = r.steps[last+1].name
	}
	return fmt.Sprintf("after step %d (%s), before %s, %s; of what was not flushed, kept is %s", last, r.steps[last].name, next, when, c.kept)
}

// try is must for what is looked at after a cut.
func (r *powerRun) try(args ...string) error {
	return tried(r.world.command(args[0], args[1:]...))
}

func tried(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(append([]string{filepath.Base(cmd.Path)}, cmd.Args[1:]...), " "), err, out)
	}
	return nil
}

// check mounts the disk as it is after a cut, of which step last was done, and looks at
// everything; where goOn says so it works on.
func (r *powerRun) check(last int, image string, goOn bool) (err error) {
	if err := tried(exec.CommandContext(r.t.Context(), "mount", "-o", "loop", image, r.disk)); err != nil {
		return err
	}
	defer func() {
		if uerr := unix.Unmount(r.disk, 0); uerr != nil {
			err = errors.Join(err, fmt.Errorf("unmount the disk: %w", uerr))
		}
	}()
	return errors.Join(r.checkFiles(last), r.checkLayouts(), r.checkBundle(last, goOn))
}
