package layer

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// merger is the tree that the layers applied so far make, as extracting them one
// over the other would. Everything lies in flat slices and refers to each other
// by index, so that a million entries are a handful of allocations and the
// garbage collector has nothing to walk.
type merger struct {
	keepDirlinks bool

	names    stringTable  // file names, symlink targets, xattr names and values
	nodes    []mergeNode  // 0 is unused, rootNode the root
	inodes   []mergeInode // 0 is unused
	children childTable
	pieces   []piece // of sparse files; a run per inode
	xattrs   xattrSets

	freeNodes  uint32 // a list through mergeNode.next
	freeInodes uint32 // a list through mergeInode.data

	// layer is the number of the layer being applied, from 1 on; a node whose
	// touched says the same was made or named by it.
	layer uint32
	// The last directory resolved: lastDir leads to lastNode. Dropped when a
	// directory or symlink goes away.
	lastDir  []byte
	lastNode uint32

	walk   walker
	budget mergeBudget
}

// mergeNode is a name in a directory.
type mergeNode struct {
	parent  uint32 // node
	inode   uint32
	name    uint32 // in names
	child   uint32 // a directory's newest child
	next    uint32 // the sibling made before this one
	prev    uint32 // the sibling made after this one
	touched uint32 // the last layer that named it or something below it
	hidden  uint32 // the last layer that hid all that lower ones have below it
}

// mergeInode is what one or more names refer to.
type mergeInode struct {
	sec   int64
	size  int64  // regular: bytes
	data  uint64 // regular: position in the layer or, sparse, first of pieces; symlink: string; device: rdev
	mode  uint32 // with the type
	uid   uint32
	gid   uint32
	nsec  uint32
	count uint32 // sparse: how many pieces
	layer uint32 // that has the data, from 0 on
	xattr uint32 // set; 0: none
	names uint32 // how many nodes refer to it
	// sparse says that data and count mean pieces.
	sparse bool
	// implicit says that no entry described the directory yet.
	implicit bool
}

const rootNode = 1

// newMerger gives the tree of no layers: a root of mode 0755, owner 0:0, time 0.
func newMerger(keepDirlinks bool) *merger {
	m := &merger{keepDirlinks: keepDirlinks, nodes: make([]mergeNode, 2), inodes: make([]mergeInode, 2)}
	m.names.init()
	m.children.init()
	m.xattrs.init()
	m.nodes[rootNode] = mergeNode{parent: rootNode, inode: 1}
	m.inodes[1] = mergeInode{mode: implicitDirMode, names: 1}
	return m
}

// implicitDirMode is what a directory gets that no entry describes; its owner is
// 0:0 and its time 0, so that trees are reproducible (umoci takes the caller's
// umask and the time of day).
const implicitDirMode = unix.S_IFDIR | 0o755

// maxMerge bounds nodes, inodes and strings: 32-bit indices, some of them kept
// for marks, and numbers below InoLimit.
const maxMerge = 1<<30 - 16

// apply lays one more layer over the tree. name is for messages. After an error
// the tree is of no use.
func (m *merger) apply(ctx context.Context, name string, t *toc) error {
	m.layer++
	m.lastNode = 0
	m.nodes = slices.Grow(m.nodes, int(min(t.n, maxMerge)))
	m.inodes = slices.Grow(m.inodes, int(min(t.n, maxMerge)))
	var e tocEntry
	c := t.cursor()
	for i := 0; ; i++ {
		if i%1024 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		ok, err := c.next(&e)
		if err != nil {
			return fmt.Errorf("table of contents of layer %s: %w", name, err)
		}
		if !ok {
			return nil
		}
		if err := m.entry(&e); err != nil {
			return fmt.Errorf("layer %s: tar entry %.200q: %w", name, e.path, err)
		}
	}
}

func (m *merger) entry(e *tocEntry) error {
	if len(m.nodes) >= maxMerge-maxPath || len(m.inodes) >= maxMerge || len(m.names.ends) >= maxMerge-maxPath {
		return fmt.Errorf("%w: too many entries", ErrFormat)
	}
	if err := m.checkBudget(); err != nil {
		return err
	}
	switch e.kind {
	case kindWhiteout:
		return m.whiteout(e.path)
	case kindOpaque:
		return m.opaque(e.path)
	}
	if len(e.path) == 0 {
		return m.root(e)
	}
	dirPath, name := splitLast(e.path)
	if !plainName(name) {
		return ErrCorrupt
	}
	dir, err := m.dir(dirPath)
	if err != nil {
		return err
	}
	id, err := m.names.intern(name)
	if err != nil {
		return err
	}
	node := m.children.find(m, dir, id)
	if node != 0 && e.kind == kindDir {
		if done, err := m.dirOver(node, e); done || err != nil {
			return err
		}
	}
	// What was there goes first, as when extracting: a hard link to itself, or to
	// something in the directory it replaces, has no target any more.
	if node != 0 {
		m.vacate(node)
	}
	inode, err := m.entryInode(e)
	if err != nil {
		return err
	}
	if node == 0 {
		node = m.newNode(dir, id)
	}
	m.nodes[node].inode = inode
	m.inodes[inode].names++
	m.touch(node)
	return nil
}

