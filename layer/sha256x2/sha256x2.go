package sha256x2

// blockSize is SHA-256's block size in bytes.
const blockSize = 64

// Available reports whether the processor has what Blocks needs: SHA, SSSE3 and
// SSE4.1. It is false on other architectures than amd64.
func Available() bool { return available }

// Blocks hashes the blocks of 64 bytes of p into the chaining value a, and those of
// q into b. A chaining value is the eight words H0 to H7 of FIPS 180-4.
//
// It panics if p and q differ in length, or if their length is no multiple of 64.
// p and q may overlap; a and b must be different. The goroutine cannot be preempted
// meanwhile: a caller with more than about a MiB goes in steps.
//
// Preconditions: Available().
func Blocks(a, b *[8]uint32, p, q []byte) {
	if !available {
		panic("sha256x2: the processor lacks the SHA extensions")
	}
	if len(p) != len(q) {
		panic("sha256x2: the streams differ in length")
	}
	if len(p)%blockSize != 0 {
		panic("sha256x2: the length is no multiple of the block size")
	}
	if a == b {
		panic("sha256x2: both streams have the same chaining value")
	}
	blocks(a, b, p, q)
}
