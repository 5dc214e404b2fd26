package inflate

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// A unit is a plain byte, or windowUnit and which byte of the window it is a copy of.
const windowUnit = 1 << 15

// Ahead decodes a part of a gzip stream from the beginning of a block on, before what
// comes before that is known:
//
//	window (unknown) │ units: bytes, and copies of the window's │ bytes
//	                 Start        once the last WindowSize units are bytes ┘
//
// Once the window is known, SetWindow and Copy give the plain bytes. Positions in the
// plain stream, as for Track, count from Start. It goes on into the members that follow,
// whose checksums it verifies; that of the first, of which it has a part, is the caller's
// to verify (Gzip.EndMember). The caller sets In and Fill.
//
// The approach is that of pugz (Kerbiriou and Chikhi, 2019) and rapidgzip (Knespel and
// Brunst, 2023).
type Ahead struct {
	Gzip
	// Most is how many plain bytes it is to decode at most, or little more.
	Most int

	units  []uint16 // the window's first
	nunits int      // how many of them count, the window's too
	looked int      // how many counted when the last of them were looked at
	narrow bool     // what follows is in bytes
	bytes  []byte   // what a match can reach of units first
	out    Output   // in bytes

	end *MemberEnd // of the member at Start; nil: not reached

	known [1 << 16]byte // by unit
}

// MemberEnd is what ends a member: the CRC and the length of its plain bytes, modulo 2³².
type MemberEnd struct {
	Out  int // plain bytes of the Ahead before it
	crc  uint32
	size uint32
}

// Start begins at a block header, at that bit of the stored stream. In holds it.
func (a *Ahead) Start(bit int64) {
	a.Untrack()
	a.Reset()
	a.at, a.first, a.check, a.start = inData, false, false, 0
	a.StopAtMember, a.end = true, nil
	a.In.Pos = int(bit/8 - a.In.At)
	if part := uint64(bit % 8); part > 0 {
		a.bits, a.nbits = uint64(a.In.Buf[a.In.Pos])>>part, 8-part
		a.In.Pos++
	}
	a.units = longer(a.units, WindowSize, a.room())
	for i := range a.units[:WindowSize] {
		a.units[i] = windowUnit | uint16(i)
	}
	a.nunits, a.looked, a.narrow, a.out = WindowSize, WindowSize, false, Output{}
}

// room is how long units and bytes are made.
func (a *Ahead) room() int { return WindowSize + a.Most + OutSlack }

// Len is how many plain bytes were decoded.
func (a *Ahead) Len() int {
	if a.narrow {
		return int(a.out.Origin) + a.out.Out - WindowSize
	}
	return a.nunits - WindowSize
}

// Decode decodes until Len() ≥ n, a member or the stream has ended, or PauseAt. Errors are
// those of Gzip.Decode; where the stream has another block, or none, at Start, they are of
// no account.
func (a *Ahead) Decode(n int) error {
	if a.narrow {
		return a.decodeBytes(n)
	}
	if err := a.decodeUnits(n); err != nil {
		return err
	}
	if a.at == atTrailer {
		return a.endFirst()
	}
	if a.nunits-a.looked < WindowSize {
		return nil
	}
	a.looked = a.nunits
	if last := a.units[a.nunits-WindowSize : a.nunits]; allBytes(last) {
		a.goNarrow(last)
	}
	return nil
}

// decodeBytes is Decode where the window does not count any more.
func (a *Ahead) decodeBytes(n int) error {
	a.out.Limit = WindowSize + n - int(a.out.Origin)
	a.bytes = longer(a.bytes, a.out.Limit+OutSlack, a.room())
	a.out.Dst = a.bytes
	if a.end != nil {
		if err := a.Gzip.Decode(&a.out); !errors.Is(err, io.EOF) {
			return err
		}
		return nil
	}
	for a.at == inData {
		if done, err := a.data(&a.out); done || err != nil {
			return err
		}
	}
	return a.endFirst()
}

// endFirst reads the trailer of the member at Start. No match of the next one reaches
// into it.
func (a *Ahead) endFirst() error {
	a.bits, a.nbits = 0, 0
	p, err := a.want(gzipTrailer)
	if err != nil {
		return err
	}
	if len(p) < gzipTrailer {
		return io.ErrUnexpectedEOF
	}
	a.end = &MemberEnd{Out: a.Len(), crc: binary.LittleEndian.Uint32(p), size: binary.LittleEndian.Uint32(p[4:])}
	a.In.Pos += gzipTrailer
	a.at = atHeader
	if !a.narrow {
		a.goNarrow(a.units[a.nunits-WindowSize : a.nunits])
	}
	return nil
}

