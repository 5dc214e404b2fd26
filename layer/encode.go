package layer

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math"
	"slices"

	"golang.org/x/sys/unix"
)

// treeFile is where a tree is written to: an *os.File.
type treeFile interface {
	io.Writer
	io.WriterAt
}

// encoder turns a merger's tree into the tree file. Numbers are given in
// pre-order of names sorted by bytes, so the file is a pure function of the
// layers' contents.
type encoder struct {
	m *merger
	w *bufio.Writer
	h hash.Hash32

	rowOf   []uint32 // merge inode → inode number; 0: not seen yet
	inodes  []uint32 // row → merge inode
	runs    []run    // row → a directory's dirents
	dirents []uint32 // dirent → node: directories in order of number, names sorted
	parents []uint32 // dirent → inode number of its directory

	firstName []uint32 // row → its first dirent, where one name; else its first in names
	nameCount []uint32 // row → names
	names     []uint32 // dirents of inodes with several names

	strings  []byte
	stringAt []uint32 // merge string → offset in strings + 1; 0: not in it yet
	setAt    []uint32 // merge xattr set → set in the file + 1
	sets     []uint32 // set in the file → merge set
	extents  uint64
	xattrs   uint32

	off  uint64
	secs [numSections]section
}

// run is a part of the dirent section.
type run struct{ first, n uint32 }

// encodeTree writes the tree that m holds; m can take no more layers. layers is
// how many there were.
func encodeTree(m *merger, w treeFile, key [32]byte, layers int) error {
	e := &encoder{m: m, w: bufio.NewWriterSize(w, 1<<20)}
	if err := e.number(); err != nil {
		return err
	}
	e.collectNames()
	if _, err := e.w.Write(make([]byte, treeHeaderSize)); err != nil {
		return fmt.Errorf("write tree: %w", err)
	}
	e.off = treeHeaderSize
	writers := [numSections]func() error{
		e.writeInodes, e.writeDirents, e.writeNames, e.writeExtents,
		e.writeXattrSets, e.writeXattrs, e.writeStrings,
	}
	for id, write := range writers {
		if err := e.section(sectionID(id), write); err != nil {
			return fmt.Errorf("write tree: %w", err)
		}
	}
	if err := e.w.Flush(); err != nil {
		return fmt.Errorf("write tree: %w", err)
	}
	if _, err := w.WriteAt(putHeader(&e.secs, key, uint32(layers), e.off), 0); err != nil {
		return fmt.Errorf("write tree: %w", err)
	}
	return nil
}

// number walks the tree in pre-order and gives every inode its number when it
// is first met.
func (e *encoder) number() error {
	m := e.m
	e.rowOf = make([]uint32, len(m.inodes))
	e.inodes = make([]uint32, 0, len(m.inodes))
	e.dirents = make([]uint32, 0, len(m.nodes))
	e.parents = make([]uint32, 0, len(m.nodes))
	stack := []run{e.enter(rootNode)}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if top.n == 0 {
			stack = stack[:len(stack)-1]
			continue
		}
		node := e.dirents[top.first]
		top.first++
		top.n--
		inode := m.nodes[node].inode
		switch {
		case e.rowOf[inode] != 0:
		case m.isDir(node):
			stack = append(stack, e.enter(node))
		default:
			e.row(inode, run{})
		}
	}
	if len(e.dirents) >= math.MaxUint32 {
		return fmt.Errorf("%w: too many names", ErrFormat)
	}
	return nil
}

// row numbers an inode.
func (e *encoder) row(inode uint32, r run) {
	e.inodes = append(e.inodes, inode)
	e.runs = append(e.runs, r)
	e.rowOf[inode] = uint32(len(e.inodes))
}

// enter numbers a directory and lays its sorted children out as dirents.
func (e *encoder) enter(node uint32) run {
	m := e.m
	first := len(e.dirents)
	for child := m.nodes[node].child; child != 0; child = m.nodes[child].next {
		e.dirents = append(e.dirents, child)
	}
	children := e.dirents[first:]
	// The newest comes first, and most archives are sorted.
	slices.Reverse(children)
	slices.SortFunc(children, func(a, b uint32) int {
		return bytes.Compare(m.names.get(m.nodes[a].name), m.names.get(m.nodes[b].name))
	})
	r := run{uint32(first), uint32(len(children))}
	e.row(m.nodes[node].inode, r)
	ino := uint32(len(e.inodes))
	for range children {
		e.parents = append(e.parents, ino)
	}
	return r
}

// collectNames finds every inode's names, in the order of their dirents.
func (e *encoder) collectNames() {
	e.firstName = make([]uint32, len(e.inodes))
	e.nameCount = make([]uint32, len(e.inodes))
	for i := len(e.dirents) - 1; i >= 0; i-- {
		row := e.rowOf[e.m.nodes[e.dirents[i]].inode] - 1
		e.firstName[row] = uint32(i)
		e.nameCount[row]++
	}
	total := uint32(0)
	for row, n := range e.nameCount {
		if n > 1 {
			total += n
			e.firstName[row] = total // its end, until the loop below came down to its start
		}
	}
	e.names = make([]uint32, total)
	for i := len(e.dirents) - 1; i >= 0 && total > 0; i-- {
		row := e.rowOf[e.m.nodes[e.dirents[i]].inode] - 1
		if e.nameCount[row] > 1 {
			e.firstName[row]--
			e.names[e.firstName[row]] = uint32(i)
		}
	}
}

