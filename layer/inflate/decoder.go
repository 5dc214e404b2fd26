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

// Buffers are what one call of Decode works on. Positions are offsets in the
// slices; Decode moves In and Out on.
type Buffers struct {
	Src []byte // input, then InSlack bytes of memory
	In  int    // next input byte
	End int    // end of the input
	EOF bool   // no input follows End

	Dst    []byte // output, OutSlack bytes longer than Limit
	Out    int    // next output byte
	Limit  int    // where to stop; Out can be up to OutSlack behind it on return
	Origin int64  // position in the plain stream of Dst[0]
	First  int64  // position in the plain stream of the first byte matches may reach
}

// Status says why Decode returned.
type Status uint8

const (
	// Full: the output has reached its limit.
	Full Status = iota
	// Starved: more input is needed, at least MinInput bytes or the rest.
	Starved
	// End: the stream's last block has ended.
	End
)

// Decode decodes until Out ≥ Limit, the input ends or the stream does. Dst must
// hold WindowSize bytes before Out, or all from First on. Garbled input is
// ErrCorrupt; input that ends early, io.ErrUnexpectedEOF. What was decoded before
// an error lies before Out.
func (d *Decoder) Decode(b *Buffers) (Status, error) {
	if b.In < 0 || b.In > b.End || b.End+InSlack > len(b.Src) || b.Limit+OutSlack > len(b.Dst) || b.Out < 0 ||
		b.First < b.Origin && b.Out < WindowSize {
		panic("inflate: buffers without slack or window")
	}
	d.ip, d.op = b.In, b.Out
	status, err := d.run(b)
	b.In, b.Out = d.ip, d.op
	if b.In > b.End {
		return status, io.ErrUnexpectedEOF
	}
	return status, err
}

// run is Decode on the decoder's own cursors.
func (d *Decoder) run(b *Buffers) (Status, error) {
	for {
		if d.phase == phaseDone {
			return End, nil
		}
		if d.op >= b.Limit {
			return Full, nil
		}
		if b.End-d.ip < MinInput && !b.EOF {
			return Starved, nil
		}
		if d.ip > b.End {
			return Starved, io.ErrUnexpectedEOF
		}
		var err error
		switch d.phase {
		case phaseHeader:
			err = d.header(b)
		case phaseStored:
			err = d.copyStored(b)
		default:
			err = d.symbols(b)
		}
		if err != nil {
			return Starved, err
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
func (d *Decoder) symbols(b *Buffers) error {
	t := &d.own
	if d.phase == phaseFixed {
		t = fixedTables()
	}
	inEnd := b.End + 8 // by then all bits before End are used up, or more
	if !b.EOF {
		inEnd = b.End - inStep - 8
	}
	for {
		base := max(int(max(b.First, d.floor)-b.Origin), 0)
		switch d.decodeSymbols(t, b.Dst, b.Limit, min(base, d.op), b.Src, inEnd) {
		case stopMore:
			return nil
		case stopEnd:
			d.endBlock()
			return nil
		case stopBad:
			return ErrCorrupt
		case stopFarBack:
			if err := d.farBack(b); err != nil {
				return err
			}
		}
	}
}

// farBack copies a match that reaches before floor.
func (d *Decoder) farBack(b *Buffers) error {
	at := b.Origin + int64(d.op)
	from := at - int64(d.matchDist)
	if from < b.First || d.matchDist > d.op {
		return ErrCorrupt
	}
	d.track.mark(from, d.matchLen)
	for i := range d.matchLen {
		b.Dst[d.op+i] = b.Dst[d.op+i-d.matchDist]
	}
	d.op += d.matchLen
	return nil
}

// copyStored copies from a stored block. No bits are pending.
func (d *Decoder) copyStored(b *Buffers) error {
	n := min(d.stored, b.Limit-d.op, b.End-d.ip)
	copy(b.Dst[d.op:d.op+n], b.Src[d.ip:])
	d.ip += n
	d.op += n
	d.stored -= n
	if d.stored == 0 {
		d.endBlock()
		return nil
	}
	if d.ip == b.End && b.EOF {
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
func (d *Decoder) header(b *Buffers) error {
	src := b.Src[:b.End]
	d.final = d.take(src, 1) == 1
	switch d.take(src, 2) {
	case 0:
		d.bits, d.nbits = 0, 0 // less than a byte: header bits are taken one by one
		if d.ip+4 > b.End {
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
	const clBits = 7
	var table [1 << clBits]uint32
	fill(table[:], &c, clBits, 0,
		func(sym, codeBits int, _ uint32) uint32 { return uint32(sym)<<8 | uint32(codeBits) },
		func(int, int) uint32 { return 0 })
	lens := d.lens[:nlit+ndist]
	for i := 0; i < len(lens); {
		d.need(src, clBits)
		e := table[d.bits&(1<<clBits-1)]
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
	if !d.own.build(lens[:nlit], lens[nlit:]) {
		return ErrCorrupt
	}
	return nil
}
