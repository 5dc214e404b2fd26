package layer

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/umoci-mount/umoci-mount/layer/inflate"
)

const (
	storedChunk = 256 << 10
	plainChunk  = 256 << 10
	// Buffers of each kind that go round: one at each goroutine and one in between.
	storedChunks = 3
	plainChunks  = 4
)

// indexPass is one pass over a layer's blob:
//
//	readStored ── stored ──▶ decode ── toHash ──▶ hashPlain
//	    ▲                     │ ▲ └─── toScan ──▶ scanPlain
//	    └──── freeStored ─────┘ └──── freePlain ─────┘
//
// Every channel holds all buffers of its kind, so no send blocks.
type indexPass struct {
	stop     <-chan struct{} // closed when the pass is to be given up
	f        *os.File
	ix       *blobIndex
	raw      bool // the plain stream is the stored one
	progress func(int64)

	stored     chan *storedBuf // closed by readStored
	freeStored chan *storedBuf
	sum        *blockSum // of what was read; readStored's, then verdict's
	readErr    error     // readStored's, valid when stored is closed

	toHash    chan *plainBuf // closed by endPlain
	toScan    chan *plainBuf // the same
	freePlain chan *plainBuf
	plainErr  error // why the plain stream ends; set before toScan is closed

	// Of the decoding goroutine.
	storedAt int64     // where the piece it works on begins in the file
	plain    *plainBuf // being filled
	plainAt  int64     // plain bytes that were sent on
}

// storedBuf is a piece of the stored stream: data[storedHead:end], the rest of the
// piece before it may be put in front, and memory that an inflater may read lies
// behind.
type storedBuf struct {
	data [storedHead + storedChunk + inflate.InSlack]byte
	end  int
	at   int64 // where the piece begins in the file
}

const storedHead = inflate.MinInput

// plainBuf is a piece of the plain stream: data[from:to].
type plainBuf struct {
	data     []byte
	from, to int
	refs     atomic.Int32
}

func newIndexPass(f *os.File, ix *blobIndex, progress func(int64)) *indexPass {
	p := &indexPass{
		f: f, ix: ix, progress: progress, sum: newBlockSum(),
		stored:     make(chan *storedBuf, storedChunks),
		freeStored: make(chan *storedBuf, storedChunks),
		toHash:     make(chan *plainBuf, plainChunks),
		toScan:     make(chan *plainBuf, plainChunks),
		freePlain:  make(chan *plainBuf, plainChunks),
	}
	for range storedChunks {
		p.freeStored <- new(storedBuf)
	}
	for range plainChunks {
		p.freePlain <- new(plainBuf)
	}
	return p
}

// readStored reads and hashes the file.
func (p *indexPass) readStored() {
	defer close(p.stored)
	for off := int64(0); off < p.ix.storedSize; {
		var b *storedBuf
		select {
		case b = <-p.freeStored:
		case <-p.stop:
			return
		}
		n := int(min(storedChunk, p.ix.storedSize-off))
		piece := b.data[storedHead : storedHead+n]
		if m, err := p.f.ReadAt(piece, off); m < n {
			if err == nil || errors.Is(err, io.EOF) {
				err = fmt.Errorf("%w: the file was cut to %d bytes", ErrDigest, off+int64(m))
			}
			p.readErr = err
			return
		}
		if _, err := p.sum.Write(piece); err != nil {
			p.readErr = err
			return
		}
		b.at, b.end = off, storedHead+n
		off += int64(n)
		p.stored <- b
		if p.progress != nil {
			p.progress(int64(n))
		}
	}
}

// errStopped is what a decoder gets where its input ended for another reason than
// the end of the file. It is never returned to the caller.
var errStopped = errors.New("pass stopped")

// nextStored gives the next piece, to be given back by recycle; io.EOF at the end.
func (p *indexPass) nextStored() (*storedBuf, error) {
	b, ok := <-p.stored
	if !ok {
		if p.sum.n != p.ix.storedSize {
			return nil, errStopped
		}
		return nil, io.EOF
	}
	p.storedAt = b.at
	return b, nil
}

// recycle takes a piece back.
func (p *indexPass) recycle(b *storedBuf) {
	if b != nil {
		p.freeStored <- b
	}
}

// drainStored lets readStored come to its end.
func (p *indexPass) drainStored() {
	for b := range p.stored {
		p.recycle(b)
	}
}

// nextPlain gives a buffer to be filled, at least size bytes long.
func (p *indexPass) nextPlain(size int) (*plainBuf, error) {
	select {
	case b := <-p.freePlain:
		if len(b.data) < size {
			b.data = make([]byte, size)
		}
		b.from, b.to = 0, 0
		p.plain = b
		return b, nil
	case <-p.stop:
		return nil, errStopped
	}
}

// flush sends the buffer on that nextPlain gave, if any. Its bytes stay as they are
// until nextPlain is called again.
func (p *indexPass) flush() {
	b := p.plain
	p.plain = nil
	if b == nil {
		return
	}
	p.plainAt += int64(b.to - b.from)
	b.refs.Store(2)
	p.toHash <- b
	p.toScan <- b
}

// endPlain ends the plain stream, with an error or without.
func (p *indexPass) endPlain(err error) {
	p.plainErr = err
	close(p.toHash)
	close(p.toScan)
}

// release gives a buffer back that was hashed or scanned.
func (p *indexPass) release(b *plainBuf) {
	if b.refs.Add(-1) == 0 {
		p.freePlain <- b
	}
}

// hashPlain hashes the plain stream. That of a raw layer is the stored one.
func (p *indexPass) hashPlain() (sum [sha256.Size]byte) {
	h := sha256.New()
	for b := range p.toHash {
		if !p.raw {
			_, _ = h.Write(b.data[b.from:b.to]) // never fails: see hash.Hash
		}
		p.release(b)
	}
	h.Sum(sum[:0])
	return sum
}

// scanPlain runs scan over the plain stream and drops what it leaves.
func (p *indexPass) scanPlain(scan func(io.Reader) error) error {
	r := plainReader{p: p}
	var err error
	if scan != nil {
		err = scan(&r)
	}
	if r.cur != nil {
		p.release(r.cur)
	}
	for b := range p.toScan {
		p.release(b)
	}
	return err
}

// plainReader is the plain stream as scan sees it.
type plainReader struct {
	p   *indexPass
	cur *plainBuf
	pos int // next byte of cur.data
}

// Read reads from the buffers as they come.
func (r *plainReader) Read(out []byte) (int, error) {
	if len(out) == 0 {
		return 0, nil
	}
	for r.cur == nil || r.pos == r.cur.to {
		b, ok := <-r.p.toScan
		if !ok {
			if r.p.plainErr != nil {
				return 0, r.p.plainErr
			}
			return 0, io.EOF
		}
		if r.cur != nil {
			r.p.release(r.cur)
		}
		r.cur, r.pos = b, b.from
	}
	n := copy(out, r.cur.data[r.pos:r.cur.to])
	r.pos += n
	return n, nil
}
