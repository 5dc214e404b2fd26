package layer

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// maxSymlinks is how many symlinks one path may lead through, as in
	// filepath-securejoin.
	maxSymlinks = 255
	// maxSteps bounds the components that one path is resolved through, so that a
	// small hostile layer cannot keep the merge busy: each of 255 symlinks may
	// bring 2048. A path itself has as many at most.
	maxSteps = 8 << 10
)

// walker is the scratch memory of a path resolution.
type walker struct {
	todo    [][]byte // paths still to be walked, the innermost last
	missing []uint32 // names below the last directory that exists
}

// dir is the directory at a cleaned path, symlinks followed but scoped in the
// root. What is missing is made, what is no directory is replaced by one.
func (m *merger) dir(path []byte) (uint32, error) {
	if m.lastNode != 0 && string(path) == string(m.lastDir) {
		return m.lastNode, nil
	}
	node, err := m.resolve(path)
	if err != nil {
		return 0, err
	}
	for _, name := range m.walk.missing {
		child := m.children.find(m, node, name)
		if child != 0 {
			m.remove(child)
		}
		node = m.newDir(node, name)
	}
	m.lastDir, m.lastNode = append(m.lastDir[:0], path...), node
	return node, nil
}

// findDir is the directory at a cleaned path, symlinks followed but scoped in
// the root; 0 where there is none.
func (m *merger) findDir(path []byte) (uint32, error) {
	if m.lastNode != 0 && string(path) == string(m.lastDir) {
		return m.lastNode, nil
	}
	node, err := m.resolve(path)
	if err != nil || len(m.walk.missing) > 0 {
		return 0, err
	}
	return node, nil
}

// leadsToDir reports whether a symlink leads to a directory. A loop does not.
func (m *merger) leadsToDir(link uint32) bool {
	target := m.names.get(uint32(m.inodes[m.nodes[link].inode].data))
	node, err := m.resolveFrom(m.nodes[link].parent, target)
	return err == nil && node != 0 && len(m.walk.missing) == 0
}

func (m *merger) resolve(path []byte) (uint32, error) { return m.resolveFrom(rootNode, path) }

// resolveFrom walks path from directory node as filepath-securejoin's
// SecureJoinVFS does: ".." stops at the root, an absolute symlink begins at the
// root, and what lies below a missing name or below a file is taken lexically.
// It gives the last directory that exists and leaves what is missing below it in
// m.walk.missing.
func (m *merger) resolveFrom(node uint32, path []byte) (uint32, error) {
	w := &m.walk
	w.todo, w.missing = append(w.todo[:0], path), w.missing[:0]
	links := 0
	if len(path) > 0 && path[0] == '/' {
		node = rootNode
	}
	for steps := 0; len(w.todo) > 0; steps++ {
		last := len(w.todo) - 1
		if len(w.todo[last]) == 0 {
			w.todo = w.todo[:last]
			continue
		}
		if steps > maxSteps {
			return 0, fmt.Errorf("%w: path leads through more than %d components", ErrFormat, maxSteps)
		}
		var part []byte
		part, w.todo[last] = cutComponent(w.todo[last])
		switch {
		case len(part) == 0 || string(part) == ".":
			continue
		case string(part) == "..":
			if k := len(w.missing); k > 0 {
				w.missing = w.missing[:k-1]
			} else {
				node = m.nodes[node].parent
			}
			continue
		case len(part) > maxName:
			return 0, fmt.Errorf("%w: %w", ErrFormat, errNameTooLong)
		}
		id, err := m.names.intern(part)
		if err != nil {
			return 0, err
		}
		if len(w.missing) > 0 {
			w.missing = append(w.missing, id)
			continue
		}
		child := m.children.find(m, node, id)
		switch {
		case child == 0:
			w.missing = append(w.missing, id)
		case m.isDir(child):
			node = child
		case m.mode(child) == unix.S_IFLNK:
			if links++; links > maxSymlinks {
				return 0, fmt.Errorf("%w: path leads through more than %d symbolic links", ErrFormat, maxSymlinks)
			}
			target := m.names.get(uint32(m.inodes[m.nodes[child].inode].data))
			if len(target) > 0 && target[0] == '/' {
				node = rootNode
			}
			m.budget.followed += len(target)
			w.todo = append(w.todo, target)
		default:
			w.missing = append(w.missing, id)
		}
	}
	return node, nil
}
