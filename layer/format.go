package layer

import (
	"encoding/binary"
	"hash/crc32"
)

// The tree file, see docs/tree-format.md. All numbers are little-endian, all
// CRCs CRC-32C.
//
//	[ header 512 ][ inodes 64 each ][ dirents 16 each ][ names 8 each ]
//	[ extents 24 each ][ xattr sets 8 each ][ xattrs 16 each ][ strings ]
//
// Inode number = row + 1. A directory's dirents are one run, sorted by name.
// Every section begins at a multiple of 64.
const (
	treeMagic   = "UMTREE\r\n"
	treeVersion = 1

	treeHeaderSize = 512
	treeAlign      = 64

	inodeSize    = 64
	direntSize   = 16
	nameSize     = 8
	extentSize   = 24
	xattrSetSize = 8
	xattrSize    = 16
)

// Offsets in the header.
const (
	hdrVersion  = 8   // uint32
	hdrCompat   = 12  // uint32, feature bits a reader may ignore
	hdrIncompat = 16  // uint32, feature bits a reader must know
	hdrLayers   = 20  // uint32, layers the tree was made of
	hdrFileSize = 24  // uint64
	hdrKey      = 32  // 32 bytes, see treeKey
	hdrSections = 64  // 7 × 24: offset uint64, size uint64, CRC uint32, record size uint32
	hdrCRC      = 508 // uint32, of all before
)

// sectionID says which section; also its place in the header's table.
type sectionID int

const (
	secInodes sectionID = iota
	secDirents
	secNames
	secExtents
	secXattrSets
	secXattrs
	secStrings
	numSections
)

const sectionEntrySize = 24

// recordSizes are the sections' record sizes, in their order.
var recordSizes = [numSections]uint64{inodeSize, direntSize, nameSize, extentSize, xattrSetSize, xattrSize, 1}

// Flags of an inode row.
const (
	// flagInline: the content is one run; row.data is its position, row.count 0.
	// Without it, count extents from extent data on; none for an empty file.
	flagInline = 1 << iota
	// flagNames: more than one name; row.parent is the first in the names
	// section, row.dirent how many.
	flagNames

	knownFlags = flagInline | flagNames
)

// inodeRow is one row of the inode section.
type inodeRow struct {
	mode   uint16 // 0: type and permission bits
	flags  uint16 // 2
	uid    uint32 // 4
	gid    uint32 // 8
	nlink  uint32 // 12
	sec    int64  // 16: mtime
	nsec   uint32 // 24
	xattrs uint32 // 28: xattr set + 1; 0: none
	size   uint64 // 32: regular: bytes; symlink: length of the target; directory: dirents
	data   uint64 // 40: see flagInline; symlink: string offset; device: rdev; directory: first dirent
	count  uint32 // 48: extents
	layer  uint32 // 52: which layer has the content, 0 the bottom one
	parent uint32 // 56: inode of the directory with the one name; 0: the root
	dirent uint32 // 60: index of that name's dirent
}

func (r *inodeRow) put(b []byte) {
	_ = b[inodeSize-1]
	le := binary.LittleEndian
	le.PutUint16(b[0:], r.mode)
	le.PutUint16(b[2:], r.flags)
	le.PutUint32(b[4:], r.uid)
	le.PutUint32(b[8:], r.gid)
	le.PutUint32(b[12:], r.nlink)
	le.PutUint64(b[16:], uint64(r.sec))
	le.PutUint32(b[24:], r.nsec)
	le.PutUint32(b[28:], r.xattrs)
	le.PutUint64(b[32:], r.size)
	le.PutUint64(b[40:], r.data)
	le.PutUint32(b[48:], r.count)
	le.PutUint32(b[52:], r.layer)
	le.PutUint32(b[56:], r.parent)
	le.PutUint32(b[60:], r.dirent)
}

func (r *inodeRow) get(b []byte) {
	_ = b[inodeSize-1]
	le := binary.LittleEndian
	r.mode = le.Uint16(b[0:])
	r.flags = le.Uint16(b[2:])
	r.uid = le.Uint32(b[4:])
	r.gid = le.Uint32(b[8:])
	r.nlink = le.Uint32(b[12:])
	r.sec = int64(le.Uint64(b[16:]))
	r.nsec = le.Uint32(b[24:])
	r.xattrs = le.Uint32(b[28:])
	r.size = le.Uint64(b[32:])
	r.data = le.Uint64(b[40:])
	r.count = le.Uint32(b[48:])
	r.layer = le.Uint32(b[52:])
	r.parent = le.Uint32(b[56:])
	r.dirent = le.Uint32(b[60:])
}

