// Package sha256x2 runs the compression function of SHA-256 (FIPS 180-4, 6.2.2)
// over two independent streams at once, with the SHA extensions of x86 (SHA-NI).
//
// SHA256RNDS2, which does two rounds, needs the result of the one before it, and a
// processor can start one about twice as often as it takes to finish one. A single
// stream thus leaves half of the unit idle; the blocks of two streams, interleaved,
// fill it.
//
// There is no hash.Hash here: no padding, no buffer for part of a block. Callers keep
// the chaining values, and begin and end a stream with crypto/sha256, whose
// AppendBinary and UnmarshalBinary carry a chaining value from one to the other. Nor
// is there a fallback in plain Go: crypto/sha256 is that.
//
// The tests and FuzzBlocks compare every chaining value with crypto/sha256's.
package sha256x2
