package overlay

import (
	"container/list"
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// dirFD is an open upper directory (O_PATH).
type dirFD struct {
	n    *node
	fd   int           // immutable
	refs int           // protected by dirFDs.mu
	elem *list.Element // protected by dirFDs.mu; nil once it is out of the cache
}

// dirFDs keeps the descriptors of the upper directories used last, so that a
// mount's descriptors are bounded and a deep path is not walked at each change.
type dirFDs struct {
	mu    sync.Mutex
	max   int       // immutable; more are kept only while in use
	lru   list.List // protected by mu; front: used last
	fixed *dirFD    // protected by mu; the root's, never closed here
}

// dirFD opens the upper directory of n. Preconditions: treeMu is held; n is a
// directory in the upper.
func (fs *FS) dirFD(n *node) (*dirFD, error) {
	c := &fs.dirFDs
	c.mu.Lock()
	if n == fs.root {
		if c.fixed == nil {
			c.fixed = &dirFD{n: n, fd: fs.upper.root}
		}
		c.fixed.refs++
		c.mu.Unlock()
		return c.fixed, nil
	}
	if d := n.dfd; d != nil {
		d.refs++
		c.lru.MoveToFront(d.elem)
		c.mu.Unlock()
		return d, nil
	}
	c.mu.Unlock()

	up, err := fs.dirFD(n.parent)
	if err != nil {
		return nil, err
	}
	fd, err := fs.upper.open(at{up.fd, n.name}, unix.O_PATH|unix.O_DIRECTORY)
	c.release(up)
	if err != nil {
		return nil, err
	}
	return c.insert(n, fd), nil
}

// insert caches fd for n, unless another was faster, and closes what is over the
// limit.
func (c *dirFDs) insert(n *node, fd int) *dirFD {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := n.dfd; d != nil {
		_ = unix.Close(fd)
		d.refs++
		return d
	}
	d := &dirFD{n: n, fd: fd, refs: 1}
	d.elem = c.lru.PushFront(d)
	n.dfd = d
	for e := c.lru.Back(); e != nil && c.lru.Len() > c.max; {
		prev := e.Prev()
		if old := e.Value.(*dirFD); old.refs == 0 { //nolint:forcetypeassert // only *dirFD goes in
			c.removeLocked(old)
			_ = unix.Close(old.fd)
		}
		e = prev
	}
	return d
}

// removeLocked takes d out of the cache. Preconditions: c.mu is held.
func (c *dirFDs) removeLocked(d *dirFD) {
	c.lru.Remove(d.elem)
	d.elem = nil
	d.n.dfd = nil
}

func (c *dirFDs) release(d *dirFD) {
	c.mu.Lock()
	d.refs--
	last := d.refs == 0 && d.elem == nil && d != c.fixed
	c.mu.Unlock()
	if last {
		_ = unix.Close(d.fd)
	}
}

// drop forgets the descriptor of a node that is no more.
func (c *dirFDs) drop(n *node) {
	c.mu.Lock()
	d := n.dfd
	if d == nil {
		c.mu.Unlock()
		return
	}
	c.removeLocked(d)
	unused := d.refs == 0
	c.mu.Unlock()
	if unused {
		_ = unix.Close(d.fd)
	}
}

func (c *dirFDs) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for e := c.lru.Front(); e != nil; e = e.Next() {
		errs = append(errs, unix.Close(e.Value.(*dirFD).fd)) //nolint:forcetypeassert // only *dirFD goes in
	}
	c.lru.Init()
	return errors.Join(errs...)
}
