package notify

import (
	"bytes"

	"golang.org/x/sys/unix"
)

const pageSize = 4096 // or a multiple of it: never reads across the end of a mapping

// readMemory reads the caller's memory whole. EFAULT.
func (c *call) readMemory(addr, size uint64) ([]byte, error) {
	out := make([]byte, 0, size)
	for uint64(len(out)) < size {
		chunk, err := c.readSome(addr+uint64(len(out)), size-uint64(len(out)))
		if err != nil {
			return nil, err
		}
		out = append(out, chunk...)
	}
	return out, nil
}

// readSome reads up to the end of a page.
func (c *call) readSome(addr, size uint64) ([]byte, error) {
	size = min(size, pageSize-addr%pageSize)
	buf := make([]byte, size)
	local := []unix.Iovec{{Base: &buf[0], Len: size}}
	remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: int(size)}}
	n, err := unix.ProcessVMReadv(c.pid(), local, remote, 0)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, unix.EFAULT
	}
	return buf[:n], nil
}

// readString reads a string that ends with a NUL and has fewer than limit bytes;
// tooLong is the error for another.
func (c *call) readString(addr uint64, limit int, tooLong error) (string, error) {
	var out []byte
	for len(out) < limit {
		chunk, err := c.readSome(addr+uint64(len(out)), uint64(limit-len(out)))
		if err != nil {
			return "", err
		}
		if end := bytes.IndexByte(chunk, 0); end >= 0 {
			return string(append(out, chunk[:end]...)), nil
		}
		out = append(out, chunk...)
	}
	return "", tooLong
}

// writeMemory writes the caller's memory whole. EFAULT.
func (c *call) writeMemory(addr uint64, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	local := []unix.Iovec{{Base: &data[0], Len: uint64(len(data))}}
	remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(data)}}
	n, err := unix.ProcessVMWritev(c.pid(), local, remote, 0)
	if err == nil && n != len(data) {
		err = unix.EFAULT
	}
	return err
}
