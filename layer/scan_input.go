package layer

import (
	"errors"
	"io"
)

const (
	tarBlock = 512
	// tarBuffer is how much is read at a time. Small enough for the second-level
	// cache: skipped file data is copied here once and never looked at.
	tarBuffer = 128 << 10
)

// errShort says that the stream ended inside something. A reader's own
// io.ErrUnexpectedEOF (a cut gzip member) passes as it is.
var errShort = errors.New("unexpected end of the tar stream")

// tarInput is a buffered reader of tar blocks that knows its offset.
type tarInput struct {
	r        io.Reader
	buf      []byte
	pos, end int   // the unread part of buf
	off      int64 // of buf[pos] in the stream
	err      error // the reader's, once it gave one
}

func newTarInput(r io.Reader) *tarInput {
	return &tarInput{r: r, buf: make([]byte, tarBuffer)}
}

// fill reads until n ≤ len(buf) bytes are buffered, the stream ends or fails.
func (in *tarInput) fill(n int) {
	if in.pos > 0 {
		copy(in.buf, in.buf[in.pos:in.end])
		in.end -= in.pos
		in.pos = 0
	}
	for in.end < n && in.err == nil {
		var m int
		m, in.err = in.r.Read(in.buf[in.end:])
		in.end += m
	}
}

// take consumes n ≤ len(buf) bytes; the slice is valid until the next call.
// io.EOF says that the stream ended before the first of them.
func (in *tarInput) take(n int) ([]byte, error) {
	if in.end-in.pos < n {
		in.fill(n)
	}
	if have := in.end - in.pos; have < n {
		switch {
		case !errors.Is(in.err, io.EOF):
			return nil, in.err
		case have == 0:
			return nil, io.EOF
		default:
			return nil, errShort
		}
	}
	b := in.buf[in.pos : in.pos+n : in.pos+n]
	in.pos += n
	in.off += int64(n)
	return b, nil
}

// block consumes one tar block.
func (in *tarInput) block() ([]byte, error) { return in.take(tarBlock) }

// body appends the next n bytes and drops the padding up to the next block.
func (in *tarInput) body(dst []byte, n int64) ([]byte, error) {
	for left := n; left > 0; {
		b, err := in.take(int(min(left, tarBlock)))
		if err != nil {
			return dst, noEOF(err)
		}
		dst = append(dst, b...)
		left -= int64(len(b))
	}
	return dst, in.pad(n)
}

// skip drops n bytes.
func (in *tarInput) skip(n int64) error {
	for n > 0 {
		if in.pos == in.end {
			if in.err != nil {
				return noEOF(in.err)
			}
			in.pos, in.end = 0, 0
			in.end, in.err = in.r.Read(in.buf)
			continue
		}
		m := min(n, int64(in.end-in.pos))
		in.pos += int(m)
		in.off += m
		n -= m
	}
	return nil
}

// pad drops the padding after n bytes of data. A stream may end in it: all that
// was promised is there.
func (in *tarInput) pad(n int64) error {
	err := in.skip(-n & (tarBlock - 1))
	if errors.Is(err, errShort) {
		return nil
	}
	return err
}

// noEOF turns an end of the stream into errShort.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return errShort
	}
	return err
}