// direntRow is one name of a directory.
type direntRow struct {
	name    uint32 // 0: string offset
	ino     uint32 // 4
	prefix  uint32 // 8: the name's first four bytes, big-endian, padded with zeros
	nameLen uint16 // 12: bytes
	typ     uint16 // 14: S_IFMT bits
}

func (r *direntRow) put(b []byte) {
	_ = b[direntSize-1]
	le := binary.LittleEndian
	le.PutUint32(b[0:], r.name)
	le.PutUint32(b[4:], r.ino)
	le.PutUint32(b[8:], r.prefix)
	le.PutUint16(b[12:], r.nameLen)
	le.PutUint16(b[14:], r.typ)
}

func (r *direntRow) get(b []byte) {
	_ = b[direntSize-1]
	le := binary.LittleEndian
	r.name = le.Uint32(b[0:])
	r.ino = le.Uint32(b[4:])
	r.prefix = le.Uint32(b[8:])
	r.nameLen = le.Uint16(b[12:])
	r.typ = le.Uint16(b[14:])
}

// namePrefix is a direntRow's prefix: it orders most names without a look into
// the strings.
func namePrefix[S string | []byte](name S) uint32 {
	var p uint32
	for i := range 4 {
		p <<= 8
		if i < len(name) {
			p |= uint32(name[i])
		}
	}
	return p
}

// section is one entry of the header's table.
type section struct {
	off, size uint64
	crc       uint32
	record    uint32
}

// putHeader makes the header of a file of these sections.
func putHeader(secs *[numSections]section, key [32]byte, layers uint32, fileSize uint64) []byte {
	b := make([]byte, treeHeaderSize)
	le := binary.LittleEndian
	copy(b, treeMagic)
	le.PutUint32(b[hdrVersion:], treeVersion)
	le.PutUint32(b[hdrLayers:], layers)
	le.PutUint64(b[hdrFileSize:], fileSize)
	copy(b[hdrKey:], key[:])
	for i, s := range secs {
		e := b[hdrSections+i*sectionEntrySize:]
		le.PutUint64(e[0:], s.off)
		le.PutUint64(e[8:], s.size)
		le.PutUint32(e[16:], s.crc)
		le.PutUint32(e[20:], s.record)
	}
	le.PutUint32(b[hdrCRC:], crc32.Checksum(b[:hdrCRC], castagnoli))
	return b
}

// parseHeader checks a header and gives its section table. It answers ErrMagic,
// ErrVersion, ErrChecksum or ErrCorrupt.
func parseHeader(b []byte) (secs [numSections]section, err error) {
	if len(b) < len(treeMagic) || string(b[:len(treeMagic)]) != treeMagic {
		return secs, ErrMagic
	}
	if len(b) < treeHeaderSize {
		return secs, ErrChecksum
	}
	le := binary.LittleEndian
	if le.Uint32(b[hdrVersion:]) != treeVersion {
		return secs, ErrVersion
	}
	if crc32.Checksum(b[:hdrCRC], castagnoli) != le.Uint32(b[hdrCRC:]) {
		return secs, ErrChecksum
	}
	if le.Uint32(b[hdrIncompat:]) != 0 {
		return secs, ErrVersion
	}
	size := le.Uint64(b[hdrFileSize:])
	for i := range secs {
		e := b[hdrSections+i*sectionEntrySize:]
		s := section{le.Uint64(e[0:]), le.Uint64(e[8:]), le.Uint32(e[16:]), le.Uint32(e[20:])}
		if s.off > size || s.size > size-s.off || s.off < treeHeaderSize ||
			uint64(s.record) != recordSizes[i] || s.size%recordSizes[i] != 0 {
			return secs, ErrCorrupt
		}
		secs[i] = s
	}
	if secs[secInodes].size == 0 {
		return secs, ErrCorrupt
	}
	return secs, nil
}
