package sha256x2

// Bits of CPUID, from Intel's Software Developer's Manual, volume 2, CPUID.
const (
	leaf1SSSE3 = 1 << 9  // ECX
	leaf1SSE41 = 1 << 19 // ECX
	leaf7SHA   = 1 << 29 // EBX, subleaf 0
)

// available needs no look at what the operating system saves: the XMM registers are
// part of every amd64 system's context.
var available = detect()

func detect() bool {
	maxLeaf, _, _, _ := cpuid(0, 0)
	if maxLeaf < 7 {
		return false
	}
	_, _, ecx, _ := cpuid(1, 0)
	_, ebx, _, _ := cpuid(7, 0)
	return ecx&leaf1SSSE3 != 0 && ecx&leaf1SSE41 != 0 && ebx&leaf7SHA != 0
}

// cpuid runs the instruction of that name.
//
//go:noescape
func cpuid(leaf, subleaf uint32) (eax, ebx, ecx, edx uint32)

// blocks is Blocks without its checks.
//
// Preconditions: available, len(p) == len(q), len(p)%blockSize == 0, a != b.
//
//go:noescape
func blocks(a, b *[8]uint32, p, q []byte)
