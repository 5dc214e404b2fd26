package fusefs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	fuseDevice = "/dev/fuse"
	fuseConf   = "/etc/fuse.conf"
)

// checkMeans says what a mount would fail for, where the attempt itself would
// not: fusermount3 writes its reasons to the standard error alone.
func checkMeans(opt *Options) error {
	fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%w (%w)", ErrNoFuseDevice, err)
	}
	if err := unix.Close(fd); err != nil {
		return err
	}
	if opt.DirectMount {
		return nil
	}
	if err := checkFusermount(); err != nil {
		return err
	}
	if opt.AllowOther && os.Geteuid() != 0 && !userAllowOther(fuseConf) {
		return ErrAllowOther
	}
	return nil
}

// fusermountPath finds the helper as go-fuse does.
func fusermountPath() (string, error) {
	for _, name := range []string{"fusermount3", "/bin/fusermount3", "fusermount", "/bin/fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNoFusermount
}

func checkFusermount() error {
	path, err := fusermountPath()
	if err != nil || os.Geteuid() == 0 {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("examine %s: %w", path, err)
	}
	if st.Mode&unix.S_ISUID != 0 && st.Uid == 0 {
		return nil
	}
	// Some systems give it a capability in the bit's place.
	if n, err := unix.Getxattr(path, "security.capability", nil); err == nil && n > 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", path, ErrNotSetuid)
}

// userAllowOther reports whether fuse.conf has user_allow_other on a line.
func userAllowOther(path string) bool {
	data, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) == "user_allow_other" {
			return true
		}
	}
	return false
}

// explainMount puts a meaning to go-fuse's error.
func explainMount(err error) error {
	var missing *exec.Error
	switch {
	case errors.As(err, &missing):
		return ErrNoFusermount
	case errors.Is(err, syscall.EBUSY):
		return ErrBusyMountpoint
	case errors.Is(err, syscall.ENODEV):
		return ErrNoFuseDevice
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return fmt.Errorf("mount(2) takes root: %w", err)
	}
	if text := err.Error(); strings.HasSuffix(text, "\n") {
		return errors.New(strings.TrimSpace(text)) // go-fuse's about fusermount3
	}
	return err
}

// runFusermount runs the helper; its message becomes the error.
func runFusermount(args ...string) error {
	path, err := fusermountPath()
	if err != nil {
		return err
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fusermount3: %s: %w", strings.TrimSpace(string(out)), err)
	}
	return nil
}
