package inflate

import (
	"encoding/binary"
	"hash/crc32"
	"unsafe"
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
// plain stream, as for Track, count from Start. The caller sets In and Fill.
//
// The approach is that of pugz (Kerbiriou and Chikhi, 2019) and rapidgzip (Knespel and
// Brunst, 2023).
type Ahead struct {
	Gzip

	units  []uint16 // the window's first
	nunits int      // how many of them count, the window's too
	narrow bool     // what follows is in bytes
	bytes  []byte   // what a match can reach of units first
	out    Output   // in bytes

	known [1 << 16]byte // by unit
}

// Start begins at a block header, at that bit of the stored stream. In holds it.
func (a *Ahead) Start(bit int64) {
	a.Untrack()
	a.Reset()
	a.at, a.first, a.check, a.start = inData, false, false, 0
	a.In.Pos = int(bit/8 - a.In.At)
	if part := uint64(bit % 8); part > 0 {
		a.bits, a.nbits = uint64(a.In.Buf[a.In.Pos])>>part, 8-part
		a.In.Pos++
	}
	a.units = longer(a.units, WindowSize)
	for i := range a.units[:WindowSize] {
		a.units[i] = windowUnit | uint16(i)
	}
	a.nunits, a.narrow, a.out = WindowSize, false, Output{}
}

// Len is how many plain bytes were decoded.
func (a *Ahead) Len() int {
	if a.narrow {
		return int(a.out.Origin) + a.out.Out - WindowSize
	}
	return a.nunits - WindowSize
}

// Decode decodes until Len() ≥ n, the member's last block has ended, or PauseAt. Errors
// are those of Gzip.Decode; where the stream has another block, or none, at Start, they
// are of no account.
func (a *Ahead) Decode(n int) error {
	if !a.narrow {
		if err := a.decodeUnits(n); err != nil {
			return err
		}
		a.tryNarrow()
		return nil
	}
	a.out.Limit = WindowSize + n - int(a.out.Origin)
	a.bytes = longer(a.bytes, a.out.Limit+OutSlack)
	a.out.Dst = a.bytes
	for a.at == inData {
		if done, err := a.data(&a.out); done || err != nil {
			return err
		}
	}
	return nil
}

// decodeUnits is Decode while the window counts.
func (a *Ahead) decodeUnits(n int) error {
	limit := WindowSize + n
	a.units = longer(a.units, limit+OutSlack)
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

// Ended reports whether the member's last block has ended. Its trailer is not read.
func (a *Ahead) Ended() bool { return a.at != inData }

// MayBeBlock reports whether f would find a block where a is.
func (a *Ahead) MayBeBlock(f *BlockFinder) bool {
	if _, err := a.want(headerMax); err != nil {
		return false
	}
	bit := a.In.Pos*8 - int(a.nbits)
	return f.Next(a.In.Buf, a.In.End, bit, bit+1) == bit
}

// tryNarrow goes on in bytes where no match can reach a copy of the window any more.
func (a *Ahead) tryNarrow() {
	last := a.units[max(a.nunits-WindowSize, WindowSize):a.nunits]
	if len(last) < WindowSize || !allBytes(last) {
		return
	}
	a.narrow = true
	a.bytes = longer(a.bytes, WindowSize+OutSlack)
	for i, u := range last {
		a.bytes[i] = byte(u)
	}
	a.out = Output{Dst: a.bytes, Out: WindowSize, Origin: int64(a.nunits - WindowSize)}
}

// allBytes reports whether no unit is a copy of the window's. It looks at the last first.
func allBytes(units []uint16) bool {
	const each = windowUnit | windowUnit<<16 | windowUnit<<32 | windowUnit<<48
	for len(units) >= 4 {
		tail := units[len(units)-4:]
		if binary.NativeEndian.Uint64((*[8]byte)(unsafe.Pointer(unsafe.SliceData(tail)))[:])&each != 0 {
			return false
		}
		units = units[:len(units)-4]
	}
	for _, u := range units {
		if u >= windowUnit {
			return false
		}
	}
	return true
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

// longer is s with n elements or more.
func longer[T any](s []T, n int) []T {
	if len(s) >= n {
		return s
	}
	return append(s, make([]T, max(n-len(s), len(s)))...)
}

// Adopt makes g, which stands where a started, go on where a stands. The caller
// positions In behind what a consumed, and has the plain bytes counted by AddPlain.
func (g *Gzip) Adopt(a *Ahead) {
	g.Decoder, g.at = a.Decoder, a.at
}

// AddPlain counts plain bytes that an Ahead decoded for the member's checksum.
func (g *Gzip) AddPlain(p []byte) {
	if g.check {
		g.crc = crc32.Update(g.crc, crc32.IEEETable, p)
	}
}

// MemberStart is the position in the plain stream of the member's first byte.
func (g *Gzip) MemberStart() int64 { return g.start }
