package cas

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var errInjected = errors.New("injected")

// command is one change of a layout that is to be interrupted.
type command struct {
	name  string
	keeps []string // references
	run   func(l *Layout) error
}

func commands() []command {
	return []command{
		{"a repack", []string{"base", "extra"}, func(l *Layout) error {
			p, err := l.Resolve(ctx, "base", ResolveOptions{})
			if err != nil {
				return err
			}
			img, err := l.Image(ctx, p)
			if err != nil {
				return err
			}
			w, err := l.NewBlob(ctx)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprint(w, "layer"); err != nil {
				return errors.Join(err, w.Close())
			}
			d, size, err := w.Commit(ctx)
			if err = errors.Join(err, w.Close()); err != nil {
				return err
			}
			if p, err = l.Commit(ctx, img, Change{
				Layers:  []NewLayer{{Digest: d, Size: size, DiffID: d, PlainSize: size, MediaType: ispec.MediaTypeImageLayer}},
				History: []ispec.History{{Comment: "new"}},
			}); err != nil {
				return err
			}
			return l.SetRef(ctx, "base", p.Root())
		}},
		{"a new tag", []string{"base", "extra"}, func(l *Layout) error {
			p, err := l.Resolve(ctx, "base", ResolveOptions{})
			if err != nil {
				return err
			}
			return l.SetRef(ctx, "more", p.Root())
		}},
		{"a removed tag", []string{"base"}, func(l *Layout) error {
			_, err := l.RemoveRef(ctx, "extra")
			return err
		}},
		{"a gc", []string{"base", "extra"}, func(l *Layout) error {
			_, err := l.GC(ctx, GCOptions{})
			return err
		}},
	}
}

// crashLayout has references, an unreferenced blob and a dead writer's directory.
func crashLayout(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "layout")
	l, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	blank(t, l, "base")
	blank(t, l, "extra")
	putBlob(t, l, "nobody wants this")
	if err := os.Mkdir(filepath.Join(path, ".umoci-dead"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// checkWhole reports what is wrong with a layout after an interrupted command that
// keeps refs, and lets every command run over it.
func checkWhole(t *testing.T, path string, refs ...string) {
	t.Helper()
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	have, err := l.Refs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range refs {
		if !slices.Contains(have, ref) {
			t.Fatalf("reference %s is gone: %v", ref, have)
		}
		image(t, l, ref)
	}
	if h, n := image(t, l, "base").Config.History, len(image(t, l, "base").Manifest.Layers); len(h) != n || n > 1 {
		t.Fatalf("half a change is seen: %d layers, history %v", n, h)
	}
	blobs, err := filepath.Glob(filepath.Join(path, "blobs", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range blobs {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if digest.FromBytes(data).Encoded() != filepath.Base(name) {
			t.Fatalf("blob %s has other content", name)
		}
	}
	for _, c := range commands() {
		if err := c.run(l); err != nil {
			t.Fatalf("%s afterwards: %v", c.name, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(path, tempPrefix+"*")); err != nil || len(left) > 0 {
		t.Fatalf("left: %v, %v", left, err)
	}
	if blobs, err = filepath.Glob(filepath.Join(path, "blobs", "*", "*")); err != nil {
		t.Fatal(err)
	}
	l, err = Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if res, err := l.GC(ctx, GCOptions{}); err != nil || res.Blobs != 0 {
		t.Fatalf("of %d blobs a second gc removes %+v, %v", len(blobs), res, err)
	}
}

// TestEachStepOfEachCommandMayFail lets one system call fail, and then that one and
// every one after it.
func TestEachStepOfEachCommandMayFail(t *testing.T) {
	for _, forGood := range []bool{false, true} {
		for _, c := range commands() {
			t.Run(fmt.Sprintf("%s, for good %v", c.name, forGood), func(t *testing.T) {
				for at := 1; ; at++ {
					path := crashLayout(t)
					l, err := Open(path)
					if err != nil {
						t.Fatal(err)
					}
					n := 0
					l.Fault = func(string) error {
						if n++; n == at || forGood && n > at {
							return errInjected
						}
						return nil
					}
					err = errors.Join(c.run(l), l.Close())
					if n >= at && !errors.Is(err, errInjected) {
						t.Fatalf("step %d: the fault was not reported: %v", at, err)
					}
					checkWhole(t, path, c.keeps...)
					if n < at {
						if err != nil {
							t.Fatal(err)
						}
						return
					}
				}
			})
		}
	}
}

func TestALayoutThatCannotBeMadeIsNotThere(t *testing.T) {
	for at := 1; ; at++ {
		path := filepath.Join(t.TempDir(), "a", "b", "layout")
		n, moved, syncs := 0, false, 0
		l, err := create(path, func(step string) error {
			if _, err := os.Lstat(path); err == nil {
				if moved = true; step == "fsync" {
					syncs++
				}
			}
			if n++; n >= at {
				return errInjected
			}
			return nil
		})
		if n < at {
			if err != nil {
				t.Fatal(err)
			}
			l.Fault = nil
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if syncs != 3 { // b, a, and the directory that was there
				t.Errorf("%d directories were synced after the layout had its name", syncs)
			}
			return
		}
		if !errors.Is(err, errInjected) {
			t.Fatalf("step %d: %v", at, err)
		}
		if moved { // and is there, if the disk is
			l, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Fatalf("step %d: something is left: %v", at, err)
		}
	}
}

// One that is left keeps the lock, and the next attempt waits for ever.
func TestALayoutThatCannotBeBegunLeavesNoDescriptorOpen(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ".umoci-init-layout"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	before := descriptors(t)
	if _, err := Create(filepath.Join(dir, "layout")); err == nil {
		t.Fatal("it was made in a file's place")
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

const (
	killPath    = "CAS_TEST_KILL_PATH"
	killCommand = "CAS_TEST_KILL_COMMAND"
	killStep    = "CAS_TEST_KILL_STEP"
)

// TestKilledChild is the process that TestAKilledCommandLeavesTheLayoutWhole kills.
func TestKilledChild(t *testing.T) {
	path := os.Getenv(killPath)
	if path == "" {
		t.Skip("only as a child process")
	}
	at, err := strconv.Atoi(os.Getenv(killStep))
	if err != nil {
		t.Fatal(err)
	}
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	l.Fault = func(string) error {
		if n++; n == at {
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	}
	for _, c := range commands() {
		if c.name == os.Getenv(killCommand) {
			if err := errors.Join(c.run(l), l.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestAKilledCommandLeavesTheLayoutWhole(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands() {
		t.Run(c.name, func(t *testing.T) {
			for at := 1; ; at++ {
				path := crashLayout(t)
				cmd := exec.Command(self, "-test.run=^TestKilledChild$")
				cmd.Env = append(os.Environ(), killPath+"="+path, killCommand+"="+c.name, killStep+"="+strconv.Itoa(at))
				var out bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &out
				err := cmd.Run()
				checkWhole(t, path, c.keeps...)
				if err == nil {
					return
				}
				if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
					t.Fatalf("step %d: %v\n%s", at, err, out.Bytes())
				}
			}
		})
	}
}
