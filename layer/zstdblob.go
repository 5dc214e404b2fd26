package layer

import (
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow is the largest window a zstd frame may ask for, in bytes: what
// zstd(1) takes without being told to take more.
const maxZstdWindow = 128 << 20

// zstdDecoder decodes whole spans and windows. It is shared: DecodeAll is safe for
// concurrent use. It writes no more than the capacity of its destination.
var zstdDecoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxWindow(maxZstdWindow),
		zstd.WithDecodeAllCapLimit(true))
})

// extendZstd decodes all of e: zstd frames cannot be left in the middle.
func (b *spanBlob) extendZstd(e *spanEntry, _ int) error {
	dec, err := zstdDecoder()
	if err != nil {
		return fmt.Errorf("decode zstd: %w", err)
	}
	s := b.ix.span(e.index)
	at := s.in >> 3
	first, end := at&^(blockSize-1), at+s.data
	stored := make([]byte, min((end+blockSize-1)&^(blockSize-1), b.file.size)-first)
	if err := b.file.readBlocks(stored, first); err != nil {
		return err
	}
	b.allocate(e)
	plain, err := dec.DecodeAll(stored[at-first:end-first], e.buf[:0:len(e.buf)])
	if err != nil {
		return fmt.Errorf("decode zstd: %w", err)
	}
	if len(plain) != e.size {
		return fmt.Errorf("decode zstd: %d bytes, indexed were %d: %w", len(plain), e.size, io.ErrUnexpectedEOF)
	}
	e.done.Store(int64(e.size))
	return nil
}
