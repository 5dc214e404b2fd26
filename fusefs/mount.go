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

// checkMeans says what a mount would fail for, and what to do about it.
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

// fusermountPath finds the helper, also where there is no PATH.
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

// openMount mounts on a directory and returns the descriptor that its requests come by.
func openMount(path string, opt *Options) (fd int, err error) {
	if opt.DirectMount {
		return mountDirectly(path, opt)
	}
	return mountByHelper(path, opt)
}

// mountDirectly mounts with mount(2); suid programs and devices work.
func mountDirectly(path string, opt *Options) (fd int, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return -1, err
	}
	if fd, err = unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return -1, err
	}
	words := append([]string{
		fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d", fd, st.Mode&unix.S_IFMT, os.Geteuid(), os.Getegid()),
	}, opt.mountWords()...)
	var flags uintptr
	if opt.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(opt.fsName(), path, "fuse."+subtype, flags, strings.Join(words, ",")); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// mountByHelper has fusermount3 mount, which sends the descriptor over a socket that
// _FUSE_COMMFD names (fusermount3(1)).
func mountByHelper(path string, opt *Options) (fd int, err error) {
	helper, err := fusermountPath()
	if err != nil {
		return -1, err
	}
	sockets, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	ours, theirs := sockets[0], os.NewFile(uintptr(sockets[1]), "fusermount3")
	defer func() { err = errors.Join(err, unix.Close(ours)) }()
	words := opt.mountWords()
	if opt.ReadOnly {
		words = append(words, "ro")
	}
	escape := strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace
	words = append(words, "fsname="+escape(opt.fsName()), "subtype="+subtype)
	var stderr strings.Builder
	cmd := exec.Command(helper, "-o", strings.Join(words, ","), "--", path)
	cmd.Env, cmd.ExtraFiles, cmd.Stderr = []string{"_FUSE_COMMFD=3"}, []*os.File{theirs}, &stderr
	if err := errors.Join(cmd.Run(), theirs.Close()); err != nil {
		return -1, fmt.Errorf("fusermount3: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return receiveFD(ours)
}

// receiveFD takes one descriptor from a socket (unix(7), SCM_RIGHTS).
func receiveFD(socket int) (int, error) {
	var data [1]byte
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, data[:], control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return -1, errors.Join(errors.New("fusermount3 sent no descriptor"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.Join(errors.New("fusermount3 sent no descriptor"), err)
	}
	return fds[0], nil
}

// explainMount puts a meaning to what the system says.
func explainMount(err error) error {
	switch {
	case errors.Is(err, syscall.EBUSY):
		return ErrBusyMountpoint
	case errors.Is(err, syscall.ENODEV):
		return ErrNoFuseDevice
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w: %w", ErrMayNotMount, err)
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
