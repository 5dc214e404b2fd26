package overlay

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// table holds the nodes by number. A lower object that has no node and is not in
// touched is as the lower tree says.
type table struct {
	mu      sync.RWMutex
	nodes   map[Ino]*node    // protected by mu
	touched map[Ino]struct{} // protected by mu; lower inodes that have an upper object
	filled  map[Ino]struct{} // protected by mu; those that got their data in this mount, until they are synced
	idle    []*node          // protected by mu; may be dropped, see unrefLater
	uppers  map[uint64]*node // protected by mu; by the upper's st_ino, which is in use as long as the node is here
}

func (t *table) init() {
	t.nodes = map[Ino]*node{}
	t.touched = map[Ino]struct{}{}
	t.filled = map[Ino]struct{}{}
	t.uppers = map[uint64]*node{}
}

// get is the node of ino, or nil; touched says whether the lower tree's word on
// ino no longer holds.
func (t *table) get(ino Ino) (n *node, touched bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n = t.nodes[ino]
	if n == nil {
		_, touched = t.touched[ino]
	}
	return n, touched
}

// add enters n, or finds the node that already has its number. ref counts one
// reference of the kernel. A new node starts with one in any case: the kernel
// knows what it names in a request, since before there was a node to count it in.
func (t *table) add(n *node, ref bool) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	if have := t.nodes[n.ino]; have != nil {
		if ref {
			have.lookups++
		}
		return have
	}
	t.nodes[n.ino] = n
	if n.upperIno != 0 {
		t.uppers[n.upperIno] = n
	}
	n.lookups, n.presumed = 1, !ref
	if n.parent != nil {
		n.parent.refs++
	}
	return n
}

// touch records that a lower inode has an upper object.
func (t *table) touch(n *node) {
	if n.lower == 0 || n.ino != n.lower {
		return
	}
	t.mu.Lock()
	t.touched[n.ino] = struct{}{}
	t.mu.Unlock()
}

// fill records that an inode got its data in the upper. The node may go before that is
// on the disk.
func (t *table) fill(ino Ino) {
	t.mu.Lock()
	t.filled[ino] = struct{}{}
	t.mu.Unlock()
}

// isFilled reports whether an inode got its data and was not synced since.
func (t *table) isFilled(ino Ino) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	_, filled := t.filled[ino]
	return filled
}

// synced ends what fill records. An inode gets its data once: none is filled again.
func (t *table) synced(ino Ino) {
	t.mu.Lock()
	delete(t.filled, ino)
	t.mu.Unlock()
}

// setUpper records a node's upper inode number. With it a name is known again
// with no look at its attributes, and a copy that could not record its lower inode
// is still that inode for this mount.
func (t *table) setUpper(n *node, stIno uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.nodes[n.ino] != n || n.upperIno == stIno {
		return
	}
	if t.uppers[n.upperIno] == n {
		delete(t.uppers, n.upperIno)
	}
	n.upperIno = stIno
	t.uppers[stIno] = n
}

// unsetUpper undoes setUpper: the number is another object's next.
func (t *table) unsetUpper(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.uppers[n.upperIno] == n {
		delete(t.uppers, n.upperIno)
	}
	n.upperIno = 0
}

// byUpper is the node whose upper object has a number, or nil; ref counts a
// reference of the kernel.
func (t *table) byUpper(stIno uint64, ref bool) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.uppers[stIno]
	if n != nil && ref {
		n.lookups++
	}
	return n
}

// refLookup counts a reference of the kernel to a node.
func (t *table) refLookup(n *node) {
	t.mu.Lock()
	n.lookups++
	t.mu.Unlock()
}

// unrefLookup takes a counted reference back.
func (t *table) unrefLookup(n *node) {
	t.mu.Lock()
	n.lookups--
	t.mu.Unlock()
}

// refLower counts a reference to a lower object, where it has a node.
func (t *table) refLower(ino Ino) {
	t.mu.Lock()
	if n := t.nodes[ino]; n != nil {
		n.lookups++
	}
	t.mu.Unlock()
}

// ref keeps a node in the table until unref.
func (t *table) ref(n *node) {
	t.mu.Lock()
	n.refs++
	t.mu.Unlock()
}

// getRef is the node of ino, referenced, or nil.
func (t *table) getRef(ino Ino) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[ino]
	if n != nil {
		n.refs++
	}
	return n
}

