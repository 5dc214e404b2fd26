package sys

import (
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// Map maps the first size bytes of f for reading, shared with the page cache.
// The mapping outlives f. A page that the file no longer has is SIGBUS: the
// caller is ready for that where somebody may cut the file short.
// A size of 0 gives an empty slice.
func Map(f *os.File, size int64) ([]byte, error) {
	if size < 0 || size > math.MaxInt {
		return nil, fmt.Errorf("map %s: size %d is out of range", f.Name(), size)
	}
	if size == 0 {
		return nil, nil
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, &os.PathError{Op: "mmap", Path: f.Name(), Err: err}
	}
	return b, nil
}

// Unload takes the pages of a mapping out of the process's memory. They stay in the page
// cache as long as the kernel likes, and come back when they are used.
func Unload(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if err := unix.Madvise(b, unix.MADV_DONTNEED); err != nil {
		return os.NewSyscallError("madvise", err)
	}
	return nil
}

// Unmap ends a mapping; no slice or string of it may be used after that.
func Unmap(b []byte) error {
	if b == nil {
		return nil
	}
	if err := unix.Munmap(b); err != nil {
		return os.NewSyscallError("munmap", err)
	}
	return nil
}
