package fusefs

import (
	"errors"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// spliceMin is the shortest read that is spliced from the file rather than read
// and written, in bytes. Below it the system calls of a splice cost more than the
// copy it saves; docs/fuse.md has the measurement.
const spliceMin = 64 << 10

// readData is a reply from memory. go-fuse writes it with the header in one
// writev(2); its own form of this goes through a pipe first and back.
type readData struct{ pieces [1][]byte }

var readDataPool = sync.Pool{New: func() any { return new(readData) }}

// newRead is a reply with b, which stays in use until the reply is written.
func newRead(b []byte) *readData {
	r, _ := readDataPool.Get().(*readData) // the pool holds nothing else
	r.pieces[0] = b
	return r
}

// Slices is what go-fuse writes after the header.
func (r *readData) Slices() ([][]byte, fuse.Status) { return r.pieces[:], fuse.OK }

// Bytes is the reply in one piece.
func (r *readData) Bytes([]byte) ([]byte, fuse.Status) { return r.pieces[0], fuse.OK }

// Size is the reply's length in bytes.
func (r *readData) Size() int { return len(r.pieces[0]) }

// Done is called once the reply is written.
func (r *readData) Done() {
	r.pieces[0] = nil
	readDataPool.Put(r)
}

// spliced is a reply from an open file, without a copy through our memory. The
// kernel releases the file after the reply, so the descriptor stays valid.
type spliced struct {
	fd  int
	off int64
	n   int
}

var splicedPool = sync.Pool{New: func() any { return new(spliced) }}

func newSpliced(fd int, off int64, n int) *spliced {
	r, _ := splicedPool.Get().(*spliced) // the pool holds nothing else
	*r = spliced{fd: fd, off: off, n: n}
	return r
}

// Seekable is where go-fuse splices from. The file may end early.
func (r *spliced) Seekable() (fd uintptr, off int64, n int) { return uintptr(r.fd), r.off, r.n }

// Bytes is the way without a splice.
func (r *spliced) Bytes(buf []byte) ([]byte, fuse.Status) {
	buf = buf[:min(len(buf), r.n)]
	for {
		n, err := unix.Pread(r.fd, buf, r.off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fuse.EIO
		}
		return buf[:n], fuse.OK
	}
}

// Size is the most that the reply holds, in bytes.
func (r *spliced) Size() int { return r.n }

// Done is called once the reply is written.
func (r *spliced) Done() { splicedPool.Put(r) }
