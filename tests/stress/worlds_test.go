package stress

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// replyLimit is how long an operation may take before the daemon is made to dump its
// goroutines.
const replyLimit = 90 * time.Second

// world is one place where scripts run: a root and the processes in it.
type world struct {
	name    string
	root    string
	began   time.Time
	parties []*partyProcess
	remount func() error // nil: there is nothing to mount
	remove  func()
}

type partyProcess struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	stderr strings.Builder
}

// start starts the processes.
func (w *world) start() error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	for i := range parties {
		p := &partyProcess{cmd: exec.Command(exe, partyArg, w.root, strconv.Itoa(i), strconv.FormatInt(w.began.Unix(), 10))}
		p.cmd.Stderr = &p.stderr
		if p.in, err = p.cmd.StdinPipe(); err != nil {
			return err
		}
		out, err := p.cmd.StdoutPipe()
		if err != nil {
			return err
		}
		p.out = bufio.NewReaderSize(out, 1<<20)
		if err := p.cmd.Start(); err != nil {
			return err
		}
		w.parties = append(w.parties, p)
	}
	return nil
}

// stop ends the processes, and with them their open files.
func (w *world) stop() error {
	var errs []error
	for _, p := range w.parties {
		errs = append(errs, p.in.Close())
		if err := p.cmd.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("%w: %s", err, &p.stderr))
		}
	}
	w.parties = nil
	return errors.Join(errs...)
}

// do does one operation.
func (w *world) do(o op) (string, error) {
	if o.Kind == "remount" {
		if err := w.stop(); err != nil {
			return "", err
		}
		if w.remount != nil {
			if err := w.remount(); err != nil {
				return "", err
			}
		}
		return "ok", w.start()
	}
	p := w.parties[o.P]
	if err := json.NewEncoder(p.in).Encode(o); err != nil {
		return "", fmt.Errorf("%w: %s", err, &p.stderr)
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, &p.stderr)
	}
	var said string
	return said, json.Unmarshal([]byte(line), &said)
}

// maker makes worlds; each begins as the image.
type maker struct {
	layout string
	layers []string // extracted, the lowest first: for overlayfs
	whole  string   // extracted: for the local disk
}

func newMaker(t *testing.T) *maker {
	t.Helper()
	m := &maker{layout: imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: []imagetest.Layer{{Text: worldText}, {Text: worldUpper}}})}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m.whole = filepath.Join(dir, "whole")
	env.Must(t, "raw", "unpack", "--extract", "--image", m.layout+":base", m.whole)
	for i, text := range []string{worldText, worldUpper} {
		layout := imagetest.Layout(t, imagetest.Image{Tag: "one", Layers: []imagetest.Layer{{Text: text}}})
		layer := filepath.Join(dir, "layer"+strconv.Itoa(i))
		env.Must(t, "raw", "unpack", "--extract", "--image", layout+":one", layer)
		m.layers = append(m.layers, layer)
	}
	// What removes it is no file of a layer on its own.
	upper := m.layers[1]
	for _, p := range []string{"keep/x"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(upper, p)), 0o755), unix.Mknod(filepath.Join(upper, p), unix.S_IFCHR, 0)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"", "a", "d", "keep"} { // made on the way, without the image's attributes
		if err := copyAttributes(filepath.Join(m.layers[0], dir), filepath.Join(upper, dir)); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func copyAttributes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	return errors.Join(unix.Lchown(to, int(st.Uid), int(st.Gid)), unix.Chmod(to, st.Mode&0o7777),
		unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, 0))
}

// worlds makes a mount of ours, a tree on the local disk and a mount of kernel
// overlayfs.
func (m *maker) worlds(t *testing.T, flags ...string) []*world {
	t.Helper()
	began := time.Now()
	dir, err := os.MkdirTemp("", "worlds")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	b := env.MountAt(t, filepath.Join(dir, "ours"), m.layout+":base", flags...)
	ours := &world{name: "ours", root: b.Rootfs(), began: began,
		remount: func() error { b.Umount(t); b.Remount(t, flags...); return nil },
		remove: func() {
			b.Umount(t)
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		},
	}
	disk := &world{name: "local disk", root: filepath.Join(dir, "disk"), began: began, remove: func() {}}
	env.MustCommand(t, "cp", "-a", m.whole, disk.root)
	kernel := &world{name: "overlayfs", root: filepath.Join(dir, "kernel"), began: began}
	for _, d := range []string{"upper", "work", "kernel"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := fmt.Sprintf("lowerdir=%s:%s,upperdir=%s/upper,workdir=%s/work,redirect_dir=on,index=on,metacopy=off,xino=auto",
		m.layers[1], m.layers[0], dir, dir)
	if err := copyAttributes(m.layers[1], filepath.Join(dir, "upper")); err != nil {
		t.Fatal(err)
	}
	// It is not mounted again in the middle: a mount namespace that others have made since
	// keeps the upper directory in use.
	if err := unix.Mount("overlay", kernel.root, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	kernel.remove = func() {
		if err := unmountSoon(kernel.root); err != nil {
			t.Error(err)
		}
	}
	all := []*world{ours, disk, kernel}
	for _, w := range all {
		if err := w.start(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// unmountSoon unmounts what others may be looking at for a moment: programs that go
// through all mounts.
func unmountSoon(point string) error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err := unix.Unmount(point, 0); !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}

// end stops and removes worlds, the last first.
func end(t *testing.T, worlds []*world) {
	t.Helper()
	for _, w := range slices.Backward(worlds) {
		if err := w.stop(); err != nil {
			t.Error(err)
		}
		w.remove()
	}
}
