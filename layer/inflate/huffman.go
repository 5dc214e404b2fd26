package inflate

import "math/bits"

// Sizes of RFC 1951, section 3.2.
const (
	maxLit   = 286 // literal/length codes a block may define
	maxDist  = 30  // distance codes a block may define
	maxCL    = 19  // codes for code lengths
	litCodes = 288 // with the two that only the fixed code has
	dstCodes = 32
	maxBits  = 15 // longest code

	clMaxBits = 7 // longest code for a code length
)

// The main tables are indexed by the next litBits or distBits bits. Longer codes
// go through a subtable. A subtable is as long as the longest code asks for, and
// holds at least two codes, so there are at most half as many as codes.
const (
	litBits      = 11
	litTableLen  = 1<<litBits + litCodes/2<<(maxBits-litBits)
	distBits     = 8
	distTableLen = 1<<distBits + dstCodes/2<<(maxBits-distBits)
)

// An entry of the literal/length table. The lowest byte is always how many bits
// it consumes.
//
//	literals  [ 1 | 0 | … | count 24-25 | second 16-23 | first 8-15 | bits 0-7 ]
//	length    [ 0 | 0 | … | length 8-16                              | bits ]
//	special   [ 0 | 1 | kind 28-29 | extra or width 24-27 | base or offset 8-23 | bits ]
//
// Two literals stand in one entry where both codes fit in litBits. A length
// whose extra bits fit as well stands there complete.
const (
	entLiteral = 1 << 31
	entSpecial = 1 << 30

	specialKind  = 3 << 28
	specialExtra = 0 << 28 // a length: extra bits follow the code
	specialSub   = 1 << 28 // more bits index a subtable of that width at offset
	specialEnd   = 2 << 28 // end of block
	specialBad   = 3 << 28 // no such code
)

// An entry of the distance table: [ mask 32-47 | base 16-31 | code's bits 8-15 |
// bits with extra ones 0-7 ], or a special one.
const (
	distSpecial = 1 << 63 // no such code, unless
	distSub     = 1 << 62 // bits 8-15 more bits index a subtable at offset 16-31
)

var (
	lengthBase  = [29]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthExtra = [29]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	distBase    = [30]uint16{
		1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769,
		1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577,
	}
	clOrder = [maxCL]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
)

// litSymbol is a symbol's entry without the count of bits.
func litSymbol(sym int) uint32 {
	switch {
	case sym < 256:
		return entLiteral | 1<<24 | uint32(sym)<<8
	case sym == 256:
		return entSpecial | specialEnd
	case sym < 257+len(lengthBase):
		base, extra := uint32(lengthBase[sym-257])<<8, uint32(lengthExtra[sym-257])
		if extra == 0 {
			return base
		}
		return entSpecial | specialExtra | extra<<24 | base
	}
	return entSpecial | specialBad
}

// distSymbol is a symbol's entry without the counts of bits.
func distSymbol(sym int) (entry uint64, extra uint) {
	if sym >= len(distBase) {
		return distSpecial, 0
	}
	extra = uint(max(sym/2-1, 0))
	return uint64(distBase[sym])<<16 | (1<<extra-1)<<32, extra
}

// inSubtable stands for a code that is not in the main table.
const inSubtable = 1 << maxBits

// code is a canonical Huffman code made ready to fill a table.
type code struct {
	count  [maxBits + 1]uint16 // codes of each length
	sorted [litCodes]uint16    // symbols by length, then value
	n      int                 // symbols with a code
	max    int                 // longest length
}

// init sorts the symbols by the lengths of their codes. It reports whether they
// make a complete code, or one that compress/flate takes too: none at all, or one
// symbol of one bit.
func (c *code) init(lens []uint8) bool {
	c.count = [maxBits + 1]uint16{}
	for _, l := range lens {
		c.count[l&maxBits]++
	}
	c.count[0] = 0
	var next [maxBits + 1]uint16
	left, total := 1, uint16(0)
	c.max = 0
	for l := 1; l <= maxBits; l++ {
		next[l] = total
		total += c.count[l]
		left = left<<1 - int(c.count[l])
		if left < 0 {
			return false
		}
		if c.count[l] > 0 {
			c.max = l
		}
	}
	for sym, l := range lens {
		if l != 0 {
			c.sorted[next[l&maxBits]] = uint16(sym)
			next[l&maxBits]++
		}
	}
	c.n = int(total)
	return left == 0 || c.n == 0 || c.n == 1 && c.max == 1
}

// nextCode is the canonical code after the reversed code of l bits: the topmost
// zero bit becomes one and the bits above it zero.
func nextCode(rev uint32, l int) uint32 {
	inv := ^rev & (1<<l - 1)
	if inv == 0 {
		return 0
	}
	top := uint32(1) << (bits.Len32(inv) - 1)
	return rev&(top-1) | top
}

// fill writes the table of c: main is indexed by tableBits bits, what follows it
// holds the subtables. entry gives the entry of a symbol whose code rev takes
// codeBits in this table; sub the entry for a subtable.
func fill[T uint32 | uint64](
	table []T, c *code, tableBits int, bad T,
	entry func(sym, codeBits int, rev uint32) T, sub func(offset, width int) T,
) {
	main := table[:1<<tableBits]
	if c.n < 2 { // incomplete
		for i := range main {
			main[i] = bad
		}
	}
	// The table doubles with the length of codes: what is filled so far stays
	// right with one more bit in front.
	size, rev, at := 1, uint32(0), 0
	for l := 1; l <= min(c.max, tableBits); l++ {
		if c.n >= 2 {
			copy(main[size:2*size], main[:size])
		}
		size *= 2
		for range c.count[l] {
			main[rev&uint32(size-1)] = entry(int(c.sorted[at]), l, rev)
			at++
			rev = nextCode(rev, l)
		}
	}
	if c.n < 2 {
		if c.n == 1 {
			for i := 0; i < len(main); i += 2 {
				main[i] = main[0]
			}
		}
		return
	}
	for ; size < len(main); size *= 2 {
		copy(main[size:2*size], main[:size])
	}
	if c.max > tableBits {
		fillSub(table, c, tableBits, at, rev, entry, sub)
	}
}

// fillSub writes the subtables, from the at-th symbol, whose code is rev.
func fillSub[T uint32 | uint64](
	table []T, c *code, tableBits, at int, rev uint32,
	entry func(sym, codeBits int, rev uint32) T, sub func(offset, width int) T,
) {
	width := c.max - tableBits
	next, prefix, start := 1<<tableBits, ^uint32(0), 0
	for l := tableBits + 1; l <= c.max; l++ {
		for range c.count[l] {
			if p := rev & (1<<tableBits - 1); p != prefix {
				prefix, start = p, next
				next += 1 << width
				table[p] = sub(start, width)
			}
			e := entry(int(c.sorted[at]), l-tableBits, inSubtable)
			for i := int(rev >> tableBits); i < 1<<width; i += 1 << (l - tableBits) {
				table[start+i] = e
			}
			at++
			rev = nextCode(rev, l)
		}
	}
}
