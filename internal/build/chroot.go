package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// ChrootCommand is the name of the hidden command that becomes a step's command where
// there is no OCI runtime: argv[1] of the process that runChroot starts. Descriptor 3
// has a command as JSON.
const ChrootCommand = "build-chroot"

const commandFD = 3

// runChroot runs a command as root in namespaces of its own, but for the network. When
// ctx ends, or this process does, all its processes are killed.
func (b *builder) runChroot(ctx context.Context, c *command, out io.Writer) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, exe, ChrootCommand)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{r}
	cmd.WaitDelay = killWait
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, Pdeathsig: syscall.SIGKILL,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	runtime.LockOSThread() // the signal comes when the thread ends, not the process
	defer runtime.UnlockOSThread()
	err = cmd.Start()
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return errors.Join(err, w.Close())
	}
	_, err = w.Write(data) // a pipe holds more than any of it
	if err = errors.Join(err, w.Close()); err != nil {
		return errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return asExit(err)
}

// RunChroot is the hidden command. It returns only where it fails.
func RunChroot() error {
	f := os.NewFile(commandFD, "command")
	if f == nil {
		return errors.New("the command is for the program's own use")
	}
	var c command
	err := json.NewDecoder(f).Decode(&c)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("the command is for the program's own use: %w", err)
	}
	if err := enter(&c); err != nil {
		return err
	}
	path := c.Args[0]
	if !filepath.IsAbs(path) {
		if path, err = exec.LookPath(path); err != nil {
			return err
		}
	}
	return fmt.Errorf("run %s: %w", path, unix.Exec(path, c.Args, c.Env))
}

// enter makes a command's mounts and its root directory the process'.
func enter(c *command) error {
	if len(c.Args) == 0 {
		return errors.New("no command")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Sethostname([]byte("build")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := unix.Mount(c.Rootfs, c.Rootfs, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", c.Rootfs, err)
	}
	in := func(name string) string { return filepath.Join(c.Rootfs, name) }
	const plain = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
	for _, m := range []struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}{
		{"proc", "/proc", "proc", plain, ""},
		{"sysfs", "/sys", "sysfs", plain | unix.MS_RDONLY, ""},
		{"tmpfs", "/dev", "tmpfs", unix.MS_NOSUID | unix.MS_STRICTATIME, "mode=755,size=65536k"},
	} {
		if err := unix.Mount(m.source, in(m.target), m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := makeDevices(in); err != nil {
		return err
	}
	for _, b := range c.Binds {
		if err := unix.Mount(b.Source, in(b.Target), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s: %w", b.Target, err)
		}
		if err := unix.Mount("", in(b.Target), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
			return fmt.Errorf("mount %s read-only: %w", b.Target, err)
		}
	}
	if err := changeRoot(c.Rootfs); err != nil {
		return fmt.Errorf("enter %s: %w", c.Rootfs, err)
	}
	unix.Umask(0o022)
	for _, kv := range c.Env {
		if path, ok := cutEnv(kv, "PATH"); ok {
			if err := os.Setenv("PATH", path); err != nil { // for LookPath
				return err
			}
		}
	}
	return nil
}

// changeRoot makes a mountpoint the root, and takes the old one away where the kernel
// lets it: not below an initramfs (pivot_root(2)).
func changeRoot(rootfs string) error {
	if err := unix.Chdir(rootfs); err != nil {
		return err
	}
	err := unix.PivotRoot(".", ".")
	if err == nil {
		err = unix.Unmount(".", unix.MNT_DETACH)
	} else {
		err = unix.Chroot(".")
	}
	return errors.Join(err, unix.Chdir("/"), unix.Setgroups([]int{0}))
}

// makeDevices fills /dev, which is a new file system.
func makeDevices(in func(string) string) error {
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		if err := makeDevice(in("/dev/"+name), unix.Mkdev(1, minor)); err != nil {
			return err
		}
	}
	if err := makeDevice(in("/dev/tty"), unix.Mkdev(5, 0)); err != nil {
		return err
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, in("/dev/"+name)); err != nil {
			return err
		}
	}
	for _, m := range []struct{ name, fstype, data string }{
		{"pts", "devpts", "newinstance,ptmxmode=0666,mode=0620"}, {"shm", "tmpfs", "mode=1777"},
	} {
		dir := in("/dev/" + m.name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fstype, dir, m.fstype, unix.MS_NOSUID|unix.MS_NOEXEC, m.data); err != nil {
			return fmt.Errorf("mount /dev/%s: %w", m.name, err)
		}
	}
	return nil
}

func makeDevice(name string, dev uint64) error {
	if err := unix.Mknod(name, unix.S_IFCHR|0o666, int(dev)); err != nil {
		return &os.PathError{Op: "mknod", Path: name, Err: err}
	}
	return os.Chmod(name, 0o666)
}
