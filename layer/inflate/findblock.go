package inflate

import "encoding/binary"

// A BlockFinder looks for blocks in the middle of a DEFLATE stream.
type BlockFinder struct{ d Decoder }

// headBits are a block's bits before the count of its code lengths.
const headBits = 1 + 2 + 5 + 5

// headSkips says, of bits that a block may begin with, how many to leave out before such
// may be the beginning of one with dynamic codes that is not the last.
var headSkips = func() (t [1 << headBits]uint8) {
	for v := range t {
		for t[v] < headBits && !mayBegin(v>>t[v], headBits-int(t[v])) {
			t[v]++
		}
	}
	return t
}()

// mayBegin reports whether a block with dynamic codes that is not the last may begin with
// n bits.
func mayBegin(v, n int) bool {
	const dynamic = 2 << 1
	if known := 1<<min(n, 3) - 1; v&known != dynamic&known {
		return false
	}
	return (n < 8 || v>>3&31 <= maxLit-257) && (n < headBits || v>>8&31 <= maxDist-1)
}

// krafts sums, for four lengths of three bits each, what codes of such lengths take of
// 1<<clMaxBits.
var krafts = func() (t [1 << 12]uint16) {
	for i := range t {
		for shift := 0; shift < 12; shift += 3 {
			if n := i >> shift & 7; n > 0 {
				t[i] += 1 << (clMaxBits - n)
			}
		}
	}
	return t
}()

// Next gives the first bit of src from from on, before to, at which a block may begin: one
// with dynamic codes that is not a stream's last, all of whose codes are complete, as
// every known encoder writes them; -1 if there is none. Other bits than a block's first
// are given too, one in some 10⁸. InSlack bytes of memory lie behind end.
func (f *BlockFinder) Next(src []byte, end, from, to int) int {
	for bit := from; bit < to; bit++ {
		v := load(src, bit)
		if skip := int(headSkips[v&(1<<headBits-1)]); skip > 0 {
			bit += skip - 1
			continue
		}
		n := v>>headBits&15 + 4
		lens := load(src, bit+17) & (1<<(3*n) - 1)
		sum := int(krafts[lens&0xfff]) + int(krafts[lens>>12&0xfff]) + int(krafts[lens>>24&0xfff]) +
			int(krafts[lens>>36&0xfff]) + int(krafts[lens>>48&0xfff])
		if sum == 1<<clMaxBits && f.header(src[:end], bit) {
			return bit
		}
	}
	return -1
}

// load gives the 57 or more bits from bit on.
func load(src []byte, bit int) uint64 {
	return binary.LittleEndian.Uint64(src[bit>>3:]) >> (bit & 7)
}

// header reports whether the codes of the block at bit are complete.
func (f *BlockFinder) header(src []byte, bit int) bool {
	d := &f.d
	d.bits, d.nbits, d.ip = load(src[:cap(src)], bit)&(1<<(8-bit&7)-1), uint64(8-bit&7), bit>>3+1
	d.take(src, 3)
	if d.codes(src) != nil {
		return false
	}
	var c code
	lit, dist := d.lens[:d.nlit], d.lens[d.nlit:d.nlens]
	return lit[256] > 0 && c.init(lit) && c.n > 1 && c.init(dist)
}
