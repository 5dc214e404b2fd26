package sys

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ReadNow is read(2) of a descriptor that does not block, without telling Go's scheduler
// of it: for those that do it over and over. EAGAIN: there is nothing.
func ReadNow(fd int, buf []byte) (int, error) {
	n, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// Requests of /dev/fuse (linux/fuse.h).
const (
	fuseBackingOpen  = 0x4010e501 // FUSE_DEV_IOC_BACKING_OPEN
	fuseBackingClose = 0x4004e502 // FUSE_DEV_IOC_BACKING_CLOSE
)

// FuseBackingOpen registers an open file that the kernel is to read and write by itself,
// and returns its id. The file may be closed afterwards.
func FuseBackingOpen(device, file int) (int32, syscall.Errno) {
	m := struct { // struct fuse_backing_map
		fd      int32
		flags   uint32
		padding uint64
	}{fd: int32(file)}
	id, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(device), fuseBackingOpen, uintptr(unsafe.Pointer(&m)))
	return int32(id), errno
}

// FuseBackingClose takes an id back.
func FuseBackingClose(device int, id int32) syscall.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(device), fuseBackingClose, uintptr(unsafe.Pointer(&id)))
	return errno
}

// Memory is size bytes from the kernel, at the boundary of a page, for Unmap to give
// back. What is not touched takes no room.
func Memory(size int) ([]byte, error) {
	return unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
}
