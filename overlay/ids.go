package overlay

import "fmt"

// IDRange maps Size ids from Image (as in layers) on to Host (as shown).
type IDRange struct {
	Image uint32
	Host  uint32
	Size  uint32
}

// IDMap translates owners between the image and the host. Empty lists are the
// identity. The upper directory holds the image's ids, so that one upper can be
// mounted with any mapping.
type IDMap struct {
	UIDs []IDRange
	GIDs []IDRange
}

// overflowID is shown for an id that the mapping leaves out, as the kernel does
// (/proc/sys/kernel/overflowuid).
const overflowID = 65534

func toHost(ranges []IDRange, id uint32) uint32 {
	if len(ranges) == 0 {
		return id
	}
	for _, r := range ranges {
		if id >= r.Image && id-r.Image < r.Size {
			return r.Host + (id - r.Image)
		}
	}
	return overflowID
}

func toImage(ranges []IDRange, id uint32) (uint32, error) {
	if len(ranges) == 0 {
		return id, nil
	}
	for _, r := range ranges {
		if id >= r.Host && id-r.Host < r.Size {
			return r.Image + (id - r.Host), nil
		}
	}
	return 0, fmt.Errorf("id %d is outside the mapping: %w", id, ErrInvalid)
}

// Owner is a user and a group.
type Owner struct {
	UID uint32
	GID uint32
}

// shown turns an attribute in the image's ids into what the view shows.
func (fs *FS) shown(a Attr) Attr {
	if fs.squash != nil {
		a.UID, a.GID = fs.squash.UID, fs.squash.GID
		return a
	}
	a.UID = toHost(fs.ids.UIDs, a.UID)
	a.GID = toHost(fs.ids.GIDs, a.GID)
	return a
}

// imageUID is the image's id for a uid that a caller gave.
func (fs *FS) imageUID(id uint32) (uint32, error) {
	if fs.squash != nil && id == fs.squash.UID {
		return 0, nil
	}
	return toImage(fs.ids.UIDs, id)
}

// imageGID is the image's id for a gid that a caller gave.
func (fs *FS) imageGID(id uint32) (uint32, error) {
	if fs.squash != nil && id == fs.squash.GID {
		return 0, nil
	}
	return toImage(fs.ids.GIDs, id)
}
