package layer

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// gzipLevel is the level of written gzip members, on gzip(1)'s scale.
const gzipLevel = gzip.DefaultCompression

// compress is a worker: it compresses members until there are no more.
func (b *BlobWriter) compress(level zstd.EncoderLevel) {
	pack, err := newPacker(b.c, b.size, level)
	if err != nil {
		b.fail(err)
	}
	for m := range b.work {
		m.out = nil
		if b.failed.Load() == nil {
			if m.out, err = pack(m); err != nil {
				b.fail(err)
			}
		}
		m.ready <- struct{}{}
	}
}

// newPacker makes what compresses one member: a function of its plain bytes alone.
func newPacker(c Compression, size int, level zstd.EncoderLevel) (func(m *blobMember) ([]byte, error), error) {
	switch c {
	case CompressNone:
		return func(m *blobMember) ([]byte, error) { return m.plain, nil }, nil
	case CompressGzip:
		z, err := gzip.NewWriterLevel(io.Discard, gzipLevel)
		if err != nil {
			return nil, err
		}
		return func(m *blobMember) ([]byte, error) {
			buf := bytes.NewBuffer(m.packed[:0])
			z.Reset(buf)
			if _, err := z.Write(m.plain); err != nil {
				return nil, err
			}
			if err := z.Close(); err != nil {
				return nil, err
			}
			m.packed = buf.Bytes()
			return m.packed, nil
		}, nil
	case CompressZstd:
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(size), zstd.WithZeroFrames(true))
		if err != nil {
			return nil, err
		}
		return func(m *blobMember) ([]byte, error) {
			m.packed = enc.EncodeAll(m.plain, m.packed[:0])
			return m.packed, nil
		}, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrUnsupported, c)
}
