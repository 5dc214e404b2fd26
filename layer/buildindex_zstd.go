package layer

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
)

// errSide says that a side file cannot be written.
var errSide = errors.New("write transcoded layer")

// zstdIndexer decodes a zstd layer.
type zstdIndexer struct {
	p    *indexPass
	file io.ReaderAt
	side func() (*os.File, error)
	in   storedReader
}

// storedReader is the stored stream as an io.Reader.
type storedReader struct {
	p   *indexPass
	cur *storedBuf
	pos int // next byte of cur.data
}

// Read reads from the pieces as they come.
func (r *storedReader) Read(out []byte) (int, error) {
	for r.cur == nil || r.pos == r.cur.end {
		b, err := r.p.nextStored()
		if err != nil {
			return 0, err
		}
		r.p.recycle(r.cur)
		r.cur, r.pos = b, storedHead
	}
	n := copy(out, r.cur.data[r.pos:r.cur.end])
	r.pos += n
	return n, nil
}

// decode decodes the layer.
func (z *zstdIndexer) decode() error {
	z.in.p = z.p
	defer func() { z.p.recycle(z.in.cur) }()
	spans, big, err := zstdSpans(z.file, z.p.ix.storedSize)
	if err != nil {
		return err
	}
	if big {
		return z.transcode()
	}
	z.p.ix.kind = blobZstd
	dec, err := zstdDecoder()
	if err != nil {
		return fmt.Errorf("decode zstd: %w", err)
	}
	var stored []byte
	at := int64(0)
	for _, s := range spans {
		if _, err := io.CopyN(io.Discard, &z.in, s.at-at); err != nil {
			return err
		}
		at = s.at + s.size
		if int64(cap(stored)) < s.size {
			stored = make([]byte, s.size)
		}
		stored = stored[:s.size]
		if _, err := io.ReadFull(&z.in, stored); err != nil {
			return err
		}
		b, err := z.p.nextPlain(int(s.plain))
		if err != nil {
			return err
		}
		plain, err := dec.DecodeAll(stored, b.data[:0:s.plain])
		if err != nil {
			return fmt.Errorf("frame at %d: %w", s.at, err)
		}
		b.to = len(plain)
		if len(plain) > 0 {
			z.p.ix.addSpan(span{in: s.at * 8, out: z.p.plainAt, data: s.size})
		}
		z.p.flush()
	}
	return nil
}

// transcode decodes the layer and writes it to a side file in frames that can be
// read at random.
func (z *zstdIndexer) transcode() (Err error) {
	ix := z.p.ix
	ix.kind = blobSide
	if z.side == nil {
		return fmt.Errorf("%w: a long zstd frame cannot be read at random without a transcoded copy", ErrUnsupported)
	}
	f, err := z.side()
	if err != nil {
		return fmt.Errorf("%w: %w", errSide, err)
	}
	dec, err := zstd.NewReader(&z.in, zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxZstdWindow))
	if err != nil {
		return fmt.Errorf("decode zstd: %w", err)
	}
	defer dec.Close()
	w := newSideWriter(f)
	defer func() {
		if err := w.Close(); err != nil && Err == nil {
			Err = fmt.Errorf("%w: %w", errSide, err)
		}
		if Err == nil {
			ix.spans, ix.states = w.ix.spans, w.ix.states
			ix.dataSize, ix.dataDigest = w.ix.dataSize, w.ix.dataDigest
		}
	}()
	for {
		b, err := z.p.nextPlain(plainChunk)
		if err != nil {
			return err
		}
		n, err := io.ReadFull(dec, b.data[:plainChunk])
		b.to = n
		if _, err := w.Write(b.data[:n]); err != nil {
			return fmt.Errorf("%w: %w", errSide, err)
		}
		z.p.flush()
		switch {
		case err == nil:
			continue
		case errors.Is(err, io.ErrUnexpectedEOF):
			// ReadFull's mark of a short last piece, or the decoder's own error: that
			// one stays.
			_, err = dec.Read(make([]byte, 1))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return fmt.Errorf("decode zstd: %w", err)
	}
}
