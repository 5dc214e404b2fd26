package layer

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// spanCache bounds the memory of decoded spans. One is shared by all blobs of an
// image. Spans are given up in the order of a clock: one that was read since the
// hand passed last is left in place. Spans in use are never given up, so the bound
// can be passed by as many spans as there are readers at once.
type spanCache struct {
	maxBytes int64
	ahead    chan struct{} // one token a span being decoded ahead of its reader
	disk     *spanDisk     // nil: nothing is kept on disk

	mu    sync.Mutex // leaf
	bytes int64      // protected by mu: of the buffers in ring and free
	ring  []*spanEntry
	hand  int      // protected by mu: index in ring
	free  [][]byte // protected by mu: buffers to be used again, at most maxFree
}

const (
	// maxFree is how many buffers wait to be used again.
	maxFree = 2
	// bufferStep is the grain of the buffers' sizes, in bytes.
	bufferStep = 64 << 10
)

// newSpanCache bounds the memory of decoded spans to about maxBytes. The bound
// cannot be less than what is being read.
func newSpanCache(maxBytes int64) *spanCache {
	return &spanCache{maxBytes: maxBytes, ahead: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
}

// spanEntry is one span of a blob, decoded up to done.
type spanEntry struct {
	blob  *spanBlob
	index int
	out   int64 // where the span begins in the plain stream
	size  int   // plain bytes

	refs   atomic.Int32 // users, and one for the slot; 0: dead
	hot    atomic.Bool  // read since the hand passed
	served atomic.Int64 // bytes given to readers
	next   atomic.Bool  // the span behind this one was asked for

	// done is how many plain bytes can be read at buf[head:]. They never change, and
	// buf and head are set before done is first more than 0.
	done atomic.Int64
	buf  []byte // in the cache's care once it is set
	head int    // bytes before the span's first: the window, if any

	mu    sync.Mutex // one decodes, the others wait; taken before spanCache.mu
	state []byte     // protected by mu: resume state behind done; nil: at the span's start
	bit   int64      // protected by mu: position of the state in the file, in bits
}

// acquire gets span i for use; release must follow.
func (b *spanBlob) acquire(i int) *spanEntry {
	slot := &b.slots[i]
	for {
		e := slot.Load()
		if e == nil {
			out := b.ix.spanOut(i)
			e = &spanEntry{blob: b, index: i, out: out, size: int(b.ix.spanOut(i+1) - out)}
			e.refs.Store(2)
			if slot.CompareAndSwap(nil, e) {
				return e
			}
			continue
		}
		if e.addRef() {
			return e
		}
		slot.CompareAndSwap(e, nil) // dead: whoever ended it does the same
	}
}

// addRef counts one more user, unless the entry is dead.
func (e *spanEntry) addRef() bool {
	for {
		n := e.refs.Load()
		if n == 0 {
			return false
		}
		if e.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// alignedBuf is the span's memory and what is behind it up to a multiple of keptAlign.
// Memory of that size lies at a multiple of a page, a window is four, and buffers are
// larger than that by bufferStep's grain.
func (e *spanEntry) alignedBuf() []byte { return e.buf[e.head:][:aligned(int64(e.size))] }

// release ends a use.
func (e *spanEntry) release() { e.refs.Add(-1) }

// alloc gives e a buffer of size bytes or more and takes e into the cache.
// Preconditions: e.mu is held, e is in use and has no buffer.
func (c *spanCache) alloc(e *spanEntry, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	size = (size + bufferStep - 1) / bufferStep * bufferStep
	c.shrinkLocked(c.maxBytes - int64(size))
	for i, buf := range c.free {
		if cap(buf) >= size && cap(buf) <= 2*size {
			c.free[i] = c.free[len(c.free)-1]
			c.free = c.free[:len(c.free)-1]
			e.buf = buf[:cap(buf)]
			break
		}
	}
	if e.buf == nil {
		e.buf = make([]byte, size)
		c.bytes += int64(size)
	}
	c.ring = append(c.ring, e)
	// A free buffer that did not fit must not stand in for one that would.
	for len(c.free) > 0 && c.bytes > c.maxBytes {
		c.bytes -= int64(cap(c.free[len(c.free)-1]))
		c.free = c.free[:len(c.free)-1]
	}
}

// shrinkLocked gives spans up until the spans in the ring have limit bytes or
// less, or all that are left are in use.
//
// Preconditions: c.mu is held.
func (c *spanCache) shrinkLocked(limit int64) {
	kept := c.bytes
	for _, buf := range c.free {
		kept -= int64(cap(buf))
	}
	for steps := 2 * len(c.ring); steps > 0 && kept > limit && len(c.ring) > 0; steps-- {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		e := c.ring[c.hand]
		if e.hot.Swap(false) || !e.refs.CompareAndSwap(1, 0) {
			c.hand++
			continue
		}
		kept -= int64(cap(e.buf))
		c.dropLocked(c.hand)
	}
}

// dropLocked takes the dead entry at i of the ring out of the cache.
//
// Preconditions: c.mu is held.
func (c *spanCache) dropLocked(i int) {
	e := c.ring[i]
	e.blob.slots[e.index].CompareAndSwap(e, nil)
	c.ring[i] = c.ring[len(c.ring)-1]
	c.ring[len(c.ring)-1] = nil
	c.ring = c.ring[:len(c.ring)-1]
	if len(c.free) < maxFree {
		c.free = append(c.free, e.buf)
	} else {
		c.bytes -= int64(cap(e.buf))
	}
	e.buf = nil
}

// forget drops all spans of a blob that nobody uses any more.
func (c *spanCache) forget(b *spanBlob) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.ring) - 1; i >= 0; i-- {
		if e := c.ring[i]; e.blob == b && e.refs.CompareAndSwap(1, 0) {
			c.dropLocked(i)
		}
	}
}
