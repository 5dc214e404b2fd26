package layer

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// The file form of a table of contents, see docs/toc-format.md:
//
//	[ magic 8 ][ version 4 ][ flags 4 ][ entries 8 ][ body length 8 ]
//	[ layer 32 ][ body CRC 4 ][ header CRC 4 ] body…
//
// Numbers are little-endian, the CRCs are CRC-32C.
const (
	tocMagic      = "UMTOC\x00\r\n"
	tocVersion    = 1
	tocLayer      = 32 // offset
	tocBodyCRC    = 64
	tocCRC        = 68
	tocHeaderSize = 72
	// tocMinEntry is the size of the smallest entry: kind, shared, length.
	tocMinEntry = 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// entryKind is what one entry of a table of contents asks for.
type entryKind uint8

const (
	kindRegular  entryKind = iota // a regular file
	kindDir                       // a directory
	kindSymlink                   // a symbolic link to link
	kindHardlink                  // one more name of the file at link; metadata ignored
	kindChar                      // a character device
	kindBlock                     // a block device
	kindFifo                      // a named pipe
	kindWhiteout                  // hides path of the layers below
	kindOpaque                    // hides all that the layers below have in path
	kindEnd
)

// xattr is one extended attribute.
type xattr struct{ name, value []byte }

// piece is a run of a sparse file that has data: size bytes at off of the file,
// at pos of the layer's plain stream.
type piece struct{ off, size, pos int64 }

// tocEntry is one entry of a layer, in the order of its tar stream. path and
// link are cleaned ("" is the root) except that a symlink's link is verbatim.
type tocEntry struct {
	kind   entryKind
	sparse bool // pieces holds the data; else all size bytes are at pos
	mode   uint32
	uid    uint32
	gid    uint32
	mtime  Timespec
	rdev   uint64
	size   int64 // bytes, holes included; regular files only
	pos    int64 // of the first data byte in the plain stream
	path   []byte
	link   []byte
	pieces []piece
	xattrs []xattr
}

// toc is a layer's table of contents, held in its compact form: it is written
// once and read once, front to back, so no entry is ever an object of its own.
type toc struct {
	// layer says which blob it is of, see layerKey; zeros before that is known.
	layer [32]byte
	n     uint64 // entries
	body  []byte
}

// Bits of an entry's first byte, above the kind.
const (
	tocKindMask = 0x0f
	tocXattrs   = 0x10 // extended attributes follow
	tocSparse   = 0x20 // a list of pieces follows
	tocNsec     = 0x40 // mtime has nanoseconds
)

// tocWriter builds a toc. The zero value is ready.
type tocWriter struct {
	toc    toc
	path   []byte // of the entry before
	sec    int64  // mtime of the entry before
	pos    int64  // end of the data of the entry before
	budget tocBudget
}

// add appends one entry. An error says that the table became too long.
func (w *tocWriter) add(e *tocEntry) error {
	first := byte(e.kind)
	if len(e.xattrs) > 0 {
		first |= tocXattrs
	}
	if e.sparse {
		first |= tocSparse
	}
	if e.mtime.Nsec != 0 {
		first |= tocNsec
	}
	shared := 0
	for shared < min(len(e.path), len(w.path)) && e.path[shared] == w.path[shared] {
		shared++
	}
	b := append(w.toc.body, first)
	b = binary.AppendUvarint(b, uint64(shared))
	b = appendBytes(b, e.path[shared:])
	w.path = append(w.path[:shared], e.path[shared:]...)
	switch e.kind {
	case kindWhiteout, kindOpaque:
	case kindHardlink:
		b = appendBytes(b, e.link)
	default:
		b = w.appendMeta(b, e)
	}
	w.toc.body = b
	w.toc.n++
	return w.budget.check(len(b), w.path)
}

// appendMeta appends what every inode has, then what its type has.
func (w *tocWriter) appendMeta(b []byte, e *tocEntry) []byte {
	b = binary.AppendUvarint(b, uint64(e.mode))
	b = binary.AppendUvarint(b, uint64(e.uid))
	b = binary.AppendUvarint(b, uint64(e.gid))
	b = binary.AppendVarint(b, e.mtime.Sec-w.sec)
	w.sec = e.mtime.Sec
	if e.mtime.Nsec != 0 {
		b = binary.AppendUvarint(b, uint64(e.mtime.Nsec))
	}
	switch e.kind {
	case kindSymlink:
		b = appendBytes(b, e.link)
	case kindChar, kindBlock:
		b = binary.AppendUvarint(b, e.rdev)
	case kindRegular:
		b = w.appendData(b, e)
	}
	if len(e.xattrs) > 0 {
		b = binary.AppendUvarint(b, uint64(len(e.xattrs)))
		for _, x := range e.xattrs {
			b = appendBytes(appendBytes(b, x.name), x.value)
		}
	}
	return b
}

func (w *tocWriter) appendData(b []byte, e *tocEntry) []byte {
	b = binary.AppendUvarint(b, uint64(e.size))
	if !e.sparse {
		if e.size > 0 {
			b = binary.AppendVarint(b, e.pos-w.pos)
			w.pos = e.pos + e.size
		}
		return b
	}
	b = binary.AppendUvarint(b, uint64(len(e.pieces)))
	b = binary.AppendVarint(b, e.pos-w.pos)
	w.pos = e.pos
	var end int64
	for _, p := range e.pieces {
		b = binary.AppendUvarint(b, uint64(p.off-end))
		b = binary.AppendUvarint(b, uint64(p.size))
		end = p.off + p.size
		w.pos += p.size
	}
	return b
}

func appendBytes(b, s []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// encode writes the file form.
func (t *toc) encode(w io.Writer) error {
	h := make([]byte, 0, tocHeaderSize)
	h = append(h, tocMagic...)
	h = binary.LittleEndian.AppendUint32(h, tocVersion)
	h = binary.LittleEndian.AppendUint32(h, 0)
	h = binary.LittleEndian.AppendUint64(h, t.n)
	h = binary.LittleEndian.AppendUint64(h, uint64(len(t.body)))
	h = append(h, t.layer[:]...)
	h = binary.LittleEndian.AppendUint32(h, crc32.Checksum(t.body, castagnoli))
	h = binary.LittleEndian.AppendUint32(h, crc32.Checksum(h, castagnoli))
	if _, err := w.Write(h); err != nil {
		return fmt.Errorf("write table of contents: %w", err)
	}
	if _, err := w.Write(t.body); err != nil {
		return fmt.Errorf("write table of contents: %w", err)
	}
	return nil
}

// decodeTOC checks the file form b and gives the toc in it, which keeps b. It
// answers ErrMagic, ErrVersion, ErrChecksum or ErrCorrupt.
func decodeTOC(b []byte) (*toc, error) {
	if len(b) < len(tocMagic) || string(b[:len(tocMagic)]) != tocMagic {
		return nil, ErrMagic
	}
	if len(b) < tocHeaderSize {
		return nil, ErrChecksum
	}
	if binary.LittleEndian.Uint32(b[8:]) != tocVersion || binary.LittleEndian.Uint32(b[12:]) != 0 {
		return nil, ErrVersion
	}
	n, size := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	body := b[tocHeaderSize:]
	if crc32.Checksum(b[:tocCRC], castagnoli) != binary.LittleEndian.Uint32(b[tocCRC:]) ||
		size != uint64(len(body)) ||
		crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[tocBodyCRC:]) {
		return nil, ErrChecksum
	}
	if n > size/tocMinEntry {
		return nil, ErrCorrupt
	}
	return &toc{layer: [32]byte(b[tocLayer:]), n: n, body: body}, nil
}

// ScanTOC reads one plain tar stream and gives its table of contents in file
// form, for Cache.PutIndex.
func ScanTOC(r io.Reader) ([]byte, error) {
	t, err := scanTar(r)
	if err != nil {
		return nil, err
	}
	out := sliceWriter(make([]byte, 0, tocHeaderSize+len(t.body)))
	err = t.encode(&out)
	return out, err
}

// sliceWriter appends what is written to it.
type sliceWriter []byte

func (s *sliceWriter) Write(p []byte) (int, error) {
	*s = append(*s, p...)
	return len(p), nil
}

// paths is every path that an entry or whiteout of the layer names, sorted by
// bytes, each once; the root is ".". Without what opaque markers hide: they name
// their directory.
func (t *toc) paths() ([]string, error) {
	out := make([]string, 0, t.n)
	var e tocEntry
	for c := t.cursor(); ; {
		ok, err := c.next(&e)
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		if len(e.path) == 0 {
			out = append(out, ".")
			continue
		}
		out = append(out, string(e.path))
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}
