package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Statx is statx(2). For a name of one part it is unix.Statx without that one's copy of
// the name on the heap.
func Statx(dir int, name string, flags, mask int, st *unix.Statx_t) error {
	var buf [unix.NAME_MAX + 1]byte
	if !cString(buf[:], name) {
		return unix.Statx(dir, name, flags, mask, st)
	}
	_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(dir), uintptr(unsafe.Pointer(&buf[0])),
		uintptr(flags), uintptr(mask), uintptr(unsafe.Pointer(st)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
