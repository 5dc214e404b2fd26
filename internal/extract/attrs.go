package extract

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
	"github.com/umoci-mount/umoci-mount/layer"
)

// finish gives an open file or directory its attributes, in this order: the owner,
// since chown(2) takes capabilities and setuid away; attributes, some of which need
// permission to write; the mode; ACLs, which the mode would change; times, last.
// inherited says that it may have attributes already.
func (w *writer) finish(ino layer.Ino, fd int, inherited bool) error {
	if err := w.x.step(); err != nil {
		return err
	}
	a, err := w.x.im.Attr(ino)
	if err != nil {
		return err
	}
	uid, gid, err := w.x.owner(&a)
	if err != nil {
		return err
	}
	if inherited || uid != w.x.euid || gid != w.x.egid {
		if err := unix.Fchown(fd, int(uid), int(gid)); err != nil {
			return ownerError(uid, gid, err)
		}
	}
	if inherited {
		if err := clearXattrs(fd, "."); err != nil {
			return err
		}
	}
	set := func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) }
	if err := w.xattrs(ino, &a, set, false); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, a.Mode&0o7777); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	if err := w.xattrs(ino, &a, set, true); err != nil {
		return err
	}
	times := timesOf(&a)
	if err := unix.UtimesNanoAt(fd, "", times[:], unix.AT_EMPTY_PATH); err != nil {
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return os.NewSyscallError("utimensat", err)
		}
		// Kernels before 5.8 do not know the flag there.
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, sys.ProcPath(fd, ""), times[:], 0); err != nil {
			return os.NewSyscallError("utimensat", err)
		}
	}
	if !w.x.opt.Record {
		return nil
	}
	return w.record(ino, &a, fd)
}

// finishPath is finish for a symlink, device or fifo: fd is a descriptor of it by
// path alone (O_PATH).
func (w *writer) finishPath(ino layer.Ino, fd int, at place) error {
	if err := w.x.step(); err != nil {
		return err
	}
	a, err := w.x.im.Attr(ino)
	if err != nil {
		return err
	}
	uid, gid, err := w.x.owner(&a)
	if err != nil {
		return err
	}
	if !w.x.fresh || uid != w.x.euid || gid != w.x.egid {
		if err := unix.Fchownat(fd, "", int(uid), int(gid), unix.AT_EMPTY_PATH); err != nil {
			return ownerError(uid, gid, err)
		}
	}
	link := a.Mode&unix.S_IFMT == unix.S_IFLNK
	path := sys.ProcPath(fd, "") // leads to the object itself, a symlink too
	set := func(name string, value []byte) error { return unix.Setxattr(path, name, value, 0) }
	if err := w.xattrs(ino, &a, set, false); err != nil {
		return err
	}
	if !link {
		if err := unix.Fchmodat(unix.AT_FDCWD, path, a.Mode&0o7777, 0); err != nil {
			return os.NewSyscallError("fchmodat", err)
		}
		if err := w.xattrs(ino, &a, set, true); err != nil {
			return err
		}
	}
	times := timesOf(&a)
	if err := unix.UtimesNanoAt(at.dir, at.name, times[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("utimensat", err)
	}
	if !w.x.opt.Record {
		return nil
	}
	return w.record(ino, &a, fd)
}

// ownerError says what to do where a caller may not give files away, or where a user
// namespace has no such id.
func ownerError(uid, gid uint32, err error) error {
	err = os.NewSyscallError(fmt.Sprintf("change owner to %d:%d", uid, gid), err)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w (--rootless makes all files the caller's)", err)
	}
	return err
}

// timesOf are the times of access and change of content. A layer has no time of
// access: the other one stands in for it, as with umoci.
func timesOf(a *layer.Attr) [2]unix.Timespec {
	t := unix.Timespec{Sec: a.Mtime.Sec, Nsec: int64(a.Mtime.Nsec)}
	return [2]unix.Timespec{t, t}
}

// aclPrefix is of the attributes that hold POSIX ACLs.
const aclPrefix = "system.posix_acl_"

// xattrs sets the extended attributes: ACLs, or all others.
func (w *writer) xattrs(ino layer.Ino, a *layer.Attr, set func(name string, value []byte) error, acls bool) error {
	if w.x.opt.Rootless && !acls && (a.UID != 0 || a.GID != 0) {
		if err := w.setXattr(ino, set, RootlessXattr, rootlessOwner(a.UID, a.GID)); err != nil {
			return err
		}
	}
	for name, value := range w.x.im.Xattrs(ino) {
		if strings.HasPrefix(name, aclPrefix) != acls {
			continue
		}
		if name == RootlessXattr && w.x.opt.Rootless {
			continue // it says something of another extraction
		}
		if err := w.setXattr(ino, set, name, value); err != nil {
			return err
		}
	}
	return nil
}

// setXattr sets one. Where the file system holds none, or a user may not set it,
// that is noted and no error.
func (w *writer) setXattr(ino layer.Ino, set func(name string, value []byte) error, name string, value []byte) error {
	err := set(name, value)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPERM) && (w.x.opt.Rootless || w.x.userNS || w.x.euid != 0):
	default:
		return fmt.Errorf("set attribute %q: %w", name, err)
	}
	w.x.mu.Lock()
	defer w.x.mu.Unlock()
	l := &w.x.losses
	if l.xattrs == nil {
		l.xattrs = map[string]int{}
		if l.example, err = w.x.im.PathOf(ino); err != nil {
			return err
		}
	}
	l.xattrs[strings.Clone(name)]++
	return nil
}

