package inflate

import (
	"encoding/binary"
	"unsafe"
)

// outcome says why decodeSymbols stopped.
type outcome uint8

const (
	stopMore    outcome = iota // out of input, or the output is full
	stopEnd                    // the block has ended
	stopBad                    // bits that are no code
	stopFarBack                // a match reaches before base; it is in matchLen and matchDist
)

// The inner loop looks at up to inStep bytes of input and writes up to outStep
// bytes of output in one turn: two refills of at most 7 bytes and a load of 8
// behind them; six literals or, after four of them, a match of 258 that is copied
// in steps of 16 bytes, all of which may be units of two bytes.
const (
	inStep  = 7 + 7 + 8
	outStep = 4 + 258 + 16
)

func load64(p unsafe.Pointer, i int) uint64 {
	return binary.LittleEndian.Uint64((*[8]byte)(unsafe.Add(p, i))[:])
}

func store64(p unsafe.Pointer, i int, v uint64) {
	binary.LittleEndian.PutUint64((*[8]byte)(unsafe.Add(p, i))[:], v)
}

// storePair stores the literals of an entry, or the one and what means nothing.
func storePair[T unit](p unsafe.Pointer, i int, e uint32) {
	if size[T]() == 1 {
		binary.LittleEndian.PutUint16((*[2]byte)(unsafe.Add(p, i))[:], uint16(e>>8))
		return
	}
	*(*[2]uint16)(unsafe.Add(p, i)) = [2]uint16{uint16(e >> 8 & 0xff), uint16(e >> 16 & 0xff)}
}

// fill64 stores 8 bytes of units as the one at from.
func fill64[T unit](p unsafe.Pointer, i, from int) {
	v := uint64(*(*T)(unsafe.Add(p, from)))
	if size[T]() == 1 {
		v *= 0x0101010101010101
	} else {
		v *= 0x0001000100010001
	}
	binary.NativeEndian.PutUint64((*[8]byte)(unsafe.Add(p, i))[:], v)
}

func size[T unit]() int {
	var unit T
	return int(unsafe.Sizeof(unit))
}

// widen copies bytes to units, as many as dst has.
func widen[T unit](dst []T, src []byte) {
	src = src[:len(dst)]
	if size[T]() == 1 {
		copy(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(dst))), len(dst)), src)
		return
	}
	for i, c := range src {
		dst[i] = T(c)
	}
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

