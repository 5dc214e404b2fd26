package layer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/umoci-mount/umoci-mount/layer/inflate"
)

// A DEFLATE stream is decoded from its beginning on, by one processor. Where the passes
// over an image's layers leave others idle, these decode parts of it ahead (inflate.Ahead),
// from blocks that they find, and the pass takes what is right: a part begins where the
// pass has come to.
const (
	aheadStored = 512 << 10 // how far apart parts are looked for, in stored bytes
	aheadSearch = 128 << 10 // how far for the first block of one
	aheadTries  = 8         // how many blocks are tried: what looks like one by chance is rare, by intent it need not be
	aheadPlain  = 3 << 20   // a part ends after these, or as many stored ones, so that the memory is bounded
	aheadSpare  = 128 << 10 // what is read with a part: its last block ends behind it

	// aheadMost is how many parts of a layer are decoded at a time: what five processors
	// inflate is more than one hashes, and each part takes some 4 MiB, 10 at most.
	aheadMost = 4
)

// aheadPart is a part of the stream that is decoded ahead.
type aheadPart struct {
	target int64 // position in the stored stream: the part begins with a block from here on
	stop   atomic.Bool
	done   chan struct{} // closed when what follows is final

	start   int64 // where it begins, in bits; -1: no block was found
	cuts    []aheadCut
	windows []*inflate.Window // of the cuts, each at its place
	buf     []byte            // stored bytes from target on, then inflate.InSlack
	a       inflate.Ahead
}

// aheadCut is where a span can begin.
type aheadCut struct {
	bit    int64 // in the stored stream
	out    int   // plain bytes of the part before it
	state  []byte
	window *inflate.Window // says what of it is used; the bytes are not known; nil: at a member's beginning
}

// aheadParts plans the parts of a pass and runs them.
type aheadParts struct {
	file   *os.File
	size   int64 // of the stored stream
	shared *sharedWork

	parts   []*aheadPart // in the order of their targets, the next one to come first
	next    int64        // target of the next part
	running atomic.Int32
	row     int32 // parts planned since the last one that was left out
}

// plan begins parts on idle processors. at is the pass's position in the stored stream.
func (s *aheadParts) plan(at int64) {
	for {
		target := s.next
		if len(s.parts) == 0 {
			target = max(target, at+aheadStored)
		}
		// The pass decodes as much itself as each of those that help it.
		running, row := s.running.Load(), s.row+1
		if row > running+1 {
			target, row = max(target, s.next+aheadStored), 1
		}
		if target+aheadStored/2 > s.size || running == aheadMost || len(s.parts) > 2*int(running)+1 || !s.shared.cpus.TryAcquire(1) {
			return
		}
		s.running.Add(1)
		s.next, s.row = target+aheadStored, row
		p := s.shared.takePart()
		p.target = target
		s.parts = append(s.parts, p)
		go func() {
			defer close(p.done)
			p.decode(s.file, s.size)
			s.running.Add(-1)
			s.shared.cpus.Release(1)
		}()
	}
}

// takePart gives a part that is not used, with the memory of one that was.
func (s *sharedWork) takePart() *aheadPart {
	var p *aheadPart
	s.mu.Lock()
	if n := len(s.parts); n > 0 {
		p, s.parts = s.parts[n-1], s.parts[:n-1]
	} else {
		p = new(aheadPart)
	}
	s.mu.Unlock()
	p.stop.Store(false)
	p.done, p.start, p.cuts = make(chan struct{}), -1, p.cuts[:0]
	return p
}

// pauseAt is where the pass looks for the next part, in bits; 0: there is none.
func (s *aheadParts) pauseAt() int64 {
	if len(s.parts) == 0 {
		return 0
	}
	return s.parts[0].target * 8
}

// at waits for the part that begins at that bit, the beginning of a block. Where the next
// one begins later, later says where.
func (s *aheadParts) at(bit int64) (p *aheadPart, later int64) {
	for len(s.parts) > 0 {
		p = s.parts[0]
		if p.target*8 > bit {
			return nil, p.target * 8
		}
		<-p.done
		if p.start > bit {
			return nil, p.start
		}
		s.parts = s.parts[1:]
		if p.start == bit {
			return p, 0
		}
		s.recycle(p)
	}
	return nil, 0
}

// recycle gives back a part that at gave.
func (s *aheadParts) recycle(p *aheadPart) {
	s.shared.mu.Lock()
	s.shared.parts = append(s.shared.parts, p)
	s.shared.mu.Unlock()
}

