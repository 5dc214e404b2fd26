package inflate

import "sync"

// tables are the two codes of a block, ready for lookups.
type tables struct {
	lit  [litTableLen]uint32
	dist [distTableLen]uint64
}

// build makes the tables from the lengths of the codes. It reports whether both
// codes are such as compress/flate takes.
func (t *tables) build(lit, dist []uint8) bool {
	var c code
	if !c.init(lit) {
		return false
	}
	var long []longLength
	var longs [len(lengthBase)]longLength
	long = longs[:0]
	fill(t.lit[:], &c, litBits, entSpecial|specialBad,
		func(sym, codeBits int, rev uint32) uint32 {
			e := litSymbol(sym) | uint32(codeBits)
			if sym > 256 && e&entSpecial != 0 {
				long = append(long, longLength{e, rev})
			}
			return e
		},
		func(offset, width int) uint32 {
			return entSpecial | specialSub | uint32(width)<<24 | uint32(offset)<<8 | litBits
		})
	for _, l := range long {
		t.expand(l)
	}
	t.combine()
	if !c.init(dist) {
		return false
	}
	fill(t.dist[:], &c, distBits, distSpecial,
		func(sym, codeBits int, _ uint32) uint64 {
			e, extra := distSymbol(sym)
			return e | uint64(codeBits)<<8 | uint64(codeBits) + uint64(extra)
		},
		func(offset, width int) uint64 {
			return distSpecial | distSub | uint64(offset)<<16 | uint64(width)<<8 | distBits
		})
	return true
}

// longLength is a length with extra bits, and its code.
type longLength struct{ entry, rev uint32 }

// expand makes entries of whole lengths where the extra bits are among the index's.
func (t *tables) expand(l longLength) {
	n, extra := l.entry&15, l.entry>>24&15
	if l.rev == inSubtable || n+extra > litBits || l.entry&specialKind != specialExtra {
		return
	}
	for v := range uint32(1) << extra {
		e := l.entry&0x1ff00 + v<<8 | (n + extra)
		for i := l.rev | v<<n; i < 1<<litBits; i += 1 << (n + extra) {
			t.lit[i] = e
		}
	}
}

// combine makes entries of two literals where both codes are among the index's
// bits. It goes downwards: the entry of the bits that are left has a lower index
// and is still a single symbol.
func (t *tables) combine() {
	for i := uint32(1<<litBits - 1); i != ^uint32(0); i-- {
		e := t.lit[i]
		n := e & 15
		next := t.lit[i>>n]
		both := n + next&15
		pair := entLiteral | 2<<24 | next&0xff00<<8 | e&0xff00 | both
		// Two conditions in one, as a branch on either would be a guess.
		if int32(e&next&(both-litBits-1)) < 0 {
			e = pair
		}
		t.lit[i] = e
	}
}

// fixedTables are those of blocks with fixed codes (RFC 1951, section 3.2.6).
var fixedTables = sync.OnceValue(func() *tables {
	var lit [litCodes]uint8
	for i := range lit {
		switch {
		case i < 144:
			lit[i] = 8
		case i < 256:
			lit[i] = 9
		case i < 280:
			lit[i] = 7
		default:
			lit[i] = 8
		}
	}
	var dist [dstCodes]uint8
	for i := range dist {
		dist[i] = 5
	}
	t := new(tables)
	if !t.build(lit[:], dist[:]) {
		panic("inflate: the fixed codes are complete by definition")
	}
	return t
})
