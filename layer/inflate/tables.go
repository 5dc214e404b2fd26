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
	fill(t.lit[:], &c, litBits, entSpecial|specialBad,
		func(sym, codeBits int) uint32 { return litSymbol(sym) | uint32(codeBits) },
		func(offset, width int) uint32 {
			return entSpecial | specialSub | uint32(width)<<24 | uint32(offset)<<8 | litBits
		})
	t.combine()
	if !c.init(dist) {
		return false
	}
	fill(t.dist[:], &c, distBits, distSpecial,
		func(sym, codeBits int) uint64 {
			e, extra := distSymbol(sym)
			return e | uint64(codeBits)<<8 | uint64(codeBits) + uint64(extra)
		},
		func(offset, width int) uint64 {
			return distSpecial | distSub | uint64(offset)<<16 | uint64(width)<<8 | distBits
		})
	return true
}

// combine makes entries of two literals and of whole lengths where all their bits
// are among the index's. It goes downwards: the entry of the bits that are left
// has a lower index and is still a single symbol.
func (t *tables) combine() {
	for i := 1<<litBits - 1; i >= 0; i-- {
		e := t.lit[i]
		n := e & 15
		switch {
		case e&entLiteral != 0:
			next := t.lit[i>>n]
			if next&entLiteral != 0 && n+next&15 <= litBits {
				t.lit[i] = entLiteral | 2<<24 | next&0xff00<<8 | e&0xff00 | (n + next&15)
			}
		case e&(entSpecial|specialKind) == entSpecial|specialExtra:
			if extra := e >> 24 & 15; n+extra <= litBits {
				value := uint32(i) >> n & (1<<extra - 1)
				t.lit[i] = e&0x1ff00 + value<<8 | (n + extra)
			}
		}
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