// decodeUnits is Decode while the window counts.
func (a *Ahead) decodeUnits(n int) error {
	limit := WindowSize + n
	a.units = longer(a.units, limit+OutSlack, a.room())
	for {
		b := buffers[uint16]{
			src: a.In.Buf, in: a.In.Pos, end: a.In.End, eof: a.In.EOF, pause: a.pause(),
			dst: a.units, out: a.nunits, limit: limit, origin: 0, first: 0,
		}
		why, err := decode(&a.Decoder, &b)
		a.In.Pos, a.nunits = min(b.in, b.end), b.out
		switch {
		case err != nil:
			return err
		case why == ended:
			a.at = atTrailer
			return nil
		case why != starved:
			return nil
		}
		if err := a.Fill(&a.In); err != nil {
			return err
		}
	}
}

// Track is Decoder.Track, with a position from Start on.
func (a *Ahead) Track(w *Window, at int) { a.Decoder.Track(w, int64(WindowSize+at)) }

// Ended reports whether the stream has.
func (a *Ahead) Ended() bool { return a.at == atEnd }

// MemberEnd is the end of the member at Start; nil: it was not reached.
func (a *Ahead) MemberEnd() *MemberEnd { return a.end }

// MayBeBlock reports whether f would find a block where a is.
func (a *Ahead) MayBeBlock(f *BlockFinder) bool {
	if _, err := a.want(headerMax); err != nil {
		return false
	}
	bit := a.In.Pos*8 - int(a.nbits)
	return f.Next(a.In.Buf, a.In.End, bit, bit+1) == bit
}

// goNarrow goes on in bytes, as no match can reach a copy of the window any more. last are
// the last units.
func (a *Ahead) goNarrow(last []uint16) {
	a.narrow = true
	a.bytes = longer(a.bytes, WindowSize+OutSlack, a.room())
	for i, u := range last {
		a.bytes[i] = byte(u)
	}
	a.out = Output{Dst: a.bytes, Out: WindowSize, Origin: int64(a.nunits - WindowSize)}
}

// SetWindow says which WindowSize bytes come before Start.
func (a *Ahead) SetWindow(window []byte) {
	for i := range 1 << 8 {
		a.known[i] = byte(i)
	}
	copy(a.known[windowUnit:], window[:WindowSize])
}

// Copy copies plain bytes from position at on, as many as there are, and gives their
// number. Preconditions: SetWindow; at ≤ Len().
func (a *Ahead) Copy(dst []byte, at int) int {
	n := min(len(dst), a.Len()-at)
	units := a.units[min(WindowSize+at, a.nunits):min(WindowSize+at+n, a.nunits)]
	dst = dst[:n]
	wide := dst[:len(units)]
	for i, u := range units {
		wide[i] = a.known[u]
	}
	if rest := dst[len(units):]; len(rest) > 0 {
		copy(rest, a.bytes[WindowSize+at+len(units)-int(a.out.Origin):])
	}
	return n
}

// longer is s with n elements or more, with most where it has to be made anew: what is
// not written to takes no memory.
func longer[T any](s []T, n, most int) []T {
	if len(s) >= n {
		return s
	}
	return append(make([]T, 0, max(n, most)), s...)[:max(n, most)]
}

// Adopt makes g, which stands where a started, go on where a stands. at is the position in
// the plain stream where a started. The caller positions In behind what a consumed, and has
// the plain bytes up to a's MemberEnd counted by AddPlain, and that verified by EndMember.
func (g *Gzip) Adopt(a *Ahead, at int64) {
	g.Decoder, g.at = a.Decoder, a.at
	if a.end != nil {
		g.first, g.check, g.crc, g.start = false, a.check, a.crc, at-WindowSize+a.start
	}
}

// AddPlain counts plain bytes of the member, which an Ahead decoded, for its checksum.
func (g *Gzip) AddPlain(p []byte) {
	if g.check {
		g.crc = crc32.Update(g.crc, crc32.IEEETable, p)
	}
}

// EndMember verifies the checksum of the member, which ends at that position in the plain
// stream.
func (g *Gzip) EndMember(end *MemberEnd, at int64) error {
	if g.check && (end.crc != g.crc || end.size != uint32(at-g.start)) {
		return ErrChecksum
	}
	return nil
}

// MemberStart is the position in the plain stream of the member's first byte.
func (g *Gzip) MemberStart() int64 { return g.start }
