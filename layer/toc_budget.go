package layer

import (
	"fmt"
	"hash/maphash"
	"math/bits"
)

// A table of contents is held in memory while a layer is scanned. Its body may
// have tocFree bytes, and tocPerPath more for each path in it: an ordinary entry
// takes 20 to 60. Entries do not count, since an entry that is repeated takes
// next to nothing in a compressed layer; nor do bytes of the plain stream.
const (
	tocFree    = 32 << 20
	tocPerPath = 1 << 10
)

// tocBudget watches the length of a table of contents. The zero value is ready.
type tocBudget struct{ paths pathCount }

// check refuses a table of size bytes, the last entry of which is about path.
func (b *tocBudget) check(size int, path []byte) error {
	if size <= tocFree {
		return nil
	}
	b.paths.add(path)
	if uint64(size) > tocFree+tocPerPath*b.paths.estimate() {
		return fmt.Errorf("paths, link targets and extended attributes of more than %d MiB, and of more than %d bytes a path",
			tocFree>>20, tocPerPath)
	}
	return nil
}

// pathCount estimates how many different paths it was told of, to a few percent
// in a few kilobytes (HyperLogLog: Flajolet and others, 2007). Of less than some
// thousands it says too many. The zero value is ready.
type pathCount struct {
	seed maphash.Seed // not to be steered by a hostile layer
	// ranks are, for each part of the hashes, the longest run of zeros seen, plus
	// one; a part is one in countParts of the paths.
	ranks *[countParts]uint8
	sum   float64 // of 2^-rank
}

const countParts = 1 << 11

func (c *pathCount) add(path []byte) {
	if c.ranks == nil {
		c.seed, c.ranks, c.sum = maphash.MakeSeed(), new([countParts]uint8), countParts
	}
	h := maphash.Bytes(c.seed, path)
	part := &c.ranks[h%countParts]
	if rank := uint8(bits.LeadingZeros64(h|(countParts-1)) + 1); rank > *part {
		c.sum += inverse(rank) - inverse(*part)
		*part = rank
	}
}

// inverse is 2^-rank.
func inverse(rank uint8) float64 { return 1 / float64(uint64(1)<<rank) }

func (c *pathCount) estimate() uint64 {
	const alpha = 0.7213 / (1 + 1.079/countParts)
	return uint64(alpha * countParts * countParts / c.sum)
}