// section writes one section and its padding and notes where it lies.
func (e *encoder) section(id sectionID, write func() error) error {
	s := &e.secs[id]
	s.off, s.record = e.off, uint32(recordSizes[id])
	e.h = crc32.New(castagnoli)
	if err := write(); err != nil {
		return err
	}
	s.size, s.crc = e.off-s.off, e.h.Sum32()
	pad := -e.off % treeAlign
	e.off += pad
	_, err := e.w.Write(make([]byte, pad))
	return err
}

// write appends to the section being written.
func (e *encoder) write(b []byte) error {
	if _, err := e.h.Write(b); err != nil {
		return err
	}
	e.off += uint64(len(b))
	_, err := e.w.Write(b)
	return err
}

func (e *encoder) writeInodes() error {
	e.stringAt = make([]uint32, len(e.m.names.ends))
	e.setAt = make([]uint32, len(e.m.xattrs.sets))
	batch := make([]byte, 0, 512*inodeSize)
	for row, inode := range e.inodes {
		r := e.inodeRow(row, &e.m.inodes[inode])
		batch = batch[:len(batch)+inodeSize]
		r.put(batch[len(batch)-inodeSize:])
		if len(batch) == cap(batch) || row == len(e.inodes)-1 {
			if err := e.write(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	return nil
}

func (e *encoder) inodeRow(row int, n *mergeInode) inodeRow {
	r := inodeRow{
		mode: uint16(n.mode), uid: n.uid, gid: n.gid, sec: n.sec, nsec: n.nsec,
		nlink: e.nameCount[row],
	}
	switch {
	case e.nameCount[row] > 1:
		r.flags |= flagNames
		r.parent, r.dirent = e.firstName[row], e.nameCount[row]
	case e.nameCount[row] == 1:
		r.dirent = e.firstName[row]
		r.parent = e.parents[r.dirent]
	}
	if n.xattr != 0 {
		r.xattrs = e.xattrSet(n.xattr)
	}
	switch n.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		r.size, r.data = uint64(e.runs[row].n), uint64(e.runs[row].first)
		r.nlink = 2 + e.subdirs(e.runs[row])
	case unix.S_IFLNK:
		r.size, r.data = uint64(n.size), uint64(e.str(uint32(n.data)))
	case unix.S_IFCHR, unix.S_IFBLK:
		r.data = n.data
	case unix.S_IFREG:
		r.size, r.layer = uint64(n.size), n.layer
		switch {
		case n.sparse:
			r.count, r.data = n.count, e.extents
			e.extents += uint64(n.count)
		case n.size > 0:
			r.flags |= flagInline
			r.data = n.data
		}
	}
	return r
}

func (e *encoder) subdirs(r run) uint32 {
	var n uint32
	for _, node := range e.dirents[r.first : r.first+r.n] {
		if e.m.isDir(node) {
			n++
		}
	}
	return n
}

// xattrSet is the number in the file, plus one, of a set of the merger.
func (e *encoder) xattrSet(set uint32) uint32 {
	if e.setAt[set] == 0 {
		e.sets = append(e.sets, set)
		e.setAt[set] = uint32(len(e.sets))
	}
	return e.setAt[set]
}

// str is the offset in the file's strings of a string of the merger.
func (e *encoder) str(id uint32) uint32 {
	if e.stringAt[id] == 0 {
		e.stringAt[id] = uint32(len(e.strings)) + 1
		e.strings = append(e.strings, e.m.names.get(id)...)
	}
	return e.stringAt[id] - 1
}

func (e *encoder) writeDirents() error {
	var b [direntSize]byte
	for _, node := range e.dirents {
		n := &e.m.nodes[node]
		name := e.m.names.get(n.name)
		r := direntRow{
			name: e.str(n.name), ino: e.rowOf[n.inode], prefix: namePrefix(name),
			nameLen: uint16(len(name)), typ: uint16(e.m.mode(node)),
		}
		r.put(b[:])
		if err := e.write(b[:]); err != nil {
			return err
		}
	}
	return nil
}

func (e *encoder) writeNames() error {
	var b [nameSize]byte
	for _, d := range e.names {
		binary.LittleEndian.PutUint32(b[0:], e.parents[d])
		binary.LittleEndian.PutUint32(b[4:], d)
		if err := e.write(b[:]); err != nil {
			return err
		}
	}
	return nil
}

func (e *encoder) writeExtents() error {
	var b [extentSize]byte
	for _, inode := range e.inodes {
		n := &e.m.inodes[inode]
		if !n.sparse {
			continue
		}
		for _, p := range e.m.pieces[n.data : n.data+uint64(n.count)] {
			binary.LittleEndian.PutUint64(b[0:], uint64(p.off))
			binary.LittleEndian.PutUint64(b[8:], uint64(p.size))
			binary.LittleEndian.PutUint64(b[16:], uint64(p.pos))
			if err := e.write(b[:]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *encoder) writeXattrSets() error {
	var b [xattrSetSize]byte
	for _, set := range e.sets {
		n := uint32(len(e.m.xattrs.sets[set]))
		binary.LittleEndian.PutUint32(b[0:], e.xattrs)
		binary.LittleEndian.PutUint32(b[4:], n)
		e.xattrs += n
		if err := e.write(b[:]); err != nil {
			return err
		}
	}
	return nil
}

func (e *encoder) writeXattrs() error {
	var b [xattrSize]byte
	for _, set := range e.sets {
		for _, x := range e.m.xattrs.sets[set] {
			binary.LittleEndian.PutUint32(b[0:], e.str(x.name))
			binary.LittleEndian.PutUint32(b[4:], uint32(len(e.m.names.get(x.name))))
			binary.LittleEndian.PutUint32(b[8:], e.str(x.value))
			binary.LittleEndian.PutUint32(b[12:], uint32(len(e.m.names.get(x.value))))
			if err := e.write(b[:]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *encoder) writeStrings() error { return e.write(e.strings) }
