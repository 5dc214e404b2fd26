package extract

import (
	"encoding/binary"
	"fmt"
	"math"
)

// IDRange maps Size ids from Container (as in layers) on to Host.
type IDRange struct {
	Container, Host, Size uint32
}

// toHost maps an id; an empty list is the identity.
func toHost(ranges []IDRange, id uint32) (uint32, error) {
	if len(ranges) == 0 {
		return id, nil
	}
	for _, r := range ranges {
		if id >= r.Container && id-r.Container < r.Size {
			return r.Host + (id - r.Container), nil
		}
	}
	return 0, fmt.Errorf("%d %w", id, ErrUnmapped)
}

// RootlessXattr holds the owner of a file that a plain user extracted
// (rootlesscontainers/proto).
const RootlessXattr = "user.rootlesscontainers"

// rootlessOwner is RootlessXattr's value: a message of two varints, 1 the user and
// 2 the group, of which the largest 32-bit number means that the id is root's.
func rootlessOwner(uid, gid uint32) []byte {
	var b []byte
	for i, id := range []uint32{uid, gid} {
		if id == 0 {
			id = math.MaxUint32
		}
		b = append(b, byte(i+1)<<3)
		b = binary.AppendUvarint(b, uint64(id))
	}
	return b
}
