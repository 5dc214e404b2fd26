package userns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// setUpMounts makes the program's mounts in the init's mount namespace, and changes the
// root to the bundle's.
func setUpMounts(sp *spec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts apart: %w", err)
	}
	// pivot_root(2) wants a mount of this namespace.
	if err := unix.Mount(sp.Rootfs, sp.Rootfs, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return &os.PathError{Op: "bind", Path: sp.Rootfs, Err: err}
	}
	root, err := unix.Open(sp.Rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: sp.Rootfs, Err: err}
	}
	defer unix.Close(root)
	t := inRoot(root)
	for _, step := range []func() error{
		t.proc,
		t.sys,
		func() error { return t.dev(!sp.OneID) },
		t.resolvConf,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	for _, b := range sp.Binds {
		if err := t.bindReadOnly(b.Source, b.Target); err != nil {
			return err
		}
	}
	if sp.Tmpfs {
		if err := t.mount("tmpfs", tmpName, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
			return err
		}
	}
	if err := unix.Fchdir(root); err != nil {
		return &os.PathError{Op: "chdir", Path: sp.Rootfs, Err: err}
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return &os.PathError{Op: "pivot_root", Path: sp.Rootfs, Err: err}
	}
	// The old root is on top of the new one (pivot_root(2), "pivot_root(".", ".")").
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return os.Chdir("/")
}

// inRoot is a tree to be mounted into, by a descriptor of its root. Its paths are
// followed as by a process whose root it is: nothing leads out of it.
type inRoot int

// open finds a path below the root; the descriptor is of kind O_PATH.
func (r inRoot) open(name string, flags uint64) (int, error) {
	return unix.Openat2(int(r), name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// at calls f with a path that leads to name below the root. Where there is no such
// thing, it is not called: an image without /sys has none.
func (r inRoot) at(name string, f func(path string) error) error {
	fd, err := r.open(name, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Join("/", name), Err: err}
	}
	defer unix.Close(fd)
	if err := f(sys.ProcPath(fd, "")); err != nil {
		return &os.PathError{Op: "mount on", Path: filepath.Join("/", name), Err: err}
	}
	return nil
}

func (r inRoot) mount(source, name, typ string, flags uintptr, data string) error {
	return r.at(name, func(path string) error { return unix.Mount(source, path, typ, flags, data) })
}

// proc mounts the pid namespace's /proc. Where parts of /proc are hidden from this
// process, as in most containers, the kernel does not allow another one (EPERM); the
// one there is shows other processes than the program's own, and serves those that
// look for what is the machine's.
func (r inRoot) proc() error {
	err := r.mount("proc", "proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if errors.Is(err, unix.EPERM) {
		return r.mount("/proc", "proc", "", unix.MS_BIND|unix.MS_REC, "")
	}
	return err
}

// sys binds the machine's /sys, read-only.
func (r inRoot) sys() error { return r.bindReadOnly("/sys", "sys") }

// bindReadOnly binds what is on the machine, if it is there, with all below.
func (r inRoot) bindReadOnly(source, name string) error {
	if _, err := os.Stat(source); err != nil {
		return nil //nolint:nilerr // then there is nothing to bind
	}
	err := r.mount(source, name, "", unix.MS_BIND|unix.MS_REC, "")
	if err != nil {
		return err
	}
	return r.at(name, func(path string) error {
		err := unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		if errors.Is(err, unix.ENOSYS) {
			return nil // before Linux 5.12; what the user may not change stays so
		}
		return err
	})
}

// resolvConf binds the machine's list of name servers over the image's file. A symlink
// there that leads nowhere is left alone.
func (r inRoot) resolvConf() error { return r.bindReadOnly("/etc/resolv.conf", "etc/resolv.conf") }

// devices are those of the machine's that a program finds in /dev.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// dev makes /dev: a tmpfs, of which nothing is recorded.
func (r inRoot) dev(group5 bool) error {
	return r.at("dev", func(path string) error {
		if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID, "mode=755,size=64k"); err != nil {
			return err
		}
		// path leads to what is below the mount.
		fd, err := r.open("dev", unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return fillDev(sys.ProcPath(fd, ""), group5)
	})
}

func fillDev(dir string, group5 bool) error {
	for _, name := range devices {
		target := filepath.Join(dir, name)
		f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
		if err == nil {
			err = f.Close()
		}
		if err == nil {
			err = unix.Mount("/dev/"+name, target, "", unix.MS_BIND, "")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
		"ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for _, m := range []struct{ name, typ, data string }{
		{"pts", "devpts", "newinstance,ptmxmode=0666,mode=0620"},
		{"shm", "tmpfs", "mode=1777"},
	} {
		path := filepath.Join(dir, m.name)
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		if m.typ == "devpts" && group5 {
			m.data += ",gid=5"
		}
		err := unix.Mount(m.typ, path, m.typ, unix.MS_NOSUID|unix.MS_NOEXEC, m.data)
		if errors.Is(err, unix.EINVAL) && group5 && m.typ == "devpts" { // the range has no 5
			err = unix.Mount(m.typ, path, m.typ, unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}
