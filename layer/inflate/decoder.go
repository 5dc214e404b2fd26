package inflate

import (
	"encoding/binary"
	"errors"
	"io"
)

// WindowSize is how far back a match can reach, in bytes.
const WindowSize = 32 << 10

// Slack around buffers that the decoder is given.
const (
	// InSlack is how many bytes of memory must lie behind the input. They are read,
	// and mean nothing.
	InSlack = 64
	// OutSlack is how many bytes behind the limit of the output may be written.
	OutSlack = outStep
	// headerMax is the longest block header in bytes: 3 + 14 + 19×3 bits and 316
	// lengths of at most 7 + 7 bits; and what is left of a byte before it.
	headerMax = (3+14+maxCL*3+(maxLit+maxDist)*14)/8 + 2
	// MinInput is how many bytes of input make Decode go on where more follow.
	MinInput = max(headerMax, inStep+8) + 1
)

// ErrCorrupt says that the input is not a DEFLATE stream.
var ErrCorrupt = errors.New("invalid DEFLATE stream")

// phase is what the decoder reads next.
type phase uint8

const (
	phaseHeader  phase = iota // a block header
	phaseStored               // bytes of a stored block
	phaseSymbols              // symbols of a block with dynamic codes
	phaseFixed                // symbols of a block with fixed codes
	phaseDone                 // nothing: the last block has ended
)

// Decoder decodes one DEFLATE stream (RFC 1951) from memory to memory. It can
// stop after any symbol and go on elsewhere from there.
type Decoder struct {
	// Cursors of the call to Decode in progress.
	bits  uint64 // unconsumed bits that come before byte ip of the input
	nbits uint64 // how many
	ip    int
	op    int

	phase  phase
	final  bool // the block is the last one
	stored int  // bytes of a stored block still to come
	nlit   int  // codes in lens for literals; the rest is for distances
	lens   [maxLit + maxDist]uint8
	nlens  int

	matchLen, matchDist int // of an stopFarBack

	// Matches that reach before floor, a position in the plain stream, are told to
	// track. Both are set by Track.
	floor int64
	track *Window

	own tables
}

// Reset makes the decoder expect the first block of a stream.
func (d *Decoder) Reset() {
	d.phase, d.final, d.bits, d.nbits = phaseHeader, false, 0, 0
}

// unit is what plain bytes are decoded to: bytes, or where the window is not known
// (Ahead), units that also say which byte of the window is meant.
type unit interface{ uint8 | uint16 }

// buffers are what one call of decode works on. Positions are offsets in the
// slices; decode moves in and out on.
type buffers[T unit] struct {
	src   []byte // input, then InSlack bytes of memory
	in    int    // next input byte
	end   int    // end of the input
	eof   bool   // no input follows end
	pause int    // the first block header at this bit of src, or behind it, is not decoded

	dst    []T   // output, OutSlack units longer than limit
	out    int   // next output unit
	limit  int   // where to stop; out can be up to OutSlack behind it on return
	origin int64 // position in the plain stream of dst[0]
	first  int64 // position in the plain stream of the first byte matches may reach
}

// status says why decode returned.
type status uint8

const (
	full    status = iota // the output has reached its limit
	starved               // more input is needed, at least MinInput bytes or the rest
	ended                 // the stream's last block has ended
	paused                // the next block begins at pause, or behind it
)

// decode decodes until out ≥ limit, the input ends, the stream does or pause is reached. dst
// must hold WindowSize units before out, or all from first on. Garbled input is
// ErrCorrupt; input that ends early, io.ErrUnexpectedEOF. What was decoded before
// an error lies before out.
func decode[T unit](d *Decoder, b *buffers[T]) (status, error) {
	if b.in < 0 || b.in > b.end || b.end+InSlack > len(b.src) || b.limit+OutSlack > len(b.dst) || b.out < 0 ||
		b.first < b.origin && b.out < WindowSize {
		panic("inflate: buffers without slack or window")
	}
	d.ip, d.op = b.in, b.out
	why, err := run(d, b)
	b.in, b.out = d.ip, d.op
	if b.in > b.end {
		return why, io.ErrUnexpectedEOF
	}
	return why, err
}

// run is decode on the decoder's own cursors.
func run[T unit](d *Decoder, b *buffers[T]) (status, error) {
	for {
		if d.phase == phaseDone {
			return ended, nil
		}
		if d.op >= b.limit {
			return full, nil
		}
		if d.phase == phaseHeader && d.ip*8-int(d.nbits) >= b.pause {
			return paused, nil
		}
		if b.end-d.ip < MinInput && !b.eof {
			return starved, nil
		}
		if d.ip > b.end {
			return starved, io.ErrUnexpectedEOF
		}
		var err error
		switch d.phase {
		case phaseHeader:
			err = d.header(b.src[:b.end])
		case phaseStored:
			err = copyStored(d, b)
		default:
			err = symbols(d, b)
		}
		if err != nil {
			return starved, err
		}
	}
}

// endBlock is what follows a block.
func (d *Decoder) endBlock() {
	d.phase = phaseHeader
	if d.final {
		d.phase = phaseDone
	}
}