// setOther records a name that leads to n besides its own.
func (t *table) setOther(n, dir *node, name string) {
	if was := t.takeOther(n); was != nil {
		t.unrefLater(was.dir)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	dir.refs++
	n.other = &otherName{dir, name}
}

// takeOther forgets that name, and returns it with its reference to the directory, or nil.
func (t *table) takeOther(n *node) *otherName {
	t.mu.Lock()
	defer t.mu.Unlock()
	other := n.other
	n.other = nil
	return other
}

// unrefLater is FS.unref where locks of nodes are held: the next Forget lets go of what
// nothing needs.
func (t *table) unrefLater(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unrefLaterLocked(n)
}

// unrefLaterLocked is unrefLater. Preconditions: t.mu is held for writing.
func (t *table) unrefLaterLocked(n *node) {
	n.refs--
	if n.refs <= 0 && n.lookups <= 0 {
		t.idle = append(t.idle, n)
	}
}

// pin keeps a node in the table as long as it has a name: it is not where the lower tree
// would lead to it.
func (t *table) pin(n *node) {
	t.mu.Lock()
	n.pinned = true
	t.mu.Unlock()
}

// reparent moves the count that a node's parent holds for it.
func (t *table) reparent(from, to *node) {
	t.mu.Lock()
	if from != nil {
		t.unrefLaterLocked(from)
	}
	to.refs++
	t.mu.Unlock()
}

// dropLocked takes nodes that nothing needs out of the table, upwards from n, and
// returns them. Preconditions: t.mu is held for writing.
func (t *table) dropLocked(n *node, gone []*node) []*node {
	for n != nil && n.lookups <= 0 && n.refs <= 0 && (!n.pinned || n.nameless) && t.nodes[n.ino] == n {
		delete(t.nodes, n.ino)
		if t.uppers[n.upperIno] == n {
			delete(t.uppers, n.upperIno)
		}
		gone = append(gone, n)
		if n.other != nil {
			n.other.dir.refs--
			gone = t.dropLocked(n.other.dir, gone)
		}
		if n = n.parent; n != nil {
			n.refs--
		}
	}
	return gone
}

// unref undoes ref.
func (fs *FS) unref(n *node) {
	fs.table.mu.Lock()
	n.refs--
	gone := fs.table.dropLocked(n, nil)
	fs.table.mu.Unlock()
	fs.dispose(gone)
}

// orphaned notes that no name leads to a node any more. The kernel knows it, having named
// it just now: its Forget lets the node go.
func (fs *FS) orphaned(n *node) {
	fs.table.mu.Lock()
	n.nameless = true
	n.lookups = max(1, n.lookups)
	fs.table.mu.Unlock()
}

// dispose lets go of what dropped nodes held.
func (fs *FS) dispose(gone []*node) {
	for _, n := range gone {
		n.mu.Lock()
		fs.letGoLocked(n)
		n.mu.Unlock()
		fs.dirFDs.drop(n)
	}
}

// Forget takes back n references of the kernel. Numbers it does not know are
// those of objects that are lower alone.
func (fs *FS) Forget(ino Ino, n uint64) {
	if fs.forget(ino, n, false) && (fs.known == nil || !fs.known(ino)) {
		fs.forget(ino, 0, true)
	}
}

// forget is Forget, but for the last reference to an object that no name leads to, and of
// which not all are counted: it goes when that is certain, and is in doubt till then. A
// Forget of references from before the node can come late. What the lower tree still has is
// found again.
func (fs *FS) forget(ino Ino, n uint64, certain bool) (doubt bool) {
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	fs.table.mu.RLock()
	known := fs.table.nodes[ino] != nil
	fs.table.mu.RUnlock()
	if !known {
		return false
	}
	fs.table.mu.Lock()
	var gone []*node
	for _, idle := range fs.table.idle {
		gone = fs.table.dropLocked(idle, gone)
	}
	fs.table.idle = nil
	if nd := fs.table.nodes[ino]; nd != nil {
		nd.lookups = max(0, nd.lookups-int64(min(n, 1<<62)))
		if nd.nameless && nd.upper.Load() && nd.lookups <= 1 && (nd.presumed || isLower(ino)) {
			doubt = !certain
			nd.lookups = 1
			if certain {
				nd.lookups = 0
			}
		}
		gone = fs.table.dropLocked(nd, gone)
	}
	fs.table.mu.Unlock()
	fs.dispose(gone)
	return doubt
}

// closeNodes empties the table.
func (fs *FS) closeNodes() error {
	t := &fs.table
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, n := range t.nodes {
		fs.letGoLocked(n)
		if f := n.file.Swap(nil); f != nil {
			errs = append(errs, unix.Close(f.fd))
		}
	}
	t.nodes = map[Ino]*node{}
	return errors.Join(errs...)
}
