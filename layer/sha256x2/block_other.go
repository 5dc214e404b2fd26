//go:build !amd64

package sha256x2

const available = false

// blocks is never called: Blocks asks available first.
func blocks(_, _ *[8]uint32, _, _ []byte) { panic("sha256x2: not for this architecture") }