// end waits for what still runs.
func (s *aheadParts) end() {
	for _, p := range s.parts {
		p.stop.Store(true)
	}
	for _, p := range s.parts {
		<-p.done
		s.recycle(p)
	}
	s.parts = nil
}

// decode finds the part's first block and decodes up to the first one that the next part
// could begin with, or to the end of the stream or of aheadPlain. What cannot be read or
// decoded is the pass's to find: it comes there itself then.
func (p *aheadPart) decode(file *os.File, size int64) {
	const first = aheadStored + aheadSpare
	if p.buf == nil {
		p.buf = make([]byte, 0, first+inflate.InSlack)
	}
	p.buf = p.buf[:0]
	p.a.Most = aheadPlain + 2*gzipStep
	p.a.In = inflate.Input{At: p.target}
	p.a.Fill = func(in *inflate.Input) error { return p.read(in, file, size, aheadSpare) }
	if p.read(&p.a.In, file, size, first) != nil {
		return
	}
	var f inflate.BlockFinder
	bit := -1
	for range aheadTries {
		bit = f.Next(p.a.In.Buf, p.a.In.End, bit+1, min(aheadSearch, p.a.In.End)*8)
		if bit < 0 {
			return
		}
		if start := p.target*8 + int64(bit); p.decodeFrom(&f, start) == nil {
			p.start = start
			return
		}
	}
}

// read appends up to n bytes to the input, which may be endless where nothing comes out of
// it: zeros behind the last member.
func (p *aheadPart) read(in *inflate.Input, file *os.File, size int64, n int64) error {
	at := len(p.buf)
	if at > aheadPlain+aheadStored {
		return errAheadNothing
	}
	off := p.target + int64(at)
	n = min(n, size-off)
	if need := at + int(n) + inflate.InSlack; cap(p.buf) < need {
		p.buf = append(make([]byte, 0, need+aheadStored/2), p.buf...)
	}
	p.buf = p.buf[:at+int(n)]
	if _, err := file.ReadAt(p.buf[at:], off); err != nil {
		return err
	}
	in.Buf, in.End, in.EOF = p.buf[:cap(p.buf)], len(p.buf), off+n == size
	return nil
}

// Why a part is not taken. Neither is returned to the caller.
var (
	errAheadStopped = errors.New("decoding ahead was stopped")
	errAheadNothing = errors.New("there is nothing in the part, or little")
)

// decodeFrom decodes the part, if it begins at that bit.
func (p *aheadPart) decodeFrom(f *inflate.BlockFinder, start int64) error {
	a := &p.a
	a.Start(start)
	a.PauseAt = (p.target + aheadStored) * 8
	p.cuts = p.cuts[:0]
	p.cut()
	for a.Len() < aheadPlain && len(p.buf) <= aheadPlain {
		if p.stop.Load() {
			return errAheadStopped
		}
		if err := a.Decode(a.Len() + gzipStep); err != nil {
			return err
		}
		if a.Ended() {
			break
		}
		if a.Paused() {
			if a.MayBeBlock(f) {
				break
			}
			a.PauseAt = a.Bit() + 1
		}
		if last := &p.cuts[len(p.cuts)-1]; a.Len() > last.out && spanFull((a.Bit()-last.bit)/8, int64(a.Len()-last.out), a.InMember()) {
			p.cut()
		} else if a.Len()-last.out >= inflate.WindowSize {
			a.Untrack()
		}
	}
	a.Untrack()
	if a.Len() == 0 {
		return errAheadNothing
	}
	return nil
}

// cut notes where a span can begin.
func (p *aheadPart) cut() {
	a := &p.a
	a.Untrack()
	c := aheadCut{bit: a.Bit(), out: a.Len()}
	if a.InMember() {
		i := len(p.cuts)
		if len(p.windows) <= i {
			p.windows = append(p.windows, make([]*inflate.Window, i+1-len(p.windows))...)
		}
		if p.windows[i] == nil {
			p.windows[i] = new(inflate.Window)
		}
		c.state, c.window = a.AppendState(nil), p.windows[i]
		a.Track(c.window, c.out)
	}
	p.cuts = append(p.cuts, c)
}

// merges reports whether the part's first span can be one with what the pass has decoded
// of the span before, which is short.
func (p *aheadPart) merges(stored, plain int64) bool {
	if plain < inflate.WindowSize || spanFull(2*stored, 2*plain, true) {
		return false
	}
	bit, out := p.a.Bit(), p.a.Len()
	if len(p.cuts) > 1 {
		bit, out = p.cuts[1].bit, p.cuts[1].out
	}
	stored, plain = stored+(bit-p.cuts[0].bit)/8, plain+int64(out)
	return stored <= 3*gzipSpanStored/2 && plain <= gzipSpanMost
}

