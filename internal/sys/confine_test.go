package sys

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// confinedVar makes the test binary a process that confines itself.
const confinedVar = "SYS_TEST_CONFINED"

func TestMain(m *testing.M) {
	if dir := os.Getenv(confinedVar); dir != "" {
		if err := confined(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// confined tells what it can still do.
func confined(dir string) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := Confine(); err != nil {
		return err
	}
	results := make(chan error, 1)
	go func() { // on another thread than the one that was asked
		runtime.LockOSThread()
		_, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		results <- err
	}()
	refused := map[string]error{
		"socket": <-results,
		"exec":   unix.Exec("/bin/true", []string{"true"}, nil),
		"mount":  unix.Mount("none", dir, "tmpfs", 0, ""),
		"ptrace": unix.PtraceAttach(os.Getppid()),
	}
	for name, err := range refused {
		if !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600)
}

func TestAConfinedProcessServesFilesAndNothingElse(t *testing.T) {
	if AuditArch() == 0 {
		t.Skip(ErrNoFilter)
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), confinedVar+"="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, strings.TrimSpace(string(out)))
	}
	if _, err := os.Stat(filepath.Join(dir, "file")); err != nil {
		t.Error(err)
	}
}
