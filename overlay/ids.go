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
	// SquashRest shows an id of the image that the ranges leave out as its root's,
	// not as overflowID.
	SquashRest bool
}

// Has reports whether both ids of the image are mapped.
func (m *IDMap) Has(o Owner) bool { return inImage(m.UIDs, o.UID) && inImage(m.GIDs, o.GID) }

func inImage(ranges []IDRange, id uint32) bool {
	for _, r := range ranges {
		if id >= r.Image && id-r.Image < r.Size {
			return true
		}
	}
	return len(ranges) == 0
}

// overflowID is shown for an id that the mapping leaves out, as the kernel does
// (/proc/sys/kernel/overflowuid).
const overflowID = 65534

func (m *IDMap) toHost(ranges []IDRange, id uint32) uint32 {
	if m.SquashRest && !inImage(ranges, id) {
		id = 0
	}
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
	a.Image = Owner{a.UID, a.GID}
	if fs.squash != nil {
		a.UID, a.GID = fs.squash.UID, fs.squash.GID
		return a
	}
	a.UID = fs.ids.toHost(fs.ids.UIDs, a.UID)
	a.GID = fs.ids.toHost(fs.ids.GIDs, a.GID)
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

// creatorUID is the image's id of who creates something.
func (fs *FS) creatorUID(c *Caller) (uint32, error) {
	return creatorID(c.UID, c.ImageIDs, fs.rootUser != nil && c.UID == fs.rootUser.UID, fs.imageUID)
}

// creatorGID is the image's group of who creates something.
func (fs *FS) creatorGID(c *Caller) (uint32, error) {
	return creatorID(c.GID, c.ImageIDs, fs.rootUser != nil && c.GID == fs.rootUser.GID, fs.imageGID)
}

// creatorID translates a creator's id that is not the image's already; root is who
// acts as the image's root.
func creatorID(id uint32, image, root bool, translate func(uint32) (uint32, error)) (uint32, error) {
	switch {
	case image:
		return id, nil
	case root:
		return 0, nil
	}
	in, err := translate(id)
	if err != nil && id == 0 {
		return 0, nil // the host's root, in no container: it acts as the image's
	}
	return in, err
}

// imageIDs are the image's ids of a change of owner; -1 for one that stays.
func (fs *FS) imageIDs(set *SetAttr) (uid, gid int, err error) {
	to := func(valid SetattrMask, id uint32, translate func(uint32) (uint32, error)) int {
		switch {
		case set.Valid&valid == 0 || err != nil:
			return -1
		case !set.ImageIDs:
			id, err = translate(id)
		}
		return int(id)
	}
	uid = to(SetUID, set.UID, fs.imageUID)
	gid = to(SetGID, set.GID, fs.imageGID)
	return uid, gid, err
}