// plainName reports whether name can be one path component. scanTar gives no
// other; a table of contents from a damaged cache might.
func plainName(name []byte) bool {
	return len(name) > 0 && len(name) <= maxName && string(name) != "." && string(name) != ".."
}

// root applies an entry for the root directory.
func (m *merger) root(e *tocEntry) error {
	if e.kind != kindDir {
		return fmt.Errorf("%w: the root must be a directory", ErrFormat)
	}
	m.touch(rootNode)
	return m.setMeta(m.nodes[rootNode].inode, e)
}

// dirOver applies a directory entry to a name that exists: a directory keeps its
// children and takes the metadata. With keepDirlinks a symlink that leads to a
// directory stays too; the owner, times and xattrs land on the symlink itself,
// as umoci applies them without following.
func (m *merger) dirOver(node uint32, e *tocEntry) (bool, error) {
	inode := m.nodes[node].inode
	switch m.inodes[inode].mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFLNK:
		if !m.keepDirlinks || !m.leadsToDir(node) {
			return false, nil
		}
	default:
		return false, nil
	}
	m.touch(node)
	return true, m.setMeta(inode, e)
}

// entryInode is the inode that an entry's name is to refer to.
func (m *merger) entryInode(e *tocEntry) (uint32, error) {
	if e.kind == kindHardlink {
		return m.linkTarget(e.link)
	}
	n := mergeInode{mode: typeBits(e.kind), layer: m.layer - 1}
	switch e.kind {
	case kindRegular:
		n.size, n.data = e.size, uint64(e.pos)
		if e.sparse {
			n.sparse, n.data, n.count = true, uint64(len(m.pieces)), uint32(len(e.pieces))
			m.pieces = append(m.pieces, e.pieces...)
		}
	case kindSymlink:
		target, err := m.names.intern(e.link)
		if err != nil {
			return 0, err
		}
		n.data, n.size = uint64(target), int64(len(e.link))
	case kindChar, kindBlock:
		n.data = e.rdev
	}
	inode := m.newInode(n)
	return inode, m.setMeta(inode, e)
}

func typeBits(k entryKind) uint32 {
	switch k {
	case kindDir:
		return unix.S_IFDIR
	case kindSymlink:
		return unix.S_IFLNK
	case kindChar:
		return unix.S_IFCHR
	case kindBlock:
		return unix.S_IFBLK
	case kindFifo:
		return unix.S_IFIFO
	}
	return unix.S_IFREG
}

// setMeta gives an inode an entry's mode, owner, time and xattrs. A symlink's
// mode is always 0777 on Linux.
func (m *merger) setMeta(inode uint32, e *tocEntry) error {
	set, err := m.xattrs.intern(&m.names, e.xattrs)
	if err != nil {
		return err
	}
	n := &m.inodes[inode]
	if n.implicit {
		n.implicit = false
		m.budget.implicit--
	}
	mode := e.mode & 0o7777
	if n.mode&unix.S_IFMT == unix.S_IFLNK {
		mode = 0o777
	}
	n.mode = n.mode&unix.S_IFMT | mode
	n.uid, n.gid = e.uid, e.gid
	n.sec, n.nsec = e.mtime.Sec, e.mtime.Nsec
	n.xattr = set
	return nil
}

// linkTarget finds what a hard link refers to: scoped like every path, the last
// component not followed.
func (m *merger) linkTarget(link []byte) (uint32, error) {
	dirPath, name := splitLast(link)
	var node uint32
	if len(link) > 0 {
		dir, err := m.findDir(dirPath)
		if err != nil {
			return 0, fmt.Errorf("hard link to %.200q: %w", link, err)
		}
		if id, ok := m.names.lookup(name); ok && dir != 0 {
			node = m.children.find(m, dir, id)
		}
		// A name without an inode is the link's own, just vacated.
		if node == 0 || m.nodes[node].inode == 0 {
			return 0, fmt.Errorf("%w: hard link to %.200q, which does not exist", ErrFormat, link)
		}
	}
	inode := m.nodes[node].inode
	if len(link) == 0 || m.inodes[inode].mode&unix.S_IFMT == unix.S_IFDIR {
		return 0, fmt.Errorf("%w: hard link to %.200q, a directory", ErrFormat, link)
	}
	return inode, nil
}

// touch marks node and all above it as named by this layer. Where a node is
// marked those above it are too.
func (m *merger) touch(node uint32) {
	for m.nodes[node].touched != m.layer {
		m.nodes[node].touched = m.layer
		node = m.nodes[node].parent
	}
}