// decodeSymbols decodes symbols of a block with tables t until d.op ≥ outEnd, d.ip ≥
// inEnd, the end of the block or an error. Matches may reach back to base. The local op,
// base and outEnd are in bytes.
//
// Preconditions, which its caller checks once a call: 0 ≤ base ≤ d.op,
// outEnd+outStep ≤ len(dst), inEnd+inStep ≤ len(src). Under them no access is
// out of bounds whatever the input: a turn starts with op < outEnd and ip < inEnd
// and goes no further than outStep and inStep, and a match is refused where
// dist > op-base. That is why pointers are used here: with slices the same loop
// is a quarter slower (BenchmarkGunzip).
func decodeSymbols[T unit](d *Decoder, t *tables, dst []T, outEnd, base int, src []byte, inEnd int) outcome {
	wide := size[T]() - 1 // 0 or 1: how far a count of units is shifted to be one of bytes
	in, out := unsafe.Pointer(unsafe.SliceData(src)), unsafe.Pointer(unsafe.SliceData(dst))
	bb, bn, ip, op := d.bits, d.nbits, d.ip, d.op<<wide
	outEnd, base = outEnd<<wide, base<<wide
	result := stopMore
	if ip >= inEnd || op >= outEnd {
		return result
	}
	// Bits of bb above bn are those of the byte at ip: the next load repeats them.
	bb |= load64(in, ip) << (bn & 63)
	ip += 7 - int(bn>>3&7)
	bn |= 56
	// The entry of the next symbol is looked up before a match is copied: where the copy's
	// end was guessed wrongly, the load is under way nevertheless. Of 56 bits a turn takes 37
	// at most before it looks the next up, and 28 behind the second refill: an index is left.
	e := t.lit[bb&(1<<litBits-1)]
loop:
	for ip < inEnd && op < outEnd {
		bn &= 63
		bb |= load64(in, ip) << bn
		ip += 7 - int(bn>>3)
		bn |= 56
		if int32(e) < 0 {
			bb >>= e & 63
			bn -= uint64(e)
			storePair[T](out, op, e)
			op += int(e>>24&3) << wide
			e = t.lit[bb&(1<<litBits-1)]
			if int32(e) < 0 {
				bb >>= e & 63
				bn -= uint64(e)
				storePair[T](out, op, e)
				op += int(e>>24&3) << wide
				e = t.lit[bb&(1<<litBits-1)]
				if int32(e) < 0 {
					bb >>= e & 63
					bn -= uint64(e)
					storePair[T](out, op, e)
					op += int(e>>24&3) << wide
					e = t.lit[bb&(1<<litBits-1)]
					continue
				}
			}
		}
		bb >>= e & 63
		bn -= uint64(e)
		length := int(e >> 8 & 0x1ff)
		if e&entSpecial != 0 {
			if e&specialKind == specialSub {
				e = t.lit[uint64(e>>8&0xffff)+bb&(1<<(e>>24&15)-1)]
				bb >>= e & 63
				bn -= uint64(e)
				if int32(e) < 0 {
					storePair[T](out, op, e)
					op += 1 << wide
					e = t.lit[bb&(1<<litBits-1)]
					continue
				}
				length = int(e >> 8 & 0x1ff)
			}
			if e&entSpecial != 0 {
				if e&specialKind != specialExtra {
					result = stopEnd
					if e&specialKind == specialBad {
						result = stopBad
					}
					break loop
				}
				extra := e >> 24 & 15
				length += int(bb & (1<<extra - 1))
				bb >>= extra
				bn -= uint64(extra)
			}
		}
		bn &= 63
		bb |= load64(in, ip) << bn
		ip += 7 - int(bn>>3)
		bn |= 56
		f := t.dist[bb&(1<<distBits-1)]
		if int64(f) < 0 {
			if f&distSub == 0 {
				result = stopBad
				break loop
			}
			bb >>= distBits
			bn -= distBits
			f = t.dist[f>>16&0xffff+bb&(1<<(f>>8&15)-1)]
			if int64(f) < 0 {
				result = stopBad
				break loop
			}
		}
		dist := int(f>>16&0xffff) + int(bb>>(f>>8&63)&(f>>32))
		bb >>= f & 63
		bn -= f
		if dist<<wide > op-base {
			d.matchLen, d.matchDist = length, dist
			result = stopFarBack
			break loop
		}
		e = t.lit[bb&(1<<litBits-1)]
		dist <<= wide
		from, end := op-dist, op+length<<wide
		switch {
		case dist >= 16:
			for {
				*(*[16]byte)(unsafe.Add(out, op)) = *(*[16]byte)(unsafe.Add(out, from))
				op += 16
				if op >= end {
					break
				}
				from += 16
			}
		case dist >= 8:
			for ; op < end; op, from = op+8, from+8 {
				store64(out, op, load64(out, from))
			}
		case dist == 1<<wide:
			for ; op < end; op += 8 {
				fill64[T](out, op, from)
			}
		default:
			// Each store makes dist more bytes of the pattern right.
			for ; op < end; op, from = op+dist, from+dist {
				store64(out, op, load64(out, from))
			}
		}
		op = end
	}
	bn &= 63
	ip -= int(bn >> 3)
	bn &= 7
	d.bits, d.nbits, d.ip, d.op = bb&(1<<bn-1), bn, ip, op>>wide
	return result
}