// tellLosses says what could not be made as it is in the image, in one line a kind.
func (x *extraction) tellLosses() {
	if n := x.losses.devices; n > 0 {
		x.opt.Log.Warn("devices were made as empty files: only root can make them", "devices", n)
	}
	for _, name := range slices.Sorted(maps.Keys(x.losses.xattrs)) {
		x.opt.Log.Warn("an extended attribute could not be set", "attribute", name, "files", x.losses.xattrs[name],
			"example", "/"+x.losses.example)
	}
}

// record notes an inode as it is on the disk.
func (w *writer) record(ino layer.Ino, a *layer.Attr, fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	o := &w.x.objects[ino-1]
	o.Mode, o.UID, o.GID, o.Size = st.Mode, st.Uid, st.Gid, st.Size
	o.Nlink = uint32(st.Nlink) //nolint:unconvert // 32 bits on some architectures
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		o.Nlink = a.Nlink // its other names come later
	}
	o.Mtime = layer.Timespec{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}
	if t := st.Mode & unix.S_IFMT; t != unix.S_IFREG && t != unix.S_IFDIR {
		return nil
	}
	names, err := listXattrs(fd)
	if err != nil {
		return err
	}
	for _, name := range names {
		value, err := growing(func(p []byte) (int, error) { return unix.Fgetxattr(fd, name, p) })
		if err != nil {
			return fmt.Errorf("read attribute %q: %w", name, err)
		}
		if o.Xattrs == nil {
			o.Xattrs = map[string]string{}
		}
		o.Xattrs[name] = string(value)
	}
	return nil
}

// kept are attributes that belong to the host: they are neither set nor removed.
var kept = []string{"security.selinux", "system.nfs4_acl"}

// clearXattrs removes the attributes that something was born with, or had before.
func clearXattrs(fd int, name string) error {
	names, err := listXattrs(fd)
	if err != nil {
		return err
	}
	for _, attr := range names {
		if slices.Contains(kept, attr) {
			continue
		}
		err := unix.Fremovexattr(fd, attr)
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EOPNOTSUPP) {
			return &os.PathError{Op: "remove attribute " + attr, Path: name, Err: err}
		}
	}
	return nil
}

// listXattrs are the names of an open file's attributes.
func listXattrs(fd int) ([]string, error) {
	list, err := growing(func(p []byte) (int, error) { return unix.Flistxattr(fd, p) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("flistxattr", err)
	}
	var out []string
	for name := range bytes.SplitSeq(bytes.TrimSuffix(list, []byte{0}), []byte{0}) {
		if len(name) > 0 {
			out = append(out, string(name))
		}
	}
	return out, nil
}

// growing calls get, which says how large its buffer must be where it is given
// none, until the answer fits.
func growing(get func(p []byte) (int, error)) ([]byte, error) {
	for {
		n, err := get(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		p := make([]byte, n)
		if n, err = get(p); !errors.Is(err, unix.ERANGE) {
			return p[:max(n, 0)], err
		}
	}
}

// inUserNamespace reports whether ids are mapped: user_namespaces(7).
func inUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	return !slices.Equal(strings.Fields(string(b)), []string{"0", "0", "4294967295"})
}
