package stress

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

const (
	workerArg = "stress-worker"
	workers   = 8
	// patience is how long a round of the load may take beyond its time.
	patience = 2 * time.Minute
	// roundOps is how many operations each worker does in a round.
	roundOps = 1500

	mayGrowFDs        = 8
	mayGrowGoroutines = 8
	// maxDirs is more than the directories that the workers can have made.
	maxDirs      = 200
	mayGrowBytes = 48 << 20 // resident; the span cache and the collector settle within
)

// loadWorker does a round's operations in the directory that all workers share. What
// another worker may cause is no error: anything else is, and ends it.
func loadWorker(args []string) int {
	root, s := args[0], args[1]
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	rnd := source(n)
	name := func() string {
		dirs := []string{"a", "b", "b/c", "new"}
		return filepath.Join(root, dirs[rnd.IntN(len(dirs))], "n"+strconv.Itoa(rnd.IntN(30)))
	}
	ops := []func() error{
		func() error { return os.WriteFile(name(), make([]byte, rnd.IntN(9000)), 0o644) },
		func() error { _, err := os.ReadFile(name()); return err },
		func() error { return os.Rename(name(), name()) },
		func() error { return os.Link(name(), name()) },
		func() error { return os.Remove(name()) },
		func() error { return os.RemoveAll(name()) },
		func() error { return os.Mkdir(name(), 0o755) },
		func() error { return os.WriteFile(filepath.Join(name(), "inner"), []byte("x"), 0o600) },
		func() error { return os.Symlink("n1", name()) },
		func() error { return os.Truncate(name(), rnd.Int64N(20000)) },
		func() error { return os.Chmod(name(), 0o700) },
		func() error { return os.Lchown(name(), rnd.IntN(5), rnd.IntN(5)) },
		func() error { return unix.Lsetxattr(name(), "user.x", []byte("v"), 0) },
		func() error { _, err := os.ReadDir(filepath.Dir(name())); return err },
		func() error { return unix.Renameat2(-100, name(), -100, name(), unix.RENAME_EXCHANGE) },
		func() error {
			f, err := os.OpenFile(name(), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := os.Remove(f.Name()); err != nil && !raced(err) {
				return err
			}
			_, err = f.WriteString("of a removed file")
			return err
		},
	}
	for i := range roundOps {
		which := rnd.IntN(len(ops))
		if err := ops[which](); err != nil && !raced(err) {
			fmt.Fprintf(os.Stderr, "operation %d (kind %d): %v\n", i, which, err)
			return 1
		}
	}
	return 0
}

// raced tells of errors that other workers' changes may cause.
func raced(err error) bool {
	for _, e := range []error{unix.ENOENT, unix.EEXIST, unix.ENOTDIR, unix.EISDIR, unix.ENOTEMPTY, unix.EINVAL, unix.ELOOP,
		unix.EPERM, unix.EMLINK} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// usage is what the daemon holds.
type usage struct {
	goroutines int
	fds        int // other than of dirs
	dirs       int // O_PATH descriptors: the bounded cache of upper directories
	threads    int
	rss        int // bytes
}

func (u usage) String() string {
	return fmt.Sprintf("%d descriptors, %d of directories, %d threads, %d goroutines, %d MiB", u.fds, u.dirs, u.threads, u.goroutines, u.rss>>20)
}

func TestEightProcessesLeaveTheMountWholeAndTheDaemonSmall(t *testing.T) {
	imagetest.NeedFuse(t)
	imagetest.NeedRoot(t)
	var text strings.Builder
	text.WriteString("dir a 0755\ndir b 0755\ndir b/c 0755\n")
	for i := range 20 {
		fmt.Fprintf(&text, "file a/n%d 0644 @%d\nfile b/c/n%d 0600 \"lower\"\ndir b/n%d 0755\nfile b/n%d/inner 0644 \"x\"\n",
			i, 1000*i, i, i, i)
	}
	layout := imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: []imagetest.Layer{{Text: text.String()}}})
	b := env.Mount(t, layout+":base")
	if err := os.Mkdir(filepath.Join(b.Rootfs(), "new"), 0o755); err != nil {
		t.Fatal(err)
	}
	pid := daemonOf(t, b)
	kept := newKept(t, filepath.Join(b.Rootfs(), "kept"))
	var settled usage
	began := time.Now()
	rounds := 0
	for ; rounds < 4 || time.Since(began) < max(share(15), *soak); rounds++ {
		loadRound(t, b, pid, *seed+uint64(rounds*workers))
		kept.round(t, *seed+uint64(rounds))
		now := use(t, pid)
		now.goroutines = goroutinesOf(t, b)
		if rounds == 1 {
			settled = now
		}
		if rounds > 1 && (now.fds > settled.fds+mayGrowFDs || now.goroutines > settled.goroutines+mayGrowGoroutines || now.dirs > maxDirs || now.rss > settled.rss+mayGrowBytes) {
			t.Fatalf("the daemon grew: %v after round 2, %v after round %d (seed %d)", settled, now, rounds+1, *seed)
		}
	}
	last := use(t, pid)
	last.goroutines = goroutinesOf(t, b)
	t.Logf("%d rounds: %v after round 2, %v at the end", rounds, settled, last)
	before := imagetest.MustReadTree(t, b.Rootfs())
	b.Umount(t)
	b.Remount(t)
	kept.verify(t)
	imagetest.SameTree(t, "after a remount", before, imagetest.MustReadTree(t, b.Rootfs()), imagetest.CompareOptions{})
	env.Must(t, "repack", "--full-check", "--image", layout+":after", b.Path)
	b.Umount(t)
	b = env.Mount(t, layout+":after")
	// Layers have whole seconds: docs/repack.md.
	imagetest.SameTree(t, "the repacked image", before, imagetest.MustReadTree(t, b.Rootfs()), imagetest.CompareOptions{Seconds: true})
	b.Umount(t)
}

