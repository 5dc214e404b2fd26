package commands

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// interrupted runs the program in dir, sends it a signal while it waits for what
// somebody holds, and gives its exit code and what it wrote to stderr.
func interrupted(t *testing.T, dir string, signal os.Signal, args ...string) (int, string) {
	t.Helper()
	cmd := exec.Command(env.Bin, args...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = dir, &stderr
	cmd.Env = append(os.Environ(), "UMOCI_MOUNT_CACHE="+filepath.Join(dir, "cache"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond) // it waits by then
	if err := cmd.Process.Signal(signal); err != nil {
		t.Errorf("%s ended without the lock: %v", args, err)
	}
	kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait()
	if !kill.Stop() {
		t.Errorf("%s did not end by %v", args, signal)
	}
	return cmd.ProcessState.ExitCode(), stderr.String()
}

// gc holds this lock to its end.
func TestAWaitForTheLayoutsLockCanBeInterrupted(t *testing.T) {
	dir := newLayout(t)
	f, err := os.OpenFile(filepath.Join(dir, "img/.lock-umoci-mount"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 1, Len: 1}); err != nil {
		t.Fatal(err)
	}
	before := mustSh(t, dir, "find img | sort; cat img/index.json")
	for _, c := range []struct {
		signal os.Signal
		args   string
	}{
		{unix.SIGINT, "new --image img:b"},
		{unix.SIGTERM, "tag --image img:a b"},
		{unix.SIGINT, "config --image img:a --author x"},
		{unix.SIGTERM, "insert --image img:a img/index.json /x"},
		{unix.SIGINT, "fsck --layout img"},
		{unix.SIGTERM, "tree --image img:a"},
	} {
		code, stderr := interrupted(t, dir, c.signal, strings.Fields(c.args)...)
		if code != imagetest.CodeInterrupt || strings.Count(stderr, "\n") != 1 || lines(stderr, "interrupted") != 1 {
			t.Errorf("%s: exit %d\n%s", c.args, code, stderr)
		}
	}
	expect(t, "the layout", before, mustSh(t, dir, "find img | sort; cat img/index.json"))
}

// The layer is in the image then: that its index is not kept is worth no failure.
func TestAWaitForACachesLockCanBeInterrupted(t *testing.T) {
	dir := newLayout(t)
	tar := make([]byte, 1024)
	if err := os.WriteFile(filepath.Join(dir, "empty.tar"), tar, 0o644); err != nil {
		t.Fatal(err)
	}
	locks := filepath.Join(dir, "cache/locks")
	if err := os.MkdirAll(locks, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(locks, fmt.Sprintf("sha256-%x", sha256.Sum256(tar))))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	code, stderr := interrupted(t, dir, unix.SIGINT, "raw", "add-layer", "--compress", "none", "--image", "img:a", "empty.tar")
	if code != 0 || !strings.Contains(stderr, "could not be cached") {
		t.Errorf("exit %d\n%s", code, stderr)
	}
}

// newTraced makes a layout, for a first mount of its image as the bundle in which strace
// has a hand: a plain user's fusermount3 has no privileges then.
func newTraced(t *testing.T) (dir, bundle string) {
	t.Helper()
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "strace")
	dir = newLayout(t)
	return dir, filepath.Join(dir, "b")
}

// The daemon has the mount by then, and is not live yet.
func TestAMountThatIsInterruptedAsItBeginsLeavesNothing(t *testing.T) {
	dir, bundle := newTraced(t)
	for _, signal := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		// -D: the process that is started becomes the program.
		cmd := exec.Command("strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "inject=bind:delay_enter=1s",
			env.Bin, "mount", "--image", filepath.Join(dir, "img:a"), bundle)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(30 * time.Second); !mounted(t, bundle) && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != imagetest.CodeInterrupt || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("%v: exit %d\n%s", signal, code, stderr.String())
		}
		if _, err := os.Lstat(bundle); !os.IsNotExist(err) || mounted(t, bundle) {
			t.Fatalf("%v: the bundle is there, mounted %v: %v", signal, mounted(t, bundle), err)
		}
	}
}

// As the kernel kills when memory is short, and as a crash ends it.
func TestADaemonThatIsKilledAsItBeginsLeavesNothing(t *testing.T) {
	dir, bundle := newTraced(t)
	for range 2 { // the second time the bundle is there
		for signal, text := range map[string]string{
			"KILL": "mount daemon ended before it was ready (signal: killed)",
			"QUIT": "mount daemon ended before it was ready (exit status 2): SIGQUIT: quit",
		} {
			r := sh(t, dir, "strace -f -qq -o /dev/null -e inject=bind:signal="+signal+" $um mount --image img:a b")
			if r.Code != imagetest.CodeFailure || lines(r.Stderr, text) != 1 || mounted(t, bundle) {
				t.Errorf("exit %d, mounted %v\n%s", r.Code, mounted(t, bundle), r.Stderr)
			}
			if log := filepath.Join(bundle, ".umoci-mount/log"); strings.Contains(r.Stderr, log) {
				t.Errorf("the log is named, and may be gone:\n%s", r.Stderr)
			}
		}
		if r := sh(t, dir, "$um mount --image img:a b && $um umount b"); r.Code != 0 {
			t.Errorf("exit %d\n%s", r.Code, r.Stderr)
		}
	}
}

// Who closes a terminal ends what serves in it; nohup(1) is asked to keep that from it.
func TestAHangUpEndsAForegroundMountUnlessItIsIgnored(t *testing.T) {
	imagetest.NeedFuse(t)
	dir := newLayout(t)
	bundle := filepath.Join(dir, "b")
	manager := listenAsServiceManager(t)
	for _, nohup := range []bool{false, true} {
		args := []string{env.Bin, "mount", "--foreground", "--image", filepath.Join(dir, "img:a"), bundle}
		if nohup {
			args = append([]string{"nohup"}, args...)
		}
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+manager.LocalAddr().String())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Before that it is a mount that is interrupted as it begins.
		told := make([]byte, 64)
		if n, err := manager.Read(told); err != nil || string(told[:n]) != "READY=1" || !mounted(t, bundle) {
			t.Errorf("told the service manager %q, mounted %v: %v", told[:n], mounted(t, bundle), err)
		}
		if err := cmd.Process.Signal(unix.SIGHUP); err != nil {
			t.Error(err)
		}
		if nohup {
			time.Sleep(300 * time.Millisecond)
			if !mounted(t, bundle) {
				t.Error("a hang-up ended a mount under nohup")
			}
			if err := cmd.Process.Signal(unix.SIGINT); err != nil {
				t.Error(err)
			}
		}
		if err := cmd.Wait(); err != nil || mounted(t, bundle) {
			t.Errorf("nohup %v: still mounted %v: %v", nohup, mounted(t, bundle), err)
		}
	}
}

// listenAsServiceManager makes the socket on which systemd hears from services, as
// sd_notify(3) describes it.
func listenAsServiceManager(t *testing.T) *net.UnixConn {
	t.Helper()
	dir, err := os.MkdirTemp(env.Dir, "") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c
}

func mounted(t *testing.T, bundle string) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(table), " "+filepath.Join(bundle, "rootfs")+" ")
}
