package fusefs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// readData is a reply from memory, which go-fuse writes with the header in one
// writev(2). Its own form of this goes through a pipe first; and a splice from
// the file, where that is possible, is no faster than read and write, and fails
// at 1 MiB for the length of pipes. docs/fuse.md has the figures.
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
