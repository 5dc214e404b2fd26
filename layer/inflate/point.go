package inflate

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Window is the plain bytes before a position, and which of them were referred to
// by matches behind it.
type Window struct {
	Start int64 // position in the plain stream of Bytes[0]
	Bytes [WindowSize]byte
	used  [WindowSize / 64]uint64
}

// mark notes that n bytes at position from were used, as far as they lie in w.
func (w *Window) mark(from int64, n int) {
	lo := max(int(from-w.Start), 0)
	for i := lo; i < min(int(from-w.Start)+n, WindowSize); i++ {
		w.used[i/64] |= 1 << (i % 64)
	}
}

// Sparse clears the bytes that were not used, and gives what follows the first
// one that was: all that must be known of the window.
func (w *Window) Sparse() []byte {
	first := WindowSize
	for word, used := range w.used {
		part := w.Bytes[word*64:][:64]
		switch {
		case used == 0:
			clear(part)
			continue
		case first == WindowSize:
			first = word*64 + bits.TrailingZeros64(used)
		}
		for i := range part {
			part[i] &= -byte(used >> i & 1)
		}
	}
	return w.Bytes[first:]
}

// Track makes the decoder note in w which bytes before position at are referred
// to. It must be called when the decoder is at that position, whose window w is.
func (d *Decoder) Track(w *Window, at int64) {
	w.used = [WindowSize / 64]uint64{}
	d.KeepTracking(w, at)
}

// KeepTracking is Track with a window that another decoder has noted in, up to where
// this one is.
func (d *Decoder) KeepTracking(w *Window, at int64) {
	w.Start = at - WindowSize
	d.track, d.floor = w, at
}

// Untrack ends what Track began.
func (d *Decoder) Untrack() { d.track, d.floor = nil, 0 }

// The state of a decoder between two symbols: a byte with the phase in its low
// bits and finalBit; then for phaseStored, how many bytes are left of the block,
// 16 bits; for phaseSymbols, the number of codes for literals less 257 and for
// distances less 1, a byte each, and the lengths of the codes, four bits each, the
// low half of a byte first.
const finalBit = 0x80

// AppendState appends the decoder's state to dst. With it and the position of the
// next bit, decoding can go on in another Decoder.
func (d *Decoder) AppendState(dst []byte) []byte {
	first := byte(d.phase)
	if d.final {
		first |= finalBit
	}
	dst = append(dst, first)
	switch d.phase {
	case phaseStored:
		dst = binary.LittleEndian.AppendUint16(dst, uint16(d.stored))
	case phaseSymbols:
		dst = append(dst, byte(d.nlit-257), byte(d.nlens-d.nlit-1))
		for i := 0; i < d.nlens; i += 2 {
			pair := d.lens[i]
			if i+1 < d.nlens {
				pair |= d.lens[i+1] << 4
			}
			dst = append(dst, pair)
		}
	}
	return dst
}

// SetState makes the decoder go on from a state at the front of p, and gives what
// follows it. The first byte of input that Decode is given holds the next bit; bit
// is how many of its low bits come before that, less than 8.
func (d *Decoder) SetState(p []byte, bit int, first byte) ([]byte, error) {
	if len(p) == 0 {
		return nil, fmt.Errorf("%w: no state", ErrCorrupt)
	}
	d.phase, d.final = phase(p[0]&^finalBit), p[0]&finalBit != 0
	p = p[1:]
	d.bits, d.nbits = 0, 0
	if bit > 0 {
		d.bits, d.nbits = uint64(first)>>bit, uint64(8-bit)
	}
	switch d.phase {
	case phaseHeader, phaseFixed:
		return p, nil
	case phaseStored:
		if len(p) < 2 || bit != 0 {
			break
		}
		d.stored = int(binary.LittleEndian.Uint16(p))
		return p[2:], nil
	case phaseSymbols:
		return d.setCodes(p)
	}
	return nil, fmt.Errorf("%w: bad state", ErrCorrupt)
}

// setCodes is SetState for a block with dynamic codes.
func (d *Decoder) setCodes(p []byte) ([]byte, error) {
	if len(p) < 2 || int(p[0])+257 > maxLit || int(p[1])+1 > maxDist {
		return nil, fmt.Errorf("%w: bad state", ErrCorrupt)
	}
	d.nlit = int(p[0]) + 257
	d.nlens = d.nlit + int(p[1]) + 1
	p = p[2:]
	size := (d.nlens + 1) / 2
	if len(p) < size {
		return nil, fmt.Errorf("%w: bad state", ErrCorrupt)
	}
	for i := range d.nlens {
		d.lens[i] = p[i/2] >> (i % 2 * 4) & 15
	}
	if !d.own.build(d.lens[:d.nlit], d.lens[d.nlit:d.nlens]) {
		return nil, fmt.Errorf("%w: bad state", ErrCorrupt)
	}
	return p[size:], nil
}

// Pending is how many bits of the byte before the next input byte are not yet
// consumed, less than 8.
func (d *Decoder) Pending() int { return int(d.nbits) }