// takeAhead takes the part that begins at the block where the indexer is, if there is one.
func (x *gzipIndexer) takeAhead(history []byte) ([]byte, error) {
	p, later := x.ahead.at(x.g.Bit())
	if p == nil {
		x.g.PauseAt = later
		return history, nil
	}
	defer func() {
		x.ahead.recycle(p)
		x.g.PauseAt = x.ahead.pauseAt()
	}()
	if x.p.plainAt-x.g.MemberStart() < inflate.WindowSize {
		return history, nil // what it takes for the window is not all of this member
	}
	return x.join(p, history)
}

// join takes a part that begins where the indexer is, behind history, and gives the
// history behind it.
func (x *gzipIndexer) join(p *aheadPart, history []byte) ([]byte, error) {
	origin := x.p.plainAt
	switch {
	case x.pending && x.start.out == origin:
		x.pending = false // the part's own cut takes its place
	case x.pending && origin-x.start.out >= inflate.WindowSize:
		if err := x.record(); err != nil {
			return nil, err
		}
	}
	cuts := p.cuts
	if !x.pending && p.merges((p.start-x.start.in)/8, origin-x.start.out) {
		cuts = cuts[1:]
	}
	p.a.SetWindow(history)
	for at := 0; at < p.a.Len(); {
		b, err := x.p.nextPlain(inflate.WindowSize + plainChunk + inflate.OutSlack)
		if err != nil {
			return nil, err
		}
		b.from = copy(b.data, history)
		b.to = b.from + p.a.Copy(b.data[b.from:b.from+plainChunk], at)
		if err := x.addPlain(p, b.data[b.from:b.to], at); err != nil {
			return nil, err
		}
		for ; len(cuts) > 0 && cuts[0].out <= at+b.to-b.from; cuts = cuts[1:] {
			c := &cuts[0]
			if err := x.begin(c, origin+int64(c.out), b.data[b.from+c.out-at-inflate.WindowSize:]); err != nil {
				return nil, err
			}
			if c.window != nil { // the indexer keeps it, and the part what the indexer had
				p.windows[len(p.cuts)-len(cuts)], x.window = x.window, c.window
			}
		}
		at += b.to - b.from
		x.p.flush()
		history = b.data[b.to-inflate.WindowSize : b.to]
	}
	if err := x.skipStored(p); err != nil {
		return nil, err
	}
	x.g.Adopt(&p.a, origin)
	if x.pending && x.p.plainAt-x.start.out < inflate.WindowSize {
		x.g.KeepTracking(x.window, x.start.out)
	}
	return history, nil
}

// addPlain counts plain bytes of the part from at on for the checksum of the member that it
// began in.
func (x *gzipIndexer) addPlain(p *aheadPart, plain []byte, at int) error {
	end := p.a.MemberEnd()
	if end == nil || at+len(plain) < end.Out {
		x.g.AddPlain(plain)
		return nil
	}
	if at > end.Out || at == end.Out && at > 0 {
		return nil
	}
	x.g.AddPlain(plain[:end.Out-at])
	return x.g.EndMember(end, x.p.plainAt+int64(end.Out-at))
}

// begin begins a span at a cut of a part; window is what comes before.
func (x *gzipIndexer) begin(c *aheadCut, out int64, window []byte) error {
	if x.pending {
		if err := x.record(); err != nil {
			return err
		}
	}
	x.start = span{in: c.bit, out: out}
	if c.window == nil {
		x.p.ix.addSpan(x.start)
		return nil
	}
	x.state, x.pending = c.state, true
	copy(c.window.Bytes[:], window)
	return nil
}

// skipStored consumes what the part has decoded, and sees that it is the same.
func (x *gzipIndexer) skipStored(p *aheadPart) error {
	end := p.a.In.At + int64(p.a.In.Pos)
	for {
		b := x.cur
		from, to := max(b.at, p.target), min(b.at+int64(b.end-storedHead), end)
		if from < to && !bytes.Equal(b.data[storedHead+from-b.at:storedHead+to-b.at], p.buf[from-p.target:to-p.target]) {
			return fmt.Errorf("%w: the file changed while it was read", ErrDigest)
		}
		if to == end {
			x.g.In.Pos = storedHead + int(end-b.at)
			return nil
		}
		x.g.In.Pos = x.g.In.End
		if err := x.fill(&x.g.In); err != nil {
			return err
		}
		if x.g.In.EOF {
			return io.ErrUnexpectedEOF
		}
	}
}
