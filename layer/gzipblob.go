package layer

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/umoci-mount/umoci-mount/layer/inflate"
)

const (
	// gzipRead is how many bytes of a file are read at a time while a span is being
	// decoded: whole blocks.
	gzipRead = 2 * blockSize
	// gzipHead is room for what was not consumed of the bytes read before.
	gzipHead = inflate.MinInput
)

// gzipReader decodes a span from a file, verifying what it reads.
type gzipReader struct {
	inflate.Gzip
	file *checkedFile
	next int64 // what is to be read next, at a block's beginning
	base int64 // where In.Buf[0] lies in the file
	buf  [gzipHead + gzipRead + inflate.InSlack]byte
}

var gzipReaders = sync.Pool{New: func() any { return new(gzipReader) }}

// seek puts the reader at a byte of the file.
func (r *gzipReader) seek(file *checkedFile, at int64) error {
	r.file, r.next = file, at&^(blockSize-1)
	r.base = r.next - gzipHead
	r.Fill = r.fill
	r.In = inflate.Input{Buf: r.buf[:], Pos: gzipHead, End: gzipHead}
	if err := r.fill(&r.In); err != nil {
		return err
	}
	r.In.Pos += int(at - (r.base + gzipHead))
	return nil
}

// fill reads on.
func (r *gzipReader) fill(in *inflate.Input) error {
	rest := r.buf[in.Pos:in.End]
	if len(rest) > gzipHead {
		return fmt.Errorf("%d bytes of input are not enough", len(rest))
	}
	in.Pos = gzipHead - len(rest)
	copy(r.buf[in.Pos:], rest)
	n := min(gzipRead, r.file.size-r.next)
	if err := r.file.readBlocks(r.buf[gzipHead:gzipHead+n], r.next); err != nil {
		return err
	}
	r.base = r.next - gzipHead
	r.next += n
	in.End = gzipHead + int(n)
	in.EOF = r.next == r.file.size
	return nil
}

// bit is the position of the next bit in the file, in bits.
func (r *gzipReader) bit() int64 {
	return (r.base+int64(r.In.Pos))*8 - int64(r.Pending())
}

// extendGzip decodes e up to want, or a little further.
func (b *spanBlob) extendGzip(e *spanEntry, want int) error {
	r := gzipReaders.Get().(*gzipReader)
	defer gzipReaders.Put(r)
	if err := b.resumeGzip(e, r); err != nil {
		return err
	}
	done := int(e.done.Load())
	o := inflate.Output{Dst: e.buf, Out: e.head + done, Limit: e.head + want}
	err := r.Decode(&o)
	if o.Out < o.Limit {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("decode gzip: %w", err)
	}
	// An error behind the limit is one behind the span's end, or will come again.
	if done = o.Out - e.head; done >= e.size || err != nil {
		done = min(done, e.size)
		e.state = nil
	}
	if done < e.size {
		if err != nil {
			return fmt.Errorf("decode gzip: %w", err)
		}
		e.bit = r.bit()
		e.state = e.state[:0]
		if r.InMember() {
			e.state = r.AppendState(e.state)
		}
	}
	e.done.Store(int64(done))
	return nil
}

// resumeGzip puts r behind what is done of e.
func (b *spanBlob) resumeGzip(e *spanEntry, r *gzipReader) error {
	s := b.ix.span(e.index)
	bit, state := s.in, b.ix.resume[s.data:][:s.size]
	if e.buf != nil && e.done.Load() > 0 {
		bit, state = e.bit, e.state
	} else if s.size > 0 && crc32.Checksum(state, castagnoli) != s.crc {
		return fmt.Errorf("blob index, resume point %d: %w", e.index, ErrChecksum)
	}
	b.allocate(e)
	if err := r.seek(&b.file, bit>>3); err != nil {
		return err
	}
	if len(state) == 0 {
		r.Start(false)
		return nil
	}
	window, err := r.Resume(state, int(bit&7))
	if err != nil {
		return fmt.Errorf("resume point %d: %w", e.index, err)
	}
	if e.done.Load() == 0 {
		return unpackWindow(e.buf[:e.head], window)
	}
	return nil
}

// unpackWindow fills dst with a window of the index. What the index leaves out at
// its front is never referred to.
func unpackWindow(dst, packed []byte) error {
	clear(dst)
	if len(packed) == 0 {
		return nil
	}
	dec, err := zstdDecoder()
	if err != nil {
		return err
	}
	w, err := dec.DecodeAll(packed, make([]byte, 0, len(dst)))
	if err != nil {
		return fmt.Errorf("blob index, window: %w: %w", ErrCorrupt, err)
	}
	copy(dst[len(dst)-len(w):], w)
	return nil
}
