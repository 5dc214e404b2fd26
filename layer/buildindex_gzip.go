package layer

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/umoci-mount/umoci-mount/layer/inflate"
)

// How far resume points of a gzip layer are apart. docs/blob-index-format.md has
// what these cost and give.
const (
	gzipSpanStored = 128 << 10 // stored bytes
	// Where few stored bytes hold many plain ones, a span is cut after these, and
	// gzipSpanLeast stored ones; at last after gzipSpanMost plain ones.
	gzipSpanPlain = 1 << 20
	gzipSpanLeast = 32 << 10
	gzipSpanMost  = 4 << 20
	// gzipStep is how many plain bytes are decoded before the next look at that.
	gzipStep = 64 << 10
)

// spanFull reports whether a span of that many bytes is long enough. At the
// beginning of a member a new one costs no window: half the length will do.
func spanFull(stored, plain int64, inMember bool) bool {
	if !inMember {
		stored, plain = 2*stored, 2*plain
	}
	return stored >= gzipSpanStored || plain >= gzipSpanPlain && stored >= gzipSpanLeast || plain >= gzipSpanMost
}

// gzipIndexer decodes a gzip layer and records resume points.
type gzipIndexer struct {
	p   *indexPass
	g   inflate.Gzip
	cur *storedBuf // what g.In is in; nil before the first piece

	start   span // of the span being decoded
	window  *inflate.Window
	state   []byte // of the decoder at start
	pending bool   // start is not recorded yet: window is still being tracked

	ahead aheadParts
}

func newGzipIndexer(p *indexPass) *gzipIndexer {
	p.ix.kind = blobGzip
	x := &gzipIndexer{p: p, window: new(inflate.Window)}
	x.ahead = aheadParts{file: p.f, size: p.ix.storedSize, shared: p.shared, next: aheadStored}
	x.g.Fill = x.fill
	x.g.StopAtMember = true
	x.g.Start(true)
	return x
}

// fill gives g the next piece.
func (x *gzipIndexer) fill(in *inflate.Input) error {
	b, err := x.p.nextStored()
	if err != nil {
		if errors.Is(err, io.EOF) {
			in.EOF = true
			return nil
		}
		return err
	}
	rest := in.Buf[in.Pos:in.End]
	if len(rest) > storedHead {
		return fmt.Errorf("%d bytes of input are not enough", len(rest))
	}
	in.Pos, in.End = storedHead-len(rest), b.end
	copy(b.data[in.Pos:], rest)
	in.Buf, in.At = b.data[:], b.at-storedHead
	x.p.recycle(x.cur)
	x.cur = b
	return nil
}

// decode decodes the layer.
func (x *gzipIndexer) decode() error {
	defer func() {
		x.ahead.end()
		x.p.recycle(x.cur)
	}()
	x.p.ix.addSpan(x.start)
	var history []byte
	for {
		if x.g.Paused() {
			var err error
			if history, err = x.takeAhead(history); err != nil {
				return err
			}
			continue
		}
		b, err := x.p.nextPlain(inflate.WindowSize + plainChunk + inflate.OutSlack)
		if err != nil {
			return err
		}
		b.from = copy(b.data, history)
		o := inflate.Output{Dst: b.data, Out: b.from, Origin: x.p.plainAt - int64(b.from)}
		for end := b.from + plainChunk; err == nil && o.Out < end && !x.g.Paused(); {
			if x.ahead.plan(x.g.Bit() / 8); x.g.PauseAt == 0 {
				x.g.PauseAt = x.ahead.pauseAt()
			}
			o.Limit = min(o.Out+gzipStep, end)
			err = x.g.Decode(&o)
			b.to = o.Out
			if err == nil {
				err = x.cut(&o)
			}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		x.p.flush()
		if err != nil {
			return x.finish()
		}
		history = b.data[max(b.to-inflate.WindowSize, 0):b.to]
	}
}

// cut begins a new span where the decoder is, if the present one is long enough.
func (x *gzipIndexer) cut(o *inflate.Output) error {
	at, bit := o.Origin+int64(o.Out), x.g.Bit()
	if x.pending && at-x.start.out >= inflate.WindowSize {
		if err := x.record(); err != nil {
			return err
		}
	}
	inMember := x.g.InMember()
	if at == x.start.out || !spanFull((bit-x.start.in)/8, at-x.start.out, inMember) {
		return nil
	}
	if x.pending {
		if err := x.record(); err != nil {
			return err
		}
	}
	x.start = span{in: bit, out: at}
	if !inMember {
		x.p.ix.addSpan(x.start)
		return nil
	}
	have := o.Dst[max(o.Out-inflate.WindowSize, 0):o.Out]
	gap := inflate.WindowSize - len(have)
	clear(x.window.Bytes[:gap])
	copy(x.window.Bytes[gap:], have)
	x.state = x.g.AppendState(x.state[:0])
	x.g.Track(x.window, at)
	x.pending = true
	return nil
}

// record adds the pending span with its state and window.
func (x *gzipIndexer) record() error {
	x.g.Untrack()
	x.pending = false
	enc, err := windowEncoder()
	if err != nil {
		return fmt.Errorf("pack window: %w", err)
	}
	ix := x.p.ix
	x.start.data = int64(len(ix.resume))
	ix.resume = append(ix.resume, x.state...)
	if w := x.window.Sparse(); len(w) > 0 {
		ix.resume = enc.EncodeAll(w, ix.resume)
	}
	data := ix.resume[x.start.data:]
	x.start.size, x.start.crc = uint32(len(data)), crc32.Checksum(data, castagnoli)
	ix.addSpan(x.start)
	return nil
}

// finish ends the last span, or drops it where it is empty.
func (x *gzipIndexer) finish() error {
	ix := x.p.ix
	if x.start.out == x.p.plainAt {
		if !x.pending {
			ix.spans = ix.spans[:len(ix.spans)-spanSize]
		}
		return nil
	}
	if x.pending {
		return x.record()
	}
	return nil
}

// windowEncoder packs windows. It is shared: EncodeAll is safe for concurrent use.
var windowEncoder = sync.OnceValues(func() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(inflate.WindowSize), zstd.WithLowerEncoderMem(true))
})
