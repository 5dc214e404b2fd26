package layer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"

	"github.com/umoci-mount/umoci-mount/layer/inflate"
)

var _ Blob = (*spanBlob)(nil)

// extendStep is the grain in which spans are decoded, in plain bytes: what a
// reader waits for at most beyond what it asked for.
const extendStep = 128 << 10

// spanBlob is a blob whose plain stream is had by decoding spans.
type spanBlob struct {
	ix    *blobIndex
	src   Source
	file  checkedFile
	cache *spanCache
	slots []atomic.Pointer[spanEntry] // by span; the entry of one that is cached
	kept  *keptSpans                  // nil: nothing is kept on disk

	// extend decodes e until want bytes are done, or more.
	//
	// Preconditions: e.mu is held, done < want ≤ e.size.
	extend func(b *spanBlob, e *spanEntry, want int) error

	ahead  sync.WaitGroup // spans being decoded ahead of their readers, or written
	closed atomic.Bool
}

// openBlob gives the plain stream of a layer. f is the layer's blob, or the side
// file where ix.usesSide; it is taken over, also when an error is returned. A file
// of another size than the indexed one is a *CorruptError.
func openBlob(f *os.File, src Source, ix *blobIndex, cache *spanCache) (_ Blob, Err error) {
	defer func() {
		if Err != nil {
			_ = f.Close() // read-only: nothing can be lost
		}
	}()
	if !ix.describes(src) {
		return nil, fmt.Errorf("blob index is of another layer than %s: %w", src.Digest, ErrCorrupt)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", src.Digest, err)
	}
	if st.Size() != ix.dataSize {
		return nil, &CorruptError{Blob: src.Digest, Err: fmt.Errorf("%w: %s has %d bytes, indexed were %d",
			errChanged, f.Name(), st.Size(), ix.dataSize)}
	}
	file := ix.check()
	file.f = f
	if ix.kind == blobRaw {
		return newRawBlob(file, src), nil
	}
	b := &spanBlob{ix: ix, src: src, file: file, cache: cache, slots: make([]atomic.Pointer[spanEntry], ix.numSpans())}
	b.kept = cache.disk.keptOf(src, ix)
	b.extend = (*spanBlob).extendZstd
	if ix.kind == blobGzip {
		b.extend = (*spanBlob).extendGzip
	}
	return b, nil
}

// Size is the length of the plain stream in bytes.
func (b *spanBlob) Size() int64 { return b.ix.plainSize }

// Ready reports whether the spans of the range are decoded as far as it goes.
func (b *spanBlob) Ready(off int64, n int) bool {
	if off < 0 || n <= 0 || off >= b.ix.plainSize || int64(n) > b.ix.plainSize-off {
		return false
	}
	for i, end := b.ix.find(off), off+int64(n); i < b.ix.numSpans() && b.ix.spanOut(i) < end; i++ {
		e := b.slots[i].Load()
		if e == nil || e.refs.Load() == 0 || e.out+e.done.Load() < min(end, e.out+int64(e.size)) {
			return false
		}
	}
	return true
}

// Direct never can: the file is compressed.
func (b *spanBlob) Direct(int64, int) (fd int, fdOff int64, m int, ok bool) { return -1, 0, 0, false }

// Close waits for decoding ahead to end and closes the file.
func (b *spanBlob) Close() error {
	b.closed.Store(true)
	b.ahead.Wait()
	b.cache.forget(b)
	return errors.Join(b.kept.close(), b.file.f.Close())
}

// ReadAt decodes what is not cached. Spans that are cached cost neither a lock nor
// an allocation.
func (b *spanBlob) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case off < 0:
		return 0, fmt.Errorf("read layer at negative offset: %w", fs.ErrInvalid)
	case len(p) == 0:
		return 0, nil
	case off >= b.ix.plainSize:
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > b.ix.plainSize-off {
		p, end = p[:b.ix.plainSize-off], io.EOF
	}
	n := 0
	for i := b.ix.find(off); n < len(p); i++ {
		e := b.acquire(i)
		m, err := b.readSpan(e, p[n:], int(off+int64(n)-e.out))
		e.release()
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, end
}

// readSpan reads from one span, at from of it, up to its end.
func (b *spanBlob) readSpan(e *spanEntry, p []byte, from int) (int, error) {
	n := min(len(p), e.size-from)
	if int(e.done.Load()) < from+n {
		if err := b.decode(e, from+n); err != nil {
			return 0, &CorruptError{Blob: b.src.Digest, Offset: e.out + e.done.Load(), Err: err}
		}
	}
	copy(p[:n], e.buf[e.head+from:])
	if !e.hot.Load() {
		e.hot.Store(true)
	}
	if !e.next.Load() && e.served.Add(int64(n))*2 > int64(e.size) && from+n > e.size/2 {
		b.readAhead(e)
	}
	return n, nil
}

// decode makes want bytes of e readable.
func (b *spanBlob) decode(e *spanEntry, want int) (err error) {
	defer catchFault(guardFaults(), &err)
	e.mu.Lock()
	defer e.mu.Unlock()
	if int(e.done.Load()) >= want {
		return nil
	}
	if e.done.Load() == 0 && b.readKept(e) {
		return nil
	}
	want = min((want+extendStep-1)/extendStep*extendStep, e.size)
	if err := b.extend(b, e, want); err != nil {
		return err
	}
	if int(e.done.Load()) == e.size {
		b.keep(e)
	}
	return nil
}

// readKept takes e from the disk, if it is there. Preconditions: as extend.
func (b *spanBlob) readKept(e *spanEntry) bool {
	var row keptRow
	if !b.kept.has(e.index, e.size, &row) {
		return false
	}
	b.allocate(e)
	if !b.kept.read(&row, e.alignedBuf(), e.index, e.out, e.size) {
		return false
	}
	e.done.Store(int64(e.size))
	return true
}

// keep writes e, which is decoded, to the disk on another goroutine, if one is free.
func (b *spanBlob) keep(e *spanEntry) {
	if !b.kept.wanted() || b.closed.Load() {
		return
	}
	select {
	case b.kept.disk.writers <- struct{}{}:
	default:
		return
	}
	e.refs.Add(1) // it is in use: see decode
	b.ahead.Go(func() {
		defer func() { <-b.kept.disk.writers }()
		defer e.release()
		b.kept.write(e.alignedBuf(), e.index, e.out, e.size)
	})
}

// allocate gives e its memory, if it has none yet: with room for the window that
// decoding begins with, where there is one.
func (b *spanBlob) allocate(e *spanEntry) {
	if e.buf != nil {
		return
	}
	head, slack := 0, 0
	if b.ix.kind == blobGzip {
		slack = inflate.OutSlack
		if b.ix.span(e.index).size > 0 {
			head = inflate.WindowSize
		}
	}
	b.cache.alloc(e, head+e.size+slack)
	e.head = head
}

// readAhead decodes the span behind e on another goroutine, if one is free: e is
// being read from front to back.
func (b *spanBlob) readAhead(e *spanEntry) {
	if e.index+1 >= b.ix.numSpans() || !e.next.CompareAndSwap(false, true) || b.closed.Load() {
		return
	}
	select {
	case b.cache.ahead <- struct{}{}:
	default:
		return
	}
	b.ahead.Go(func() {
		defer func() { <-b.cache.ahead }()
		next := b.acquire(e.index + 1)
		defer next.release()
		for done := 0; done < next.size && !b.closed.Load(); done = int(next.done.Load()) {
			if b.decode(next, done+1) != nil {
				return // its reader will meet the error again
			}
		}
	})
}
