package overlay

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// node is an object that is more than its row in the lower tree: it has an upper
// object, is open, was unlinked, or is the directory of such a one.
type node struct {
	ino   Ino    // immutable
	typ   uint32 // immutable; S_IFMT bits of the view
	lower Ino    // immutable; directories: what merges below; else: whose copy it is; 0: none

	upper    atomic.Bool              // has an object in the upper; set once, under mu
	metacopy atomic.Bool              // the upper file's data is still the lower's; cleared under dataMu
	file     atomic.Pointer[openFile] // the upper file while it is open; set under mu

	removed atomic.Bool // a directory that no name leads to any more; set once

	dataMu sync.Mutex // serialises what moves data from the lower to the upper
	copyMu sync.Mutex // serialises copy-up of metadata

	mu      sync.Mutex
	parent  *node         // a directory it is in; of directories written under treeMu.W only; else protected by mu
	name    string        // its name there; likewise
	anchor  int           // protected by mu; descriptor, at least O_PATH, that outlives the name, or -1
	parked  string        // protected by mu; name in work/ of what has no other, in place of an anchor; or ""
	keep    int           // protected by mu; descriptor of an inode that was replaced but whose number is in use, or -1
	orphan  bool          // protected by mu; no name leads here any more
	over    *overrideStat // protected by mu; a plain user's upper: what the inode cannot store
	subdirs int           // protected by mu; directories: of the merged view; -1: not counted yet
	inherit *inheritance  // protected by mu; directories: what new objects take from it; nil: not read yet
	ctime   keptCtime     // protected by mu; directories
	taken   takenHashes   // protected by mu; directories
	opens   int           // protected by mu; handles, and who has called holdFile
	noCaps  bool          // protected by mu; the upper object has no security.capability, for certain
	filling *kept         // protected by mu; set and cleared under dataMu too; nil: no data is being moved, nor was at a crash

	lookups  int64      // protected by table.mu; references the kernel holds, as far as counted
	refs     int        // protected by table.mu; nodes whose parent it is, and handles
	presumed bool       // protected by table.mu; one of lookups is not counted: the kernel may have it
	nameless bool       // protected by table.mu; no name leads here any more, so that no more lookups come
	other    *otherName // protected by table.mu; files: may lead to it too; nil: none known
	pinned   bool       // protected by table.mu; cannot be found again from the lower tree
	upperIno uint64     // protected by table.mu; its key in table.uppers; 0: none

	dfd *dirFD // protected by dirFDs.mu
}

// otherName is a name that a file had besides its node's. It may be gone, or something else's.
type otherName struct {
	dir  *node // referenced
	name string
}

// inheritance is what a directory gives to objects made in it.
type inheritance struct {
	setgid     bool
	gid        uint32 // in the image's ids
	defaultACL []byte // nil: none
}

func newNode(ino Ino, typ uint32, lower Ino) *node {
	return &node{ino: ino, typ: typ, lower: lower, anchor: -1, keep: -1, subdirs: -1}
}

func (n *node) isDir() bool { return n.typ == unix.S_IFDIR }

// place is where a node's upper object can be reached, while it is held.
type place struct {
	at
	d *dirFD
}

// placeLocked finds the upper object of a node. Preconditions: treeMu and n.mu are
// held; n has an upper object. The caller calls fs.put.
func (fs *FS) placeLocked(n *node) (place, error) {
	switch {
	case n.anchor >= 0:
		return place{at: at{n.anchor, ""}}, nil
	case n.parked != "":
		return place{at: at{fs.upper.work, n.parked}}, nil
	case n == fs.root:
		return place{at: at{fs.upper.root, ""}}, nil
	}
	d, err := fs.dirFD(n.parent)
	if err != nil {
		return place{}, err
	}
	return place{at{d.fd, n.name}, d}, nil
}

// reachLocked is placeLocked, through the open file where there is one: that needs no
// walk. Preconditions: as for placeLocked.
func (fs *FS) reachLocked(n *node) (place, error) {
	if f := n.file.Load(); f != nil {
		return place{at: at{f.fd, ""}}, nil
	}
	return fs.placeLocked(n)
}

func (fs *FS) put(p place) {
	if p.d != nil {
		fs.dirFDs.release(p.d)
	}
}

// letGoLocked undoes what keeps the node's upper object. Preconditions: n.mu is held, or
// nothing else uses n.
func (fs *FS) letGoLocked(n *node) {
	fs.unholdLocked(n)
	if n.keep >= 0 {
		_ = unix.Close(n.keep)
		n.keep = -1
	}
}

