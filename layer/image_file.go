package layer

import (
	"fmt"
	"io"
	"io/fs"
	"sort"
)

var (
	_ File = (*runFile)(nil)
	_ File = (*holedFile)(nil)
	_ File = zeroFile(0)
)

// clampRead is how much of p a read at off of a file of size bytes can fill, and
// the error that goes with a full success of that.
func clampRead(p []byte, off, size int64) ([]byte, error) {
	if off < 0 {
		return nil, fmt.Errorf("read at negative offset: %w", fs.ErrInvalid)
	}
	if off >= size {
		if len(p) == 0 {
			return nil, nil
		}
		return nil, io.EOF
	}
	if int64(len(p)) > size-off {
		return p[:size-off], io.EOF
	}
	return p, nil
}

// runFile is a file whose bytes are one run of a layer.
type runFile struct {
	blob *lazyBlob
	pos  int64 // in the layer's plain stream
	size int64
}

// Size is the length in bytes.
func (f *runFile) Size() int64 { return f.size }

// ReadAt reads from the layer, which checks what it gives.
func (f *runFile) ReadAt(p []byte, off int64) (_ int, err error) {
	defer catchFault(guardFaults(), &err)
	p, end := clampRead(p, off, f.size)
	if len(p) == 0 {
		return 0, end
	}
	n, err := f.blob.readFull(p, f.pos+off)
	if err != nil {
		return n, err
	}
	return n, end
}

// Data is all of the file.
func (f *runFile) Data(off int64) (start, end int64) { return min(off, f.size), f.size }

// Ready is the layer's answer, for what there is of the range.
func (f *runFile) Ready(off int64, n int) (ready bool) {
	var fault error // leaves ready false
	defer catchFault(guardFaults(), &fault)
	if off < 0 || off >= f.size || n <= 0 {
		return true
	}
	return f.blob.isReady(f.pos+off, int(min(int64(n), f.size-off)))
}

// Direct passes on the layer's answer, clamped so that what follows the file in
// the layer cannot leak.
func (f *runFile) Direct(off int64, n int) (fd int, fdOff int64, m int, ok bool) {
	if off < 0 || off >= f.size || n <= 0 {
		return -1, 0, 0, false
	}
	return f.blob.direct(f.pos+off, int(min(int64(n), f.size-off)))
}

// holedFile is a file of several runs with holes around them.
type holedFile struct {
	blob *lazyBlob
	content
}

// Size is the length in bytes, holes included.
func (f *holedFile) Size() int64 { return f.size }

// find is the first extent that ends behind off.
func (f *holedFile) find(off int64) int {
	return sort.Search(f.numExtents(), func(i int) bool {
		start, size, _ := f.extent(i)
		return start+size > off
	})
}

// Data joins the extents that are less than a block apart. Of a damaged tree all is
// data, which a read then says.
func (f *holedFile) Data(off int64) (start, end int64) {
	start, end = min(off, f.size), f.size
	var fault error // leaves all data
	defer catchFault(guardFaults(), &fault)
	first, last := f.size, f.size
	for i := f.find(off &^ (BlockSize - 1)); i < f.numExtents(); i++ {
		at, size, pos := f.extent(i)
		if !extentFits(at, size, pos, 0, f.size) {
			return start, end
		}
		from := at &^ (BlockSize - 1)
		if first == f.size {
			first = from
		} else if from > last {
			break
		}
		last = at + size
		if part := last % BlockSize; part != 0 {
			last += min(BlockSize-part, f.size-last)
		}
	}
	return max(start, first), last
}

// ReadAt reads the extents and fills the holes with zeros.
func (f *holedFile) ReadAt(p []byte, off int64) (_ int, err error) {
	defer catchFault(guardFaults(), &err)
	p, end := clampRead(p, off, f.size)
	done := 0
	for i := f.find(off); done < len(p); i++ {
		at := off + int64(done)
		start, size, pos := f.size, int64(0), int64(0)
		if i < f.numExtents() {
			if start, size, pos = f.extent(i); !extentFits(start, size, pos, 0, f.size) || start+size <= at {
				return done, ErrCorrupt
			}
		}
		if hole := start - at; hole > 0 {
			n := int(min(hole, int64(len(p)-done)))
			clear(p[done : done+n])
			done += n
			at += int64(n)
		}
		n := int(min(start+size-at, int64(len(p)-done)))
		if n <= 0 {
			continue
		}
		m, err := f.blob.readFull(p[done:done+n], pos+at-start)
		done += m
		if err != nil {
			return done, err
		}
	}
	return done, end
}

// Ready is the layer's answer for a range within an extent, and no for others.
func (f *holedFile) Ready(off int64, n int) (ready bool) {
	var fault error // leaves ready false
	defer catchFault(guardFaults(), &fault)
	i := f.find(off)
	if off < 0 || n <= 0 || i == f.numExtents() {
		return false
	}
	start, size, pos := f.extent(i)
	if off < start || !extentFits(start, size, pos, 0, f.size) || int64(n) > start+size-off {
		return false
	}
	return f.blob.isReady(pos+off-start, n)
}

// Direct answers for a range that begins in an extent, up to its end.
func (f *holedFile) Direct(off int64, n int) (fd int, fdOff int64, m int, ok bool) {
	i := f.find(off)
	if off < 0 || n <= 0 || i == f.numExtents() {
		return -1, 0, 0, false
	}
	start, size, pos := f.extent(i)
	if off < start || !extentFits(start, size, pos, 0, f.size) {
		return -1, 0, 0, false
	}
	return f.blob.direct(pos+off-start, int(min(int64(n), start+size-off)))
}

// zeroFile is a file without data: empty, or one hole. Its value is its length.
type zeroFile int64

// Size is the length in bytes.
func (f zeroFile) Size() int64 { return int64(f) }

// Data is nowhere.
func (f zeroFile) Data(int64) (start, end int64) { return int64(f), int64(f) }

// ReadAt gives zeros.
func (f zeroFile) ReadAt(p []byte, off int64) (int, error) {
	p, end := clampRead(p, off, int64(f))
	clear(p)
	return len(p), end
}

// Ready is so always.
func (f zeroFile) Ready(int64, int) bool { return true }

// Direct never can.
func (f zeroFile) Direct(int64, int) (fd int, fdOff int64, m int, ok bool) { return -1, 0, 0, false }
