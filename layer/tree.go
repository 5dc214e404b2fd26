package layer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// Tree is a merged tree file, mapped into memory: see docs/tree-format.md. It is
// immutable and safe for concurrent use. What its methods return as strings or
// byte slices are views into the mapping: read-only, and gone after Close.
//
// Opening checks the header alone, so that it costs the same for any number of
// entries. Each record's references are checked when it is used: a damaged file
// gives ErrCorrupt or wrong metadata, never a fault. Verify checks all of it.
type Tree struct {
	f    *os.File // holds a shared flock as long as the mapping lives
	data []byte   // the mapping
	secs [numSections]section

	layers int
	// The sections, by themselves.
	inodes, dirents, names, extents, xattrSets, xattrs, strings []byte
}

// OpenTree maps a tree file and takes ownership of f, also when it fails. It
// answers ErrMagic, ErrVersion, ErrChecksum or ErrCorrupt for a file to be
// rebuilt; a file shorter than its header says is ErrChecksum. The file is
// locked (flock, shared) until Close: whoever would change it in place has to
// ask for the lock first.
func OpenTree(f *os.File) (*Tree, error) {
	t, err := mapTree(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open tree: %w", err), f.Close())
	}
	t.f = f
	return t, nil
}

func mapTree(f *os.File) (*Tree, error) {
	// A file system without locks can still be read from: nothing of ours changes
	// a tree file in place.
	if err := share(f); err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, ErrMagic
	}
	data, err := sys.Map(f, fi.Size())
	if err != nil {
		return nil, err
	}
	t, err := newTree(data)
	if err != nil {
		return nil, errors.Join(err, sys.Unmap(data))
	}
	return t, nil
}

// newTree gives the tree in b, a whole tree file.
func newTree(b []byte) (*Tree, error) {
	secs, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint64(b[hdrFileSize:]) != uint64(len(b)) {
		return nil, ErrChecksum
	}
	of := func(id sectionID) []byte {
		s := secs[id]
		return b[s.off : s.off+s.size : s.off+s.size]
	}
	return &Tree{
		data: b, secs: secs, layers: int(binary.LittleEndian.Uint32(b[hdrLayers:])),
		inodes: of(secInodes), dirents: of(secDirents), names: of(secNames), extents: of(secExtents),
		xattrSets: of(secXattrSets), xattrs: of(secXattrs), strings: of(secStrings),
	}, nil
}

// Close unmaps the tree and gives its lock up.
func (t *Tree) Close() error {
	err := sys.Unmap(t.data)
	*t = Tree{f: t.f}
	if t.f == nil {
		return err
	}
	f := t.f
	t.f = nil
	return errors.Join(err, f.Close())
}

// Unload takes the tree's pages out of this process's memory, into which they come again
// as they are used. The page cache has them still.
func (t *Tree) Unload() error { return sys.Unload(t.data) }

// key is the header's: what the tree was made of.
func (t *Tree) key() [32]byte { return [32]byte(t.data[hdrKey:]) }

// Len is how many inodes there are; their numbers are 1 to Len.
func (t *Tree) Len() int { return len(t.inodes) / inodeSize }

// Size is the length of the tree file in bytes.
func (t *Tree) Size() int64 { return int64(len(t.data)) }

// row reads an inode's row.
func (t *Tree) row(ino Ino, r *inodeRow) error {
	if ino == 0 || uint64(ino) > uint64(len(t.inodes)/inodeSize) {
		return ErrInode
	}
	r.get(t.inodes[(ino-1)*inodeSize:])
	return nil
}

// str is a string by its place; ErrCorrupt where the section has no such place.
func (t *Tree) str(off, n uint64) (string, error) {
	if off > uint64(len(t.strings)) || n > uint64(len(t.strings))-off {
		return "", ErrCorrupt
	}
	if n == 0 {
		return "", nil
	}
	return unsafe.String(&t.strings[off], n), nil
}

// outStr is str for what leaves the package: its pages have been read.
func (t *Tree) outStr(off, n uint64) (string, error) {
	s, err := t.str(off, n)
	if err == nil {
		touch(t.strings[off : off+n])
	}
	return s, err
}

// Attr describes one inode. ErrInode: there is none of that number.
func (t *Tree) Attr(ino Ino) (_ Attr, err error) {
	defer catchFault(guardFaults(), &err)
	var r inodeRow
	if err := t.row(ino, &r); err != nil {
		return Attr{}, err
	}
	a := Attr{
		Ino: ino, Mode: uint32(r.mode), UID: r.uid, GID: r.gid, Nlink: r.nlink,
		Mtime: Timespec{Sec: r.sec, Nsec: r.nsec},
	}
	switch r.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		a.Size = DirSize
	case unix.S_IFREG:
		a.Size, a.Blocks = int64(r.size), t.blocks(&r)
	case unix.S_IFLNK:
		a.Size = int64(r.size)
	case unix.S_IFCHR, unix.S_IFBLK:
		a.Rdev = r.data
	}
	if a.Size < 0 {
		return Attr{}, ErrCorrupt
	}
	return a, nil
}

// Readlink is a symlink's target, verbatim.
func (t *Tree) Readlink(ino Ino) (_ string, err error) {
	defer catchFault(guardFaults(), &err)
	var r inodeRow
	if err := t.row(ino, &r); err != nil {
		return "", err
	}
	if r.mode&unix.S_IFMT != unix.S_IFLNK {
		return "", ErrType
	}
	return t.outStr(r.data, r.size)
}

// checkSums compares every section with its CRC.
func (t *Tree) checkSums() error {
	for _, s := range t.secs {
		if crc32.Checksum(t.data[s.off:s.off+s.size], castagnoli) != s.crc {
			return ErrChecksum
		}
	}
	return nil
}

// bytesOf is a view of a string of the mapping as bytes.
func bytesOf(s string) []byte {
	if s == "" {
		return []byte{}
	}
	return unsafe.Slice(unsafe.StringData(s), len(s))
}
