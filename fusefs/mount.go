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

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

const (
	fuseDevice = "/dev/fuse"
	fuseConf   = "/etc/fuse.conf"
)

// CheckMeans says what a mount would fail for on this machine, and what to do about it:
// ErrNoFuseDevice, ErrNoFusermount, ErrNotSetuid, ErrAllowOther. Mount does it too; who has
// much to do before does it first.
func CheckMeans(opt *Options) error {
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

// FusermountPath finds the helper, also where there is no PATH.
func FusermountPath() (string, error) {
	for _, name := range []string{"fusermount3", "/bin/fusermount3", "fusermount", "/bin/fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNoFusermount
}

func checkFusermount() error {
	path, err := FusermountPath()
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

// mountDirectly mounts with fsopen(2) and its kin, which put a mount on an open directory,
// wherever its path leads meanwhile.
func mountDirectly(path string, opt *Options) (fd int, err error) {
	on := opt.On
	if on == nil {
		if on, err = os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
			return -1, err
		}
		defer on.Close()
	}
	if fd, err = unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return -1, err
	}
	mount, err := newMount(fd, opt)
	if err == nil {
		err = errors.Join(attach(mount, int(on.Fd()), path), unix.Close(mount))
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// newMount makes a mount that is nowhere yet, whose requests come by a descriptor.
func newMount(device int, opt *Options) (mount int, err error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	words := append(opt.mountWords(), "source="+opt.fsName(), "subtype="+subtype, fmt.Sprint("fd=", device),
		fmt.Sprintf("rootmode=%o", unix.S_IFDIR), fmt.Sprint("user_id=", os.Geteuid()), fmt.Sprint("group_id=", os.Getegid()))
	attrs := 0
	if opt.ReadOnly {
		words = append(words, "ro")
		attrs |= unix.MOUNT_ATTR_RDONLY
	}
	if opt.Untrusted {
		attrs |= unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	}
	for _, word := range words {
		if name, value, ok := strings.Cut(word, "="); ok {
			err = unix.FsconfigSetString(fs, name, value)
		} else {
			err = unix.FsconfigSetFlag(fs, name)
		}
		if err != nil {
			return -1, os.NewSyscallError("fsconfig "+word, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, os.NewSyscallError("fsconfig", err)
	}
	mount, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	return mount, os.NewSyscallError("fsmount", err)
}

// attach puts a mount on an open directory, and takes it away again where path does not
// lead there: ErrReplaced.
func attach(mount, on int, path string) error {
	if err := unix.MoveMount(mount, "", on, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	err := leadsTo(path, mount)
	if err != nil {
		err = errors.Join(err, unix.Unmount(sys.ProcPath(mount, ""), unix.MNT_DETACH))
	}
	return err
}

// leadsTo is ErrReplaced where a path does not lead to the root of a mount. The mount is not
// asked: nobody may answer yet.
func leadsTo(path string, mount int) error {
	there, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrReplaced, err)
	}
	defer unix.Close(there)
	want, err1 := sys.MountID("/proc/self", strconv.Itoa(mount))
	got, err2 := sys.MountID("/proc/self", strconv.Itoa(there))
	if err := errors.Join(err1, err2); err != nil || got != want {
		return errors.Join(ErrReplaced, err)
	}
	return nil
}

// mountByHelper has fusermount3 mount, which sends the descriptor over a socket that
// _FUSE_COMMFD names (fusermount3(1)).
func mountByHelper(path string, opt *Options) (fd int, err error) {
	helper, err := FusermountPath()
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
	path, err := FusermountPath()
	if err != nil {
		return err
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("fusermount3: %s: %w", strings.TrimSpace(string(out)), err)
	}
	return nil
}
