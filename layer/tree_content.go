package layer

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Extent is a run of a file's content: Size bytes at Off of the file lie at Pos
// of the plain stream of layer number Layer (0 is the bottom one). What no
// extent covers is a hole.
type Extent struct {
	Layer          int
	Off, Size, Pos int64
}

// content is where a regular file's bytes are.
type content struct {
	size  int64
	layer int
	// pos is of the only run, which is all of the file, where extents is nil.
	pos     int64
	inline  bool
	extents []byte // records of the extent section; views
}

func (c *content) numExtents() int { return len(c.extents) / extentSize }

// extent is the i-th record; off, size and pos are not checked.
func (c *content) extent(i int) (off, size, pos int64) {
	b := c.extents[i*extentSize:]
	le := binary.LittleEndian
	return int64(le.Uint64(b[0:])), int64(le.Uint64(b[8:])), int64(le.Uint64(b[16:]))
}

// content says where a regular file's bytes are; ErrType for anything else.
func (t *Tree) content(ino Ino) (c content, err error) {
	defer catchFault(guardFaults(), &err)
	var r inodeRow
	if err := t.row(ino, &r); err != nil {
		return c, err
	}
	if r.mode&unix.S_IFMT != unix.S_IFREG {
		return c, ErrType
	}
	return t.contentOf(&r)
}

// contentOf is content by the row of a regular file.
func (t *Tree) contentOf(r *inodeRow) (c content, err error) {
	c.size, c.layer = int64(r.size), int(r.layer)
	if c.size < 0 {
		return c, ErrCorrupt
	}
	if r.flags&flagInline != 0 {
		c.inline, c.pos = true, int64(r.data)
		if c.layer >= t.layers || c.pos < 0 || c.pos+c.size < c.pos {
			return c, ErrCorrupt
		}
		return c, nil
	}
	total := uint64(len(t.extents) / extentSize)
	if r.data > total || uint64(r.count) > total-r.data || r.count > 0 && c.layer >= t.layers {
		return c, ErrCorrupt
	}
	c.extents = t.extents[r.data*extentSize : (r.data+uint64(r.count))*extentSize]
	return c, nil
}

// maxCounted is how many extents of a file are looked at for its blocks: who looks at a
// file waits for that.
const maxCounted = 4096

// blocks is Attr.Blocks. Of a file of more than maxCounted extents it is what their
// bytes take at least.
func (t *Tree) blocks(r *inodeRow) int64 {
	size := int64(r.size)
	dense := size/512 + min(size%512, 1)
	if r.flags&flagInline != 0 {
		return dense
	}
	c, err := t.contentOf(r)
	if err != nil {
		return dense
	}
	var blocks, counted int64 // of BlockSize; the ones before counted are
	for i := range c.numExtents() {
		off, size, pos := c.extent(i)
		if !extentFits(off, size, pos, 0, c.size) {
			return dense
		}
		if i == maxCounted {
			// The layer has the bytes of one extent behind those of the other.
			_, last, end := c.extent(c.numExtents() - 1)
			blocks += max(end+last-pos, 0) / BlockSize
			break
		}
		first, end := max(off/BlockSize, counted), (off+size-1)/BlockSize+1
		blocks += max(end-first, 0)
		counted = end
	}
	return min(blocks*(BlockSize/512), dense)
}

// Extents is where a regular file's content lies, by offset; nothing for a file
// that is one hole or empty.
func (t *Tree) Extents(ino Ino) (_ []Extent, err error) {
	defer catchFault(guardFaults(), &err)
	c, err := t.content(ino)
	if err != nil {
		return nil, err
	}
	if c.inline {
		return []Extent{{c.layer, 0, c.size, c.pos}}, nil
	}
	out := make([]Extent, c.numExtents())
	var end int64
	for i := range out {
		off, size, pos := c.extent(i)
		if !extentFits(off, size, pos, end, c.size) {
			return nil, ErrCorrupt
		}
		out[i] = Extent{c.layer, off, size, pos}
		end = off + size
	}
	return out, nil
}

// extentFits reports whether an extent lies behind the one that ends at end and
// in a file of fileSize bytes.
func extentFits(off, size, pos, end, fileSize int64) bool {
	return off >= end && size > 0 && size <= fileSize-off && pos >= 0 && pos+size > pos
}
