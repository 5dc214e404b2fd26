package commands

import (
	"bytes"
	"crypto/sha256"
	"fmt"
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
		if code != imagetest.CodeInterrupt || strings.Count(stderr, "\n") != 1 {
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
