package fusefs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
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
	if os.Geteuid() != 0 {
		return checkMountMax(fuseConf, "/proc/mounts")
	}
	return nil
}

// checkMountMax compares with fusermount3's bound for all mounts of plain users: it
// writes what is wrong where nobody sees it.
func checkMountMax(conf, mounts string) error {
	limit := 1000 // fusermount3's own
	if data, err := os.ReadFile(conf); err == nil {
		for line := range strings.Lines(string(data)) {
			if name, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(name) == "mount_max" {
				if n, err := strconv.Atoi(strings.TrimSpace(value)); err == nil && n >= -1 {
					limit = n
				}
			}
		}
	}
	data, err := os.ReadFile(mounts)
	if err != nil || limit == -1 {
		return nil //nolint:nilerr // fusermount3 will say
	}
	n := 0
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 2 && (f[2] == "fuse" || f[2] == "fuseblk" || strings.HasPrefix(f[2], "fuse.")) {
			n++
		}
	}
	if n >= limit {
		return fmt.Errorf("%w (%d)", ErrMountMax, limit)
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
		return fmt.Errorf("%w: %w", ErrMayNotMount, err)
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