// loadRound runs the workers. When they do not end the daemon is made to dump its
// goroutines into its log, and is ended by that.
func loadRound(t *testing.T, b *imagetest.Bundle, pid int, seed uint64) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var out [workers]bytes.Buffer
	var errs [workers]error
	for i := range workers {
		cmd := exec.CommandContext(t.Context(), exe, workerArg, b.Rootfs(), strconv.FormatUint(seed+uint64(i), 10))
		cmd.Stderr = &out[i]
		wg.Go(func() { errs[i] = cmd.Run() })
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		err := unix.Kill(pid, unix.SIGQUIT)
		<-done
		t.Fatalf("seed %d: no end after %v (SIGQUIT to the daemon: %v); its log:\n%s", seed, patience, err, b.Log())
	}
	for i, err := range errs {
		if err != nil {
			t.Fatalf("seed %d, worker %d: %v: %s", seed, i, err, out[i].String())
		}
	}
}

// kept are files that nobody but the test changes, while others load the mount.
type kept struct {
	dir  string
	sums map[string][sha256.Size]byte
}

func newKept(t *testing.T, dir string) *kept {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return &kept{dir, map[string][sha256.Size]byte{}}
}

// round writes some of the files anew, and looks at all.
func (k *kept) round(t *testing.T, seed uint64) {
	t.Helper()
	rnd := source(seed)
	for range 10 {
		name := filepath.Join(k.dir, fmt.Sprint(rnd.IntN(100)))
		data := make([]byte, rnd.IntN(200_000))
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
		k.sums[name] = sha256.Sum256(data)
	}
	k.verify(t)
}

func (k *kept) verify(t *testing.T) {
	t.Helper()
	for name, want := range k.sums {
		data, err := os.ReadFile(name)
		if err != nil || sha256.Sum256(data) != want {
			t.Fatalf("%s: other bytes than were written, or %v", name, err)
		}
	}
}

// goroutinesOf is how many goroutines the daemon of a bundle has.
func goroutinesOf(t *testing.T, b *imagetest.Bundle) int {
	t.Helper()
	var list []struct {
		Bundle     string
		Goroutines int
	}
	if err := json.Unmarshal([]byte(env.Must(t, "status", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		if m.Bundle == b.Path {
			return m.Goroutines
		}
	}
	t.Fatalf("no daemon of %s", b.Path)
	return 0
}

// daemonOf is the process that serves the bundle.
func daemonOf(t *testing.T, b *imagetest.Bundle) int {
	t.Helper()
	out := env.Must(t, "status", "--json")
	var list []struct {
		PID    int
		Bundle string
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, m := range list {
		if m.Bundle == b.Path {
			return m.PID
		}
	}
	t.Fatalf("%s is not among %s", b.Path, out)
	return 0
}

// use reads what a process holds, once its descriptors have settled. The kernel forgets
// the inodes that nobody uses first: files stay open for those that it knows.
func use(t *testing.T, pid int) usage {
	t.Helper()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
		t.Fatal(err)
	}
	var u usage
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		proc := filepath.Join("/proc", strconv.Itoa(pid))
		entries, err := os.ReadDir(filepath.Join(proc, "fd"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		status, err := os.ReadFile(filepath.Join(proc, "status"))
		if err != nil {
			t.Fatal(err)
		}
		last := u.fds
		u = usage{}
		for _, e := range entries {
			var flags uint64
			info, err := os.ReadFile(filepath.Join(proc, "fdinfo", e.Name()))
			if _, after, ok := strings.Cut(string(info), "flags:"); err == nil && ok {
				_, _ = fmt.Sscanf(after, "%o", &flags)
			}
			if flags&unix.O_PATH != 0 {
				u.dirs++
			} else if err == nil { // else it was closed meanwhile
				u.fds++
			}
		}
		for line := range strings.Lines(string(status)) {
			_, _ = fmt.Sscanf(line, "Threads: %d", &u.threads)
			if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &u.rss); n == 1 {
				u.rss <<= 10
			}
		}
		if u.fds == last || time.Now().After(end) {
			return u
		}
	}
}
