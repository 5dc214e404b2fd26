package layer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
)

var _ Blob = (*rawBlob)(nil)

// rawBlob is a layer stored as it is. A block is verified when it is first read;
// after that its bytes are trusted, so that they can be spliced.
type rawBlob struct {
	file     checkedFile
	src      Source
	verified []atomic.Uint64 // a bit a block
}

// rawRead is how many bytes are verified at a time: whole blocks.
const rawRead = 8 * blockSize

var rawBuffers = sync.Pool{New: func() any { return new([rawRead]byte) }}

func newRawBlob(file checkedFile, src Source) *rawBlob {
	blocks := (file.size + blockSize - 1) / blockSize
	return &rawBlob{file: file, src: src, verified: make([]atomic.Uint64, (blocks+63)/64)}
}

// Size is the length in bytes.
func (b *rawBlob) Size() int64 { return b.file.size }

// Close closes the file.
func (b *rawBlob) Close() error { return b.file.f.Close() }

// trusted is how many of the n bytes at off, from the first on, were verified.
func (b *rawBlob) trusted(off, n int64) int64 {
	end := off + n
	for at := off; at < end; at = b.file.blockEnd(at &^ (blockSize - 1)) {
		block := at / blockSize
		if b.verified[block/64].Load()&(1<<(block%64)) == 0 {
			return at - off
		}
	}
	return n
}

// Ready is never known: the bytes may have to come from the disk.
func (b *rawBlob) Ready(int64, int) bool { return false }

// Direct answers for bytes that were read before.
func (b *rawBlob) Direct(off int64, n int) (fd int, fdOff int64, m int, ok bool) {
	if off < 0 || off >= b.file.size || n <= 0 {
		return -1, 0, 0, false
	}
	m = int(b.trusted(off, min(int64(n), b.file.size-off)))
	if m == 0 {
		return -1, 0, 0, false
	}
	return int(b.file.f.Fd()), off, m, true
}

// ReadAt reads from the file and verifies what was not verified before.
func (b *rawBlob) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case off < 0:
		return 0, fmt.Errorf("read layer at negative offset: %w", fs.ErrInvalid)
	case len(p) == 0:
		return 0, nil
	case off >= b.file.size:
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > b.file.size-off {
		p, end = p[:b.file.size-off], io.EOF
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		var m int
		var err error
		if t := b.trusted(at, int64(len(p)-n)); t > 0 {
			if m, err = b.file.f.ReadAt(p[n:n+int(t)], at); errors.Is(err, io.EOF) && int64(m) < t {
				err = errChanged
			}
		} else {
			m, err = b.readNew(p[n:], at)
		}
		n += m
		if err != nil && n < len(p) {
			return n, &CorruptError{Blob: b.src.Digest, Offset: off + int64(n), Err: err}
		}
	}
	return len(p), end
}

// readNew verifies the block at off and a few behind it, and reads from them.
func (b *rawBlob) readNew(p []byte, off int64) (int, error) {
	buf := rawBuffers.Get().(*[rawRead]byte)
	defer rawBuffers.Put(buf)
	first := off &^ (blockSize - 1)
	end := first
	for end < off+int64(len(p)) && end-first < rawRead {
		end = b.file.blockEnd(end)
	}
	blocks := buf[:end-first]
	if err := b.file.readBlocks(blocks, first); err != nil {
		return 0, err
	}
	for at := first; at < end; at += blockSize {
		b.verified[at/blockSize/64].Or(1 << (at / blockSize % 64))
	}
	return copy(p, blocks[off-first:]), nil
}
