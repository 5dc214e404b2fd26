package imagetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// commandLimit is how long one command of a test may take.
const commandLimit = 5 * time.Minute

// Env is where the tests of one test binary run: a directory that all they make is
// below, and the program that they run.
type Env struct {
	Dir string // every bundle, layout, cache and temporary file is below it
	Bin string // the umoci-mount program
}

// Main runs the tests of a package that mounts. It builds the program, gives the
// tests a directory on a real disk, and sees to it that no mount and no process
// of theirs outlives them: what does is a failure, and is ended. When limit has
// passed, every connection of the tests' mounts is aborted, so that a deadlock
// ends as a failure. The result is for os.Exit.
func Main(m *testing.M, use func(*Env), limit time.Duration) int {
	env, err := newEnv()
	if err != nil {
		fmt.Fprintln(os.Stderr, "prepare tests:", err)
		return 1
	}
	use(env)
	if signal.Ignored(unix.SIGHUP) { // as under nohup(1): what the tests start would ignore it too
		signal.Notify(make(chan os.Signal, 1), unix.SIGHUP)
	}
	watchdog := time.AfterFunc(limit, func() {
		fmt.Fprintf(os.Stderr, "the tests took longer than %v: aborting their mounts\n", limit)
		env.abort()
	})
	code := m.Run()
	watchdog.Stop()
	if left := env.sweep(); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "FAIL: left behind by the tests:\n  %s\n", strings.Join(left, "\n  "))
		code = max(code, 1)
	}
	if err := os.RemoveAll(env.Dir); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL: clean up:", err)
		code = max(code, 1)
	}
	return code
}

// newEnv makes the directory and builds the program into it.
func newEnv() (*Env, error) {
	// /tmp may be a tmpfs, which is neither large nor what people keep bundles on.
	dir, err := os.MkdirTemp("/var/tmp", "umoci-mount-test-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	env := &Env{Dir: dir, Bin: filepath.Join(dir, "bin", "umoci-mount")}
	tmp := filepath.Join(dir, "tmp")
	if err := errors.Join(os.Mkdir(tmp, 0o1777), os.Chmod(tmp, 0o777|os.ModeSticky)); err != nil {
		return nil, err
	}
	build := exec.Command("go", "build", "-o", env.Bin, "github.com/umoci-mount/umoci-mount/cmd/umoci-mount")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the program: %w\n%s", err, out)
	}
	return env, errors.Join(
		os.Setenv("TMPDIR", tmp), // t.TempDir is below it
		os.Setenv("UMOCI_MOUNT_CACHE", filepath.Join(dir, "cache")),
		os.Setenv("PATH", filepath.Dir(env.Bin)+":"+os.Getenv("PATH")),
		os.Unsetenv("SOURCE_DATE_EPOCH"),
	)
}

// mountPoint is one line of /proc/self/mountinfo.
type mountPoint struct {
	fuse string // the number of the FUSE connection, which is the device's minor; "": another file system
	path string
}

// mounts lists the mounts below the environment's directory, innermost first.
func (e *Env) mounts() []mountPoint {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var out []mountPoint
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 5 || !strings.HasPrefix(f[4], e.Dir+"/") {
			continue
		}
		m := mountPoint{path: f[4]}
		if strings.Contains(line, " - fuse") {
			m.fuse = strings.TrimPrefix(f[2], "0:")
		}
		out = append([]mountPoint{m}, out...)
	}
	return out
}

// abort ends the FUSE connections of all mounts below the directory: whoever waits
// for one of them gets an error.
func (e *Env) abort() {
	const control = "/sys/fs/fuse/connections"
	if entries, err := os.ReadDir(control); err == nil && len(entries) == 0 {
		_ = unix.Mount("none", control, "fusectl", 0, "") // it may be there already, and empty
	}
	for _, m := range e.mounts() {
		if m.fuse != "" {
			_ = os.WriteFile(filepath.Join(control, m.fuse, "abort"), []byte("1"), 0)
		}
	}
}

