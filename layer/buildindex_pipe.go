package layer

import (
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
	// Buffers of each kind that go round: one at each goroutine, and those that wait to
	// be hashed.
	storedChunks = 2 + hashUrgent
	plainChunks  = 3 + hashUrgent
)

// indexPass is one pass over a layer's blob:
//
//	readStored ─┬─ stored ──▶ decode ─┬─ toScan ──▶ scanPlain
//	    ▲       └─ storedHash     ▲   └─ plainHash
//	    └───── freeStored         └───── freePlain
//
// Every channel holds all buffers of its kind, so no send blocks. A buffer is free when
// both that it went to have done with it; hashing is the queue's (hashqueue.go).
type indexPass struct {
	stop     <-chan struct{} // closed when the pass is to be given up
	f        *os.File
	ix       *blobIndex
	raw      bool // the plain stream is the stored one
	progress func(int64)
	shared   *sharedWork

	stored     chan *storedBuf // closed by readStored
	freeStored chan *storedBuf
	storedHash *hashStream
	readErr    error // readStored's, valid when stored is closed
	readAll    bool  // the same

	toScan    chan *plainBuf // closed by endPlain
	freePlain chan *plainBuf
	plainHash *hashStream
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
	refs atomic.Int32
}

const storedHead = inflate.MinInput

// plainBuf is a piece of the plain stream: data[from:to].
type plainBuf struct {
	data     []byte
	from, to int
	refs     atomic.Int32
}

func newIndexPass(f *os.File, ix *blobIndex, opt passOptions) *indexPass {
	p := &indexPass{
		f: f, ix: ix, progress: opt.progress, shared: opt.shared,
		stored:     make(chan *storedBuf, storedChunks),
		freeStored: make(chan *storedBuf, storedChunks),
		storedHash: opt.shared.hashes.stream(true),
		plainHash:  opt.shared.hashes.stream(false),
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

// readStored reads the file.
func (p *indexPass) readStored() {
	defer close(p.stored)
	p.readAll = p.ix.storedSize == 0
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
		b.at, b.end = off, storedHead+n
		off += int64(n)
		p.readAll = off == p.ix.storedSize
		b.refs.Store(2)
		p.storedHash.add(piece, func() { p.recycle(b) })
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
		if !p.readAll {
			return nil, errStopped
		}
		return nil, io.EOF
	}
	p.storedAt = b.at
	return b, nil
}

// recycle gives a piece back that was hashed or decoded.
func (p *indexPass) recycle(b *storedBuf) {
	if b != nil && b.refs.Add(-1) == 0 {
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
	if p.raw { // its plain stream is the stored one
		b.refs.Store(1)
	} else {
		b.refs.Store(2)
		p.plainHash.add(b.data[b.from:b.to], func() { p.release(b) })
	}
	p.toScan <- b
}

// endPlain ends the plain stream, with an error or without.
func (p *indexPass) endPlain(err error) {
	p.plainErr = err
	close(p.toScan)
}

// release gives a buffer back that was hashed or scanned.
func (p *indexPass) release(b *plainBuf) {
	if b.refs.Add(-1) == 0 {
		p.freePlain <- b
	}
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