// symbols decodes from a block with Huffman codes.
func symbols[T unit](d *Decoder, b *buffers[T]) error {
	t := &d.own
	if d.phase == phaseFixed {
		t = fixedTables()
	}
	inEnd := b.end + 8 // by then all bits before End are used up, or more
	if !b.eof {
		inEnd = b.end - inStep - 8
	}
	for {
		base := max(int(max(b.first, d.floor)-b.origin), 0)
		switch decodeSymbols(d, t, b.dst, b.limit, min(base, d.op), b.src, inEnd) {
		case stopMore:
			return nil
		case stopEnd:
			d.endBlock()
			return nil
		case stopBad:
			return ErrCorrupt
		case stopFarBack:
			if err := farBack(d, b); err != nil {
				return err
			}
		}
	}
}

// farBack copies a match that reaches before floor.
func farBack[T unit](d *Decoder, b *buffers[T]) error {
	at := b.origin + int64(d.op)
	from := at - int64(d.matchDist)
	if from < b.first || d.matchDist > d.op {
		return ErrCorrupt
	}
	d.track.mark(from, d.matchLen)
	for i := range d.matchLen {
		b.dst[d.op+i] = b.dst[d.op+i-d.matchDist]
	}
	d.op += d.matchLen
	return nil
}

// copyStored copies from a stored block. No bits are pending.
func copyStored[T unit](d *Decoder, b *buffers[T]) error {
	n := min(d.stored, b.limit-d.op, b.end-d.ip)
	widen(b.dst[d.op:d.op+n], b.src[d.ip:])
	d.ip += n
	d.op += n
	d.stored -= n
	if d.stored == 0 {
		d.endBlock()
		return nil
	}
	if d.ip == b.end && b.eof {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// need makes bits hold n ≤ 32 or more of the next bits. Behind the input's end
// they mean nothing, and the cursor shows it.
func (d *Decoder) need(src []byte, n uint64) {
	for d.nbits < n {
		if d.ip < len(src) {
			d.bits |= uint64(src[d.ip]) << d.nbits
		}
		d.ip++
		d.nbits += 8
	}
}

// take consumes the next n ≤ 32 bits.
func (d *Decoder) take(src []byte, n uint64) int {
	d.need(src, n)
	v := d.bits & (1<<n - 1)
	d.bits >>= n
	d.nbits -= n
	return int(v)
}

// header reads a block header.
func (d *Decoder) header(src []byte) error {
	d.final = d.take(src, 1) == 1
	switch d.take(src, 2) {
	case 0:
		d.bits, d.nbits = 0, 0 // less than a byte: header bits are taken one by one
		if d.ip+4 > len(src) {
			return io.ErrUnexpectedEOF
		}
		n := binary.LittleEndian.Uint16(src[d.ip:])
		if n != ^binary.LittleEndian.Uint16(src[d.ip+2:]) {
			return ErrCorrupt
		}
		d.ip += 4
		d.stored, d.phase = int(n), phaseStored
		if n == 0 {
			d.endBlock()
		}
		return nil
	case 1:
		d.phase = phaseFixed
		return nil
	case 2:
		d.phase = phaseSymbols
		return d.dynamic(src)
	}
	return ErrCorrupt
}

// dynamic reads the codes of a block and makes its tables.
func (d *Decoder) dynamic(src []byte) error {
	if err := d.codes(src); err != nil {
		return err
	}
	if !d.own.build(d.lens[:d.nlit], d.lens[d.nlit:d.nlens]) {
		return ErrCorrupt
	}
	return nil
}

// codes reads the lengths of a block's codes.
func (d *Decoder) codes(src []byte) error {
	nlit := d.take(src, 5) + 257
	ndist := d.take(src, 5) + 1
	ncl := d.take(src, 4) + 4
	if nlit > maxLit || ndist > maxDist {
		return ErrCorrupt
	}
	var clLens [maxCL]uint8
	for _, i := range clOrder[:ncl] {
		clLens[i] = uint8(d.take(src, 3))
	}
	var c code
	if !c.init(clLens[:]) {
		return ErrCorrupt
	}
	var table [1 << clMaxBits]uint32
	fill(table[:], &c, clMaxBits, 0,
		func(sym, codeBits int, _ uint32) uint32 { return uint32(sym)<<8 | uint32(codeBits) },
		func(int, int) uint32 { return 0 })
	lens := d.lens[:nlit+ndist]
	for i := 0; i < len(lens); {
		d.need(src, clMaxBits)
		e := table[d.bits&(1<<clMaxBits-1)]
		if e == 0 {
			return ErrCorrupt
		}
		d.bits >>= e & 15
		d.nbits -= uint64(e & 15)
		if sym := uint8(e >> 8); sym < 16 {
			lens[i] = sym
			i++
			continue
		}
		value, n := uint8(0), 0
		switch e >> 8 {
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			value, n = lens[i-1], 3+d.take(src, 2)
		case 17:
			n = 3 + d.take(src, 3)
		case 18:
			n = 11 + d.take(src, 7)
		}
		if i+n > len(lens) {
			return ErrCorrupt
		}
		for ; n > 0; n-- {
			lens[i] = value
			i++
		}
	}
	// need may have run ahead: give whole bytes back.
	d.ip -= int(d.nbits >> 3)
	d.nbits &= 7
	d.bits &= 1<<d.nbits - 1
	d.nlit, d.nlens = nlit, len(lens)
	if d.ip > len(src) {
		return io.ErrUnexpectedEOF
	}
	return nil
}
