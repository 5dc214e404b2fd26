package fusefs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// device is one connection with the kernel: an open /dev/fuse with a mount. Requests
// are read and answered by the request loop alone; what the kernel is told of the
// server's own accord may come from anywhere, also after the end.
type device struct {
	fd int // does not block; immutable

	mu     sync.RWMutex // held by those who are not the request loop while they use fd
	closed bool         // protected by mu
}

// newDevice takes a descriptor over.
func newDevice(fd int) (*device, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &device{fd: fd}, nil
}

// close ends the connection. The request loop must have ended.
func (d *device) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return unix.Close(d.fd)
}

// tryRead reads a request, if there is one: EAGAIN. ENODEV or ECONNABORTED when nothing is
// mounted any more, ENOENT where the request was given up meanwhile.
func (d *device) tryRead(buf []byte) (int, error) { return sys.ReadNow(d.fd, buf) }

// wait sleeps until there is a request, or an end.
func (d *device) wait() error {
	fds := [1]unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Ppoll(fds[:], nil, nil); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// write gives the kernel a reply or a notice, which starts with its fuse.OutHeader.
func (d *device) write(b []byte) error {
	for {
		if _, err := unix.Write(d.fd, b); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// The notices that are sent (enum fuse_notify_code in linux/fuse.h).
const (
	notifyInvalInode = 2
	notifyInvalEntry = 3
)

// InodeNotify makes the kernel forget an inode's attributes and, where off is not
// negative, its cached data from there on (0 bytes: to the end). ENOENT: it does not
// know the inode.
func (d *device) InodeNotify(node uint64, off, length int64) fuse.Status {
	const size = 24 // struct fuse_notify_inval_inode_out
	b := notice(notifyInvalInode, size)
	b = binary.NativeEndian.AppendUint64(b, node)
	b = binary.NativeEndian.AppendUint64(b, uint64(off))
	return d.notify(binary.NativeEndian.AppendUint64(b, uint64(length)))
}

// EntryNotify makes the kernel forget what a name stands for, or that it is not there.
// ENOENT: it does not know the directory or the name.
func (d *device) EntryNotify(dir uint64, name string) fuse.Status {
	const size = 16 // struct fuse_notify_inval_entry_out
	b := notice(notifyInvalEntry, size+len(name)+1)
	b = binary.NativeEndian.AppendUint64(b, dir)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(name)))
	b = binary.NativeEndian.AppendUint32(b, 0) // flags
	return d.notify(append(append(b, name...), 0))
}

// notice is the header of a notice with size bytes behind it (struct fuse_out_header:
// the code in the place of the error, and no request's number).
func notice(code uint32, size int) []byte {
	b := make([]byte, 0, outHeaderSize+size)
	b = binary.NativeEndian.AppendUint32(b, uint32(outHeaderSize+size))
	b = binary.NativeEndian.AppendUint32(b, code)
	return binary.NativeEndian.AppendUint64(b, 0)
}

func (d *device) notify(b []byte) fuse.Status {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return fuse.ENODEV
	}
	return fuse.ToStatus(d.write(b))
}

// RegisterBackingFd gives an id for an open file that the kernel is to read and write by
// itself. The descriptor may be closed afterwards.
func (d *device) RegisterBackingFd(fd int) (int32, syscall.Errno) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return 0, syscall.EBADF
	}
	return sys.FuseBackingOpen(d.fd, fd)
}

// UnregisterBackingFd takes an id back.
func (d *device) UnregisterBackingFd(id int32) syscall.Errno {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return syscall.EBADF
	}
	return sys.FuseBackingClose(d.fd, id)
}

// start answers the kernel's first request, in which both sides say what they are
// capable of, and returns what the kernel can (the CAP_ flags of fuse.InitIn).
func (d *device) start(handle handler, b *buffers) (kernelFlags uint64, err error) {
	var n int
	for n, err = d.tryRead(b.in); errors.Is(err, unix.EAGAIN); n, err = d.tryRead(b.in) {
		if err := d.wait(); err != nil {
			return 0, err
		}
	}
	if err != nil {
		return 0, err
	}
	if opcode := b.opcode(); opcode != requestInit || n < inHeaderSize+16 {
		return 0, fmt.Errorf("the kernel begins with request %d, not with INIT", opcode)
	}
	// struct fuse_init_in, of which old kernels do not send the second half of the flags.
	kernelFlags = uint64(binary.NativeEndian.Uint32(b.in[inHeaderSize+12:]))
	if n >= inHeaderSize+20 {
		kernelFlags |= uint64(binary.NativeEndian.Uint32(b.in[inHeaderSize+16:])) << 32
	}
	if err := d.write(b.answer(handle, n)); err != nil {
		return 0, fmt.Errorf("answer INIT: %w", err)
	}
	return kernelFlags, nil
}