// heldLocked reports whether the node needs no name. Preconditions: n.mu is held.
func (n *node) heldLocked() bool { return n.anchor >= 0 || n.parked != "" }

// holdLocked gives the node a descriptor of its own before a name of it goes, so that
// it can still be reached, and so that the upper's inode number is not given to
// another object while the kernel knows it. Where there are many, a file whose last name it
// is gets one in work/ instead: the caller calls unparkLocked if it then keeps the other.
// Preconditions: treeMu and n.mu held.
func (fs *FS) holdLocked(n *node, last bool) error {
	if n.heldLocked() || !n.upper.Load() || last && fs.crowded() && fs.parkLocked(n) {
		return nil
	}
	fd, err := fs.openAnchorLocked(n)
	if err == nil {
		fs.anchorLocked(n, fd)
	}
	return err
}

// unholdLocked undoes holdLocked. Preconditions: n.mu is held, or nothing else uses n.
func (fs *FS) unholdLocked(n *node) {
	fs.unparkLocked(n)
	if n.anchor >= 0 {
		_ = unix.Close(n.anchor)
		n.anchor = -1
		fs.anchors.Add(-1)
	}
}

// crowded reports whether nodes have as many descriptors as do no harm. More of them would
// leave too few to work with, and programs can have any number of files with no name.
func (fs *FS) crowded() bool { return fs.anchors.Load() >= fs.maxAnchors }

func (fs *FS) anchorLocked(n *node, fd int) {
	n.anchor = fd
	fs.anchors.Add(1)
}

// parkLocked gives a file a name in work/, and reports whether it could. Preconditions: as
// for holdLocked.
func (fs *FS) parkLocked(n *node) bool {
	p, err := fs.placeLocked(n)
	if err != nil {
		return false
	}
	defer fs.put(p)
	name := fs.upper.stageName()
	if fs.upper.link(p.at, at{fs.upper.work, name}) != nil {
		return false
	}
	n.parked = name
	return true
}

// unparkLocked removes the name in work/, where there is one. Preconditions: as for
// unholdLocked.
func (fs *FS) unparkLocked(n *node) {
	if n.parked != "" {
		fs.upper.discard(n.parked)
		n.parked = ""
	}
}

// moveToOtherLocked records another name of a file than the one it is reached by, where one
// is known: a descriptor for each file that loses a name and keeps others would be many.
// Preconditions: as for holdLocked.
func (fs *FS) moveToOtherLocked(n *node) bool {
	if other := fs.table.takeOther(n); other != nil {
		defer fs.table.unrefLater(other.dir)
		if fs.moveIfThereLocked(n, other.dir, other.name) {
			return true
		}
	}
	if n.lower == 0 {
		return false
	}
	for ino, name := range fs.lower.Names(n.lower) {
		// A directory that has no node is not looked for: that takes locks.
		if dir := fs.table.getRef(ino); dir != nil {
			defer fs.table.unrefLater(dir)
			if fs.moveIfThereLocked(n, dir, name) {
				return true
			}
		}
	}
	return false
}

// moveIfThereLocked is moveToOtherLocked for one name, of a referenced directory.
func (fs *FS) moveIfThereLocked(n, dir *node, name string) bool {
	if !dir.isDir() || !dir.upper.Load() || dir.removed.Load() || dir == n.parent && name == n.name {
		return false
	}
	p, err := fs.dirPlace(dir, name)
	if err != nil {
		return false
	}
	defer fs.put(p)
	home, err := fs.placeLocked(n)
	if err != nil {
		return false
	}
	defer fs.put(home)
	var is, want unix.Statx_t
	if fs.upper.stat(p.at, &is) != nil || fs.upper.stat(home.at, &want) != nil || is.Ino != want.Ino {
		return false
	}
	fs.moveLocked(n, dir, name)
	return true
}

// openAnchorLocked is another descriptor of the upper object. Preconditions: as for
// holdLocked.
func (fs *FS) openAnchorLocked(n *node) (int, error) {
	if f := n.file.Load(); f != nil {
		fd, err := unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, 0)
		return fd, pathError("dup", at{}, err)
	}
	p, err := fs.placeLocked(n)
	if err != nil {
		return -1, err
	}
	defer fs.put(p)
	return fs.upper.open(p.at, unix.O_PATH)
}
