package notify

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// chown records an owner; the ids are arguments i and i+1. As for the kernel, a file
// belongs to somebody else than the caller unless it is root: to whom is not looked
// for, as what such a process may give away is its group alone.
func (c *call) chown(o object, i int) answer {
	defer o.close()
	if !c.ours(&o) {
		return toKernel
	}
	uid, gid := c.uint(i), c.uint(i+1)
	own := c.ids()
	var to [2]*uint32
	if uid != keep {
		to[0] = &uid
	}
	if gid != keep {
		to[1] = &gid
	}
	if !own.can(unix.CAP_CHOWN) && (to[0] != nil && uid != own.uid.fs || to[1] != nil && !own.member(gid)) {
		return failed(unix.EPERM)
	}
	return failed(c.s.opt.Tree.Chown(o.st.Ino, to[0], to[1]))
}

// mknod records a device. o is the directory; the mode is argument i, the device i+1.
func (c *call) mknod(o object, i int) answer {
	defer o.close()
	mode := c.uint(i)
	if typ := mode & unix.S_IFMT; typ != unix.S_IFCHR && typ != unix.S_IFBLK || !c.ours(&o) {
		return toKernel
	}
	own := c.ids()
	if !own.can(unix.CAP_MKNOD) {
		return failed(unix.EPERM)
	}
	umask, err := c.umask()
	if err != nil {
		return failed(err)
	}
	return failed(c.s.opt.Tree.Mknod(o.st.Ino, o.name, mode&^umask, uint64(c.uint(i+1)), own.uid.fs, own.gid.fs))
}

// umask is the caller's.
func (c *call) umask() (uint32, error) {
	mask, err := sys.ReadUmask(c.pid())
	if err != nil {
		return 0, unix.ESRCH
	}
	return mask, nil
}

const xattrNameMax = 255 // XATTR_NAME_MAX
const xattrSizeMax = 64 << 10

// xattrName is the name of an attribute that the kernel would refuse; ok is false for
// another.
func (c *call) xattrName(i int) (name string, ok bool) {
	name, err := c.readString(c.ptr(i), xattrNameMax+1, unix.ERANGE)
	ok = err == nil && (strings.HasPrefix(name, "security.") && name != "security." ||
		strings.HasPrefix(name, "trusted.") && name != "trusted.")
	return name, ok
}

// maySet reports whether the caller may set an attribute (cap_inode_setxattr and
// xattr_permission in the kernel).
func (c *call) maySet(name string) bool {
	if name == "security.capability" {
		return c.ids().can(unix.CAP_SETFCAP)
	}
	return c.ids().can(unix.CAP_SYS_ADMIN)
}

// setxattr is setxattr(2) and its kin: the arguments after the object are name, value,
// size and flags.
func (c *call) setxattr(o object) answer {
	return c.setAttribute(o, 1, c.ptr(2), c.ptr(3), c.uint(4))
}

// setxattrat is setxattrat(2): argument 3 is the name, 4 points to struct xattr_args,
// 5 is its size.
func (c *call) setxattrat(o object) answer {
	raw, err := c.readMemory(c.ptr(4), 16)
	if err != nil || c.ptr(5) < 16 {
		o.close()
		return toKernel
	}
	e := binary.NativeEndian
	return c.setAttribute(o, 3, e.Uint64(raw), uint64(e.Uint32(raw[8:])), e.Uint32(raw[12:]))
}

func (c *call) setAttribute(o object, nameArg int, addr, size uint64, flags uint32) answer {
	defer o.close()
	name, ok := c.xattrName(nameArg)
	if !ok || size > xattrSizeMax || flags&^(unix.XATTR_CREATE|unix.XATTR_REPLACE) != 0 {
		return toKernel
	}
	data, err := c.readMemory(addr, size)
	if err != nil || !c.ours(&o) {
		return toKernel
	}
	if !c.maySet(name) {
		return failed(unix.EPERM)
	}
	return failed(c.s.opt.Tree.SetXattr(o.st.Ino, name, data, flags))
}

// removexattr is removexattr(2) and its kin; the name is argument i.
func (c *call) removexattr(o object, i int) answer {
	defer o.close()
	name, ok := c.xattrName(i)
	if !ok || !c.ours(&o) {
		return toKernel
	}
	if !c.maySet(name) {
		return failed(unix.EPERM)
	}
	return failed(c.s.opt.Tree.RemoveXattr(o.st.Ino, name))
}
