// Package repack compares what repack makes with what stock umoci makes of it: the
// command is run as a user runs it, and changes go through the mount.
package repack

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// program is the command under test, built once.
var program string

func TestMain(m *testing.M) {
	if why := cannotRun(); why != "" {
		fmt.Println("SKIP:", why)
		return
	}
	dir, err := os.MkdirTemp("", "repack-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	program = filepath.Join(dir, "umoci-mount")
	if out, err := exec.Command("go", "build", "-o", program, "../../cmd/umoci-mount").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		os.Exit(1)
	}
	if err := os.Setenv("UMOCI_MOUNT_CACHE", filepath.Join(dir, "cache")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// cannotRun says what the tests lack here.
func cannotRun() string {
	if os.Geteuid() != 0 {
		return "device nodes, owners and stock umoci's full unpack need root"
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return "no /dev/fuse"
	}
	if _, err := exec.LookPath("umoci"); err != nil {
		return "no stock umoci"
	}
	return ""
}

// run runs a command and returns what it wrote; it must succeed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return out
}

func try(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// fixture is a layout with an image "base", and a mounted bundle of it.
type fixture struct {
	t      *testing.T
	layout string
	bundle string
	count  int
}

// newFixture makes an image of two layers of what fill makes of a directory.
func newFixture(t *testing.T, fill func(dir string)) *fixture {
	t.Helper()
	dir := t.TempDir()
	f := &fixture{t: t, layout: filepath.Join(dir, "oci"), bundle: filepath.Join(dir, "bundle")}
	src := filepath.Join(dir, "src")
	if err := os.Mkdir(src, 0o755); err != nil {
		t.Fatal(err)
	}
	fill(src)
	run(t, "umoci", "init", "--layout", f.layout)
	run(t, "umoci", "new", "--image", f.layout+":base")
	run(t, "umoci", "insert", "--image", f.layout+":base", src, "/")
	f.mount(f.layout + ":base")
	return f
}

func (f *fixture) mount(image string) {
	f.t.Helper()
	run(f.t, program, "mount", "--image", image, f.bundle)
	f.t.Cleanup(func() {
		// A test that failed may leave the mount.
		_ = unix.Unmount(f.root(""), unix.MNT_DETACH)
	})
}

func (f *fixture) umount() { f.t.Helper(); run(f.t, program, "umount", f.bundle) }

func (f *fixture) mounted() bool {
	f.t.Helper()
	var here, above unix.Stat_t
	if err := errors.Join(unix.Stat(f.root(""), &here), unix.Stat(f.bundle, &above)); err != nil {
		f.t.Fatal(err)
	}
	return here.Dev != above.Dev
}

// remount goes on with the bundle in a new daemon.
func (f *fixture) remount() { f.t.Helper(); f.umount(); run(f.t, program, "mount", f.bundle) }

// root is a path in the mounted tree.
func (f *fixture) root(p string) string { return filepath.Join(f.bundle, "rootfs", p) }

// repack makes a new tag and returns its name and what the command said.
func (f *fixture) repack(args ...string) (tag, said string) {
	f.t.Helper()
	f.count++
	tag = fmt.Sprintf("t%d", f.count)
	args = append([]string{"repack", "--image", f.layout + ":" + tag}, args...)
	return tag, run(f.t, program, append(args, f.bundle)...)
}

// unpack extracts a tag with stock umoci, for the life of the test.
func (f *fixture) unpack(tag string) string {
	f.t.Helper()
	dir := filepath.Join(f.t.TempDir(), "stock")
	run(f.t, "umoci", "unpack", "--image", f.layout+":"+tag, dir)
	return filepath.Join(dir, "rootfs")
}

// sameAsStock fails if stock umoci makes another tree of a tag than is mounted.
func (f *fixture) sameAsStock(tag string) {
	f.t.Helper()
	dir := f.unpack(tag)
	if d := differences(f.t, dir, f.root("")); d != "" {
		f.t.Fatalf("stock umoci unpacks another tree than is mounted (%s):\n%s", tag, d)
	}
	if err := os.RemoveAll(dir); err != nil {
		f.t.Fatal(err)
	}
}