// sweep ends every mount and process below the directory, and names them.
func (e *Env) sweep() []string {
	left := e.processes() // before the mounts go, which would end them
	mounts := e.mounts()
	if len(mounts) == 0 {
		// A daemon ends a moment after its mount.
		for deadline := time.Now().Add(5 * time.Second); len(left) > 0 && time.Now().Before(deadline); {
			time.Sleep(20 * time.Millisecond)
			left = e.processes()
		}
	}
	var out []string
	if len(mounts) > 0 {
		e.abort()
	}
	for _, m := range mounts {
		out = append(out, "mount "+m.path)
		_ = unix.Unmount(m.path, unix.MNT_DETACH)
	}
	for pid, command := range left {
		out = append(out, fmt.Sprintf("process %d %s", pid, command))
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	return out
}

// processes are those whose command line names the directory.
func (e *Env) processes() map[int]string {
	out := map[int]string{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return out
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err == nil && bytes.Contains(line, []byte(e.Dir+"/")) && !bytes.Contains(line, []byte("-test.")) {
			out[pid] = strings.TrimSpace(string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	return out
}

// Result is how a command ended.
type Result struct {
	Code   int
	Stdout string
	Stderr string
}

// Command runs a program with the test's environment and extra variables
// ("NAME=VALUE"). A program that takes longer than commandLimit is killed, after
// the mounts it may wait for are aborted; that fails the test.
func (e *Env) Command(t testing.TB, env []string, name string, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = 10 * time.Second
	cmd.Cancel = func() error {
		e.abort()
		return cmd.Process.Kill()
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return Result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// Run runs umoci-mount.
func (e *Env) Run(t testing.TB, args ...string) Result {
	t.Helper()
	return e.Command(t, nil, e.Bin, args...)
}

// Must runs umoci-mount, which has to succeed, and returns what it printed.
func (e *Env) Must(t testing.TB, args ...string) string {
	t.Helper()
	return e.MustCommand(t, e.Bin, args...)
}

// MustCommand runs another program, which has to succeed.
func (e *Env) MustCommand(t testing.TB, name string, args ...string) string {
	t.Helper()
	r := e.Command(t, nil, name, args...)
	if r.Code != 0 {
		t.Fatalf("%s %s: exit %d\n%s%s", filepath.Base(name), strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// Bundle is a bundle that a test mounted.
type Bundle struct {
	env  *Env
	Path string
}

// Rootfs is the mountpoint.
func (b *Bundle) Rootfs() string { return filepath.Join(b.Path, "rootfs") }

// Log is what the bundle's daemon has logged.
func (b *Bundle) Log() string {
	data, _ := os.ReadFile(filepath.Join(b.Path, ".umoci-mount", "log"))
	return string(data)
}

// Mount mounts image (LAYOUT:TAG) as a new bundle, which is unmounted when the
// test ends, also when that does not work the usual way.
func (e *Env) Mount(t testing.TB, image string, flags ...string) *Bundle {
	t.Helper()
	return e.MountAt(t, filepath.Join(t.TempDir(), "bundle"), image, flags...)
}

// MountAt is Mount for a bundle at a path.
func (e *Env) MountAt(t testing.TB, path, image string, flags ...string) *Bundle {
	t.Helper()
	b := &Bundle{env: e, Path: path}
	e.cleanMounts(t, b.Path)
	e.Must(t, append(append([]string{"mount", "--image", image}, flags...), b.Path)...)
	return b
}

// Remount mounts the bundle again, with its changes.
func (b *Bundle) Remount(t testing.TB, flags ...string) {
	t.Helper()
	b.env.Must(t, append(append([]string{"mount"}, flags...), b.Path)...)
}

// Umount unmounts the bundle.
func (b *Bundle) Umount(t testing.TB) {
	t.Helper()
	b.env.Must(t, "umount", b.Path)
}

// cleanMounts sees to it that nothing is mounted below dir when its files are
// removed: else that would empty a mounted tree.
func (e *Env) cleanMounts(t testing.TB, dir string) {
	t.Cleanup(func() {
		if t.Failed() {
			if data, err := os.ReadFile(filepath.Join(dir, ".umoci-mount", "log")); err == nil && len(data) > 0 {
				t.Logf("log of %s:\n%s", dir, data[max(0, len(data)-4000):])
			}
		}
		for _, m := range e.mounts() {
			if m.path != dir && !strings.HasPrefix(m.path, dir+"/") {
				continue
			}
			if err := unix.Unmount(m.path, 0); err != nil {
				if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTCONN) {
					err = unix.Unmount(m.path, unix.MNT_DETACH)
				}
				if err != nil {
					t.Errorf("unmount %s: %v", m.path, err)
				}
			}
		}
	})
}
