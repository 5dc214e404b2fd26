package layer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The zstd format (RFC 8878) as far as frames can be told apart without decoding.
const (
	zstdMagic         = 0xfd2fb528
	zstdSkippable     = 0x184d2a50 // the low four bits may be anything
	zstdMaxHeader     = 4 + 1 + 1 + 4 + 8
	zstdMaxBlock      = 128 << 10 // plain bytes of one block at most
	zstdBlockHeader   = 3
	zstdBlockReserved = 3
	zstdBlockRLE      = 1
	zstdChecksum      = 4
)

// zstdFrame is one frame as it lies in a file.
type zstdFrame struct {
	at, size  int64 // in the file, bytes
	plain     int64 // plain bytes at most; the exact number if the header has it
	skippable bool
}

// errZstd says that a zstd stream is garbled.
var errZstd = errors.New("invalid zstd frame")

// zstdWalker finds the frames of a file.
type zstdWalker struct {
	r    io.ReaderAt
	size int64
	off  int64 // of the next frame

	buf [4096]byte
	at  int64 // where buf lies in the file
	n   int   // bytes in buf
}

// peek gives up to n ≤ len(buf) bytes at off.
func (w *zstdWalker) peek(off int64, n int) ([]byte, error) {
	if off >= w.size {
		return nil, nil
	}
	n = int(min(int64(n), w.size-off))
	if off < w.at || off+int64(n) > w.at+int64(w.n) {
		m, err := w.r.ReadAt(w.buf[:min(int64(len(w.buf)), w.size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read layer: %w", err)
		}
		w.at, w.n = off, m
		n = min(n, m)
	}
	return w.buf[off-w.at:][:n], nil
}

// next is the next frame; io.EOF behind the last one.
func (w *zstdWalker) next() (zstdFrame, error) {
	fr := zstdFrame{at: w.off}
	if w.off == w.size {
		return fr, io.EOF
	}
	p, err := w.peek(w.off, zstdMaxHeader)
	if err != nil {
		return fr, err
	}
	if len(p) < 8 {
		return fr, w.bad(io.ErrUnexpectedEOF)
	}
	if magic := binary.LittleEndian.Uint32(p); magic&^15 == zstdSkippable {
		fr.skippable = true
		fr.size = 8 + int64(binary.LittleEndian.Uint32(p[4:]))
	} else {
		if magic != zstdMagic {
			return fr, w.bad(errZstd)
		}
		if err := w.blocks(&fr, p[4:]); err != nil {
			return fr, err
		}
	}
	if fr.size > w.size-w.off {
		return fr, w.bad(io.ErrUnexpectedEOF)
	}
	w.off += fr.size
	return fr, nil
}

func (w *zstdWalker) bad(err error) error {
	return fmt.Errorf("zstd frame at %d: %w", w.off, err)
}

// blocks walks the blocks of a frame whose header, behind the magic, p begins with.
func (w *zstdWalker) blocks(fr *zstdFrame, p []byte) error {
	desc := p[0]
	single, checksum := desc>>5&1, desc>>2&1
	dict := [4]int{0, 1, 2, 4}[desc&3]
	fcs := [4]int{int(single), 2, 4, 8}[desc>>6]
	header := 1 + int(1-single) + dict
	if len(p) < header+fcs {
		return w.bad(io.ErrUnexpectedEOF)
	}
	content := int64(-1)
	switch field := p[header:]; fcs {
	case 1:
		content = int64(field[0])
	case 2:
		content = int64(binary.LittleEndian.Uint16(field)) + 256
	case 4:
		content = int64(binary.LittleEndian.Uint32(field))
	case 8:
		content = int64(binary.LittleEndian.Uint64(field))
		if content < 0 {
			return w.bad(errZstd)
		}
	}
	off, last := fr.at+4+int64(header+fcs), false
	for !last {
		b, err := w.peek(off, zstdBlockHeader)
		if err != nil {
			return err
		}
		if len(b) < zstdBlockHeader {
			return w.bad(io.ErrUnexpectedEOF)
		}
		h := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
		last = h&1 != 0
		size := int64(h >> 3)
		switch h >> 1 & 3 {
		case zstdBlockReserved:
			return w.bad(errZstd)
		case zstdBlockRLE:
			size = 1
		}
		off += zstdBlockHeader + size
		fr.plain += zstdMaxBlock
	}
	if content >= 0 {
		if content > fr.plain {
			return w.bad(errZstd)
		}
		fr.plain = content
	}
	fr.size = off + int64(checksum)*zstdChecksum - fr.at
	return nil
}

// zstdSpan is a run of frames that is decoded at once.
type zstdSpan struct {
	at, size int64 // in the file, bytes
	plain    int64 // plain bytes at most
}

const (
	// zstdSpanPlain is what frames are put together up to, in plain bytes, so that
	// small ones do not each make a record.
	zstdSpanPlain = 1 << 20
	// zstdFramePlain is how much a frame may hold to be a span of its own. Beyond
	// that a layer is transcoded.
	zstdFramePlain = 4 << 20
	// zstdSkip is how long a skippable frame may be to be part of a span.
	zstdSkip = 64 << 10
)

// zstdSpans finds the spans of a file of size bytes. big says that a frame is too
// long to be one; spans is nil then.
func zstdSpans(r io.ReaderAt, size int64) (spans []zstdSpan, big bool, err error) {
	w := zstdWalker{r: r, size: size}
	open := false // the last span can take more
	for {
		fr, err := w.next()
		if errors.Is(err, io.EOF) {
			return spans, false, nil
		}
		if err != nil {
			return nil, false, err
		}
		if fr.plain > zstdFramePlain || !fr.skippable && fr.size > 2*zstdFramePlain {
			return nil, true, nil
		}
		if open {
			s := &spans[len(spans)-1]
			if (!fr.skippable || fr.size <= zstdSkip) && s.plain+fr.plain <= zstdSpanPlain && s.size+fr.size <= zstdSpanPlain {
				s.size += fr.size
				s.plain += fr.plain
				continue
			}
		}
		if open = !fr.skippable || fr.size <= zstdSkip; open {
			spans = append(spans, zstdSpan{at: fr.at, size: fr.size, plain: fr.plain})
		}
	}
}
