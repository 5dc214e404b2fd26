package sys

import (
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The functions below are about a name in an open directory, which is not followed, or
// about an open file itself where the name is empty. Since Linux 6.13 a system call does
// that for names (getxattrat(2) and its like). On older kernels, and for descriptors
// opened with O_PATH, the way leads through /proc/self/fd, whose walk costs several times
// the call.

// noXattrat is set where the kernel lacks the calls.
var noXattrat atomic.Bool

// Getxattr reads an attribute, or its size alone where value is empty. The errors are
// those of getxattr(2).
func Getxattr(dir int, name, attr string, value []byte) (int, error) {
	if name == "" {
		n, err := unix.Fgetxattr(dir, attr, value)
		if errors.Is(err, unix.EBADF) {
			return unix.Getxattr(ProcPath(dir, ""), attr, value)
		}
		return n, err
	}
	n, err := xattrat(unix.SYS_GETXATTRAT, dir, name, attr, value, 0)
	if viaProc(err) {
		return unix.Lgetxattr(ProcPath(dir, name), attr, value)
	}
	return n, err
}

// Setxattr sets an attribute; flags are those of setxattr(2).
func Setxattr(dir int, name, attr string, value []byte, flags int) error {
	if name == "" {
		err := unix.Fsetxattr(dir, attr, value, flags)
		if errors.Is(err, unix.EBADF) {
			return unix.Setxattr(ProcPath(dir, ""), attr, value, flags)
		}
		return err
	}
	_, err := xattrat(unix.SYS_SETXATTRAT, dir, name, attr, value, flags)
	if viaProc(err) {
		return unix.Lsetxattr(ProcPath(dir, name), attr, value, flags)
	}
	return err
}

// Removexattr removes an attribute.
func Removexattr(dir int, name, attr string) error {
	if name == "" {
		err := unix.Fremovexattr(dir, attr)
		if errors.Is(err, unix.EBADF) {
			return unix.Removexattr(ProcPath(dir, ""), attr)
		}
		return err
	}
	_, err := xattrat(unix.SYS_REMOVEXATTRAT, dir, name, attr, nil, 0)
	if viaProc(err) {
		return unix.Lremovexattr(ProcPath(dir, name), attr)
	}
	return err
}

// Listxattr reads the NUL-terminated names, or their size alone where list is empty.
func Listxattr(dir int, name string, list []byte) (int, error) {
	if name == "" {
		n, err := unix.Flistxattr(dir, list)
		if errors.Is(err, unix.EBADF) {
			return unix.Listxattr(ProcPath(dir, ""), list)
		}
		return n, err
	}
	n, err := listxattrat(dir, name, list)
	if viaProc(err) {
		return unix.Llistxattr(ProcPath(dir, name), list)
	}
	return n, err
}

// viaProc reports whether an error may mean that the call itself is not to be had: EPERM
// is how some filters of system calls refuse those that they do not know.
func viaProc(err error) bool { return errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) }

// xattrArgs is struct xattr_args (linux/xattr.h).
type xattrArgs struct {
	value unsafe.Pointer
	size  uint32
	flags uint32
}

// xattrat is getxattrat(2), setxattrat(2) or removexattrat(2), which takes no value.
// ENOSYS: the kernel lacks it, or a name is longer than any may be.
func xattrat(call uintptr, dir int, name, attr string, value []byte, flags int) (int, error) {
	var nameBuf, attrBuf [unix.NAME_MAX + 1]byte // XATTR_NAME_MAX is as long
	if noXattrat.Load() || !cString(nameBuf[:], name) || !cString(attrBuf[:], attr) {
		return 0, unix.ENOSYS
	}
	args := xattrArgs{unsafe.Pointer(unsafe.SliceData(value)), uint32(len(value)), uint32(flags)}
	argsPtr, argsSize := unsafe.Pointer(&args), unsafe.Sizeof(args)
	if call == unix.SYS_REMOVEXATTRAT {
		argsPtr, argsSize = nil, 0
	}
	n, _, errno := unix.Syscall6(call, uintptr(dir), uintptr(unsafe.Pointer(&nameBuf[0])), unix.AT_SYMLINK_NOFOLLOW,
		uintptr(unsafe.Pointer(&attrBuf[0])), uintptr(argsPtr), argsSize)
	runtime.KeepAlive(value)
	return result(n, errno)
}

// listxattrat is listxattrat(2), with the errors of xattrat.
func listxattrat(dir int, name string, list []byte) (int, error) {
	var nameBuf [unix.NAME_MAX + 1]byte
	if noXattrat.Load() || !cString(nameBuf[:], name) {
		return 0, unix.ENOSYS
	}
	n, _, errno := unix.Syscall6(unix.SYS_LISTXATTRAT, uintptr(dir), uintptr(unsafe.Pointer(&nameBuf[0])), unix.AT_SYMLINK_NOFOLLOW,
		uintptr(unsafe.Pointer(unsafe.SliceData(list))), uintptr(len(list)), 0)
	return result(n, errno)
}

// result is what one of the calls returned; that there is none is remembered.
func result(n uintptr, errno unix.Errno) (int, error) {
	switch errno {
	case 0:
		return int(n), nil
	case unix.ENOSYS:
		noXattrat.Store(true)
	}
	return 0, errno
}

// cString copies s with a NUL behind it, and reports whether there is room and no NUL
// in s.
func cString(buf []byte, s string) bool {
	if len(s) >= len(buf) || strings.IndexByte(s, 0) >= 0 {
		return false
	}
	copy(buf, s)
	return true
}
