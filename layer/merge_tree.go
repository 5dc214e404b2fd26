package layer

import "golang.org/x/sys/unix"

// newNode makes a name in dir that refers to no inode yet.
func (m *merger) newNode(dir, name uint32) uint32 {
	node := m.freeNodes
	if node != 0 {
		m.freeNodes = m.nodes[node].next
	} else {
		node = uint32(len(m.nodes))
		m.nodes = append(m.nodes, mergeNode{})
	}
	next := m.nodes[dir].child
	m.nodes[node] = mergeNode{parent: dir, name: name, next: next}
	if next != 0 {
		m.nodes[next].prev = node
	}
	m.nodes[dir].child = node
	m.children.insert(m, node)
	m.budget.nodes++
	return node
}

func (m *merger) newInode(n mergeInode) uint32 {
	inode := m.freeInodes
	if inode != 0 {
		m.freeInodes = uint32(m.inodes[inode].data)
		m.inodes[inode] = n
		return inode
	}
	m.inodes = append(m.inodes, n)
	return uint32(len(m.inodes) - 1)
}

// newDir makes a directory that no entry describes.
func (m *merger) newDir(dir, name uint32) uint32 {
	node := m.newNode(dir, name)
	m.nodes[node].inode = m.newInode(mergeInode{mode: implicitDirMode, names: 1, implicit: true})
	m.budget.implicit++
	return node
}

func (m *merger) mode(node uint32) uint32 { return m.inodes[m.nodes[node].inode].mode & unix.S_IFMT }

func (m *merger) isDir(node uint32) bool { return m.mode(node) == unix.S_IFDIR }

// vacate takes a name's inode away, and what is below it; the name stays, for
// another inode.
func (m *merger) vacate(node uint32) {
	if t := m.mode(node); t == unix.S_IFDIR || t == unix.S_IFLNK {
		m.lastNode = 0
	}
	m.clear(node)
	m.unref(m.nodes[node].inode)
	m.nodes[node].inode = 0
}

// unref takes one name from an inode.
func (m *merger) unref(inode uint32) {
	n := &m.inodes[inode]
	if n.names--; n.names == 0 {
		if n.implicit {
			m.budget.implicit--
		}
		*n = mergeInode{data: uint64(m.freeInodes)}
		m.freeInodes = inode
	}
}

// clear removes all that is below node.
func (m *merger) clear(node uint32) {
	for at := node; ; {
		if child := m.nodes[at].child; child != 0 {
			at = child
			continue
		}
		if at == node {
			return
		}
		parent := m.nodes[at].parent
		m.unref(m.nodes[at].inode)
		m.drop(at)
		at = parent
	}
}

// remove takes a name out of its directory, and all that is below it.
func (m *merger) remove(node uint32) {
	m.vacate(node)
	m.drop(node)
}

// drop unlinks a node without children from its directory and frees it.
func (m *merger) drop(node uint32) {
	m.children.remove(m, node)
	m.budget.nodes--
	n := m.nodes[node]
	if n.prev != 0 {
		m.nodes[n.prev].next = n.next
	} else {
		m.nodes[n.parent].child = n.next
	}
	if n.next != 0 {
		m.nodes[n.next].prev = n.prev
	}
	m.nodes[node] = mergeNode{next: m.freeNodes}
	m.freeNodes = node
}

// whiteout hides what the layers below have at path. What this layer put there,
// before or after in its stream, stays: a directory with something of this
// layer in it stays with that. Nothing there is fine.
func (m *merger) whiteout(path []byte) error {
	dirPath, name := splitLast(path)
	if !plainName(name) {
		return ErrCorrupt
	}
	dir, err := m.findDir(dirPath)
	if err != nil || dir == 0 {
		return err
	}
	id, ok := m.names.lookup(name)
	if !ok {
		return nil
	}
	if node := m.children.find(m, dir, id); node != 0 {
		m.hide(node)
	}
	return nil
}

// opaque hides all that the layers below have in the directory at path.
func (m *merger) opaque(path []byte) error {
	dir, err := m.findDir(path)
	if err != nil || dir == 0 {
		return err
	}
	m.hideChildren(dir)
	return nil
}

func (m *merger) hide(node uint32) {
	if m.nodes[node].touched != m.layer {
		m.remove(node)
		return
	}
	m.hideChildren(node)
}

// hideChildren removes all below top that this layer did not touch. It climbs by
// the parent links, so that depth costs no stack. What comes to be below a
// directory afterwards is this layer's: none is gone through twice.
func (m *merger) hideChildren(top uint32) {
	if m.nodes[top].hidden == m.layer {
		return
	}
	m.nodes[top].hidden = m.layer
	dir, at := top, m.nodes[top].child
	for {
		for at == 0 {
			if dir == top {
				return
			}
			at, dir = m.nodes[dir].next, m.nodes[dir].parent
		}
		if m.nodes[at].touched != m.layer {
			next := m.nodes[at].next
			m.remove(at)
			at = next
			continue
		}
		if m.nodes[at].hidden == m.layer {
			at = m.nodes[at].next
			continue
		}
		m.nodes[at].hidden = m.layer
		dir, at = at, m.nodes[at].child
	}
}
