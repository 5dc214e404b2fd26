package layer

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

// lazyBlob is a layer that is opened at the first read.
type lazyBlob struct {
	// ready is set once, when the layer was opened. Readers take no lock.
	ready atomic.Pointer[openedBlob]

	mu     sync.Mutex // one opens, the others wait; held across open
	opened bool       // protected by mu: open was called
	closed bool       // protected by mu
	err    error      // protected by mu: why it did not open, for ever
	// open gives the blob. Called once at most, with mu held.
	open func() (*openedBlob, error)
	// abandon gives up what open would have taken over. Called in place of it.
	abandon func() error
}

// openedBlob is a layer ready to be read.
type openedBlob struct {
	Blob
	release func() error // called after Blob is closed; may be nil
}

func (b *openedBlob) close() error {
	err := b.Close()
	if b.release != nil {
		err = errors.Join(err, b.release())
	}
	return err
}

var errClosed = errors.New("image is closed")

// get is the layer, opened.
func (b *lazyBlob) get() (*openedBlob, error) {
	if o := b.ready.Load(); o != nil {
		return o, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, errClosed
	}
	if !b.opened {
		b.opened = true
		var o *openedBlob
		if o, b.err = b.open(); b.err == nil {
			b.ready.Store(o)
		}
	}
	return b.ready.Load(), b.err
}

// readFull reads len(p) bytes at off of the plain stream. A stream that ends
// before is not the one the tree was made of.
func (b *lazyBlob) readFull(p []byte, off int64) (int, error) {
	o, err := b.get()
	if err != nil {
		return 0, err
	}
	n, err := o.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// isReady is the blob's Ready; a layer that is not open yet is not.
func (b *lazyBlob) isReady(off int64, n int) bool {
	o := b.ready.Load()
	return o != nil && o.Ready(off, n)
}

// direct is the blob's Direct.
func (b *lazyBlob) direct(off int64, n int) (fd int, fdOff int64, m int, ok bool) {
	o, err := b.get()
	if err != nil {
		return -1, 0, 0, false
	}
	return o.Direct(off, n)
}

// close closes the layer, opened or not; a second call does nothing.
func (b *lazyBlob) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	if o := b.ready.Swap(nil); o != nil {
		return o.close()
	}
	if b.opened {
		return nil // open failed and gave everything up
	}
	return b.abandon()
}
