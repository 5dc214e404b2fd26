package fusefs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// readData is a reply that is in the reply's own buffer already, or is copied there. A
// splice from the file to the kernel is no faster than read and write, and fails at 1 MiB
// for the length of pipes. docs/fuse.md has the figures.
type readData struct{ b []byte }

var readDataPool = sync.Pool{New: func() any { return new(readData) }}

// newRead is a reply with b, which stays in use until the reply is written.
func newRead(b []byte) *readData {
	r, _ := readDataPool.Get().(*readData) // the pool holds nothing else
	r.b = b
	return r
}

// Bytes is the reply.
func (r *readData) Bytes([]byte) ([]byte, fuse.Status) { return r.b, fuse.OK }

// Size is the reply's length in bytes.
func (r *readData) Size() int { return len(r.b) }

// Done is called once the reply is in place.
func (r *readData) Done() {
	r.b = nil
	readDataPool.Put(r)
}
