package layer

import (
	"encoding/binary"
	"math"
)

// tocCursor walks a toc front to back.
type tocCursor struct {
	rest []byte // not yet read
	left uint64 // entries in rest
	path []byte // of the entry before
	sec  int64
	pos  int64
	bad  bool // a number or string ran past the end or out of its range
}

func (t *toc) cursor() *tocCursor { return &tocCursor{rest: t.body, left: t.n} }

// next decodes the next entry into e, reusing its slices; false at the end.
// What e holds is valid until the next call. A record that makes no sense is
// ErrCorrupt.
func (c *tocCursor) next(e *tocEntry) (bool, error) {
	if c.left == 0 {
		if len(c.rest) != 0 {
			return false, ErrCorrupt
		}
		return false, nil
	}
	c.left--
	*e = tocEntry{pieces: e.pieces[:0], xattrs: e.xattrs[:0]}
	var first byte
	if len(c.rest) > 0 {
		first, c.rest = c.rest[0], c.rest[1:]
	}
	e.kind = entryKind(first & tocKindMask)
	e.sparse = first&tocSparse != 0
	shared := c.uvarint(uint64(len(c.path)))
	suffix := c.bytes(maxPath)
	if c.bad || e.kind >= kindEnd || int(shared)+len(suffix) > maxPath {
		return false, ErrCorrupt
	}
	c.path = append(c.path[:shared], suffix...)
	e.path = c.path
	switch e.kind {
	case kindWhiteout, kindOpaque:
	case kindHardlink:
		e.link = c.bytes(maxPath)
	default:
		c.meta(e, first)
	}
	if c.bad {
		return false, ErrCorrupt
	}
	return true, nil
}

func (c *tocCursor) meta(e *tocEntry, first byte) {
	e.mode = uint32(c.uvarint(0o7777))
	e.uid = uint32(c.uvarint(math.MaxUint32))
	e.gid = uint32(c.uvarint(math.MaxUint32))
	c.sec += c.varint()
	e.mtime.Sec = c.sec
	if first&tocNsec != 0 {
		e.mtime.Nsec = uint32(c.uvarint(999_999_999))
	}
	switch e.kind {
	case kindSymlink:
		e.link = c.bytes(maxPath)
	case kindChar, kindBlock:
		e.rdev = c.uvarint(math.MaxUint64)
	case kindRegular:
		c.data(e)
	}
	if first&tocXattrs == 0 {
		return
	}
	for range c.uvarint(uint64(len(c.rest))) {
		if c.bad {
			return
		}
		e.xattrs = append(e.xattrs, xattr{c.bytes(maxXattrName), c.bytes(maxXattrValue)})
	}
}

func (c *tocCursor) data(e *tocEntry) {
	e.size = int64(c.uvarint(math.MaxInt64))
	if !e.sparse {
		if e.size > 0 {
			e.pos = c.pos + c.varint()
			c.pos = e.pos + e.size
			c.bad = c.bad || e.pos < 0 || c.pos < e.pos
		}
		return
	}
	n := c.uvarint(uint64(len(c.rest)))
	e.pos = c.pos + c.varint()
	c.pos = e.pos
	c.bad = c.bad || e.pos < 0
	var end int64
	for range n {
		p := piece{pos: c.pos}
		p.off = end + int64(c.uvarint(uint64(e.size-end)))
		p.size = int64(c.uvarint(uint64(e.size - p.off)))
		end = p.off + p.size
		c.pos += p.size
		if c.bad || c.pos < p.pos {
			c.bad = true
			return
		}
		e.pieces = append(e.pieces, p)
	}
}

// uvarint reads a number that may be limit at most.
func (c *tocCursor) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(c.rest)
	if n <= 0 || v > limit {
		c.bad = true
		return 0
	}
	c.rest = c.rest[n:]
	return v
}

func (c *tocCursor) varint() int64 {
	v, n := binary.Varint(c.rest)
	if n <= 0 {
		c.bad = true
		return 0
	}
	c.rest = c.rest[n:]
	return v
}

// bytes reads a string of limit bytes at most; it is a view into the body.
func (c *tocCursor) bytes(limit uint64) []byte {
	n := c.uvarint(min(limit, uint64(len(c.rest))))
	if n > uint64(len(c.rest)) {
		c.bad = true
		return nil
	}
	s := c.rest[:n:n]
	c.rest = c.rest[n:]
	return s
}
