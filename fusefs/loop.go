package fusefs

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// How requests are read decides what a request costs: the work for most takes a
// microsecond or two, and waking a thread for it several times that. So one worker, the
// leader, reads and answers one request after another, and for a moment after each it
// looks for the next without going to sleep: a program that does something in a
// directory asks again at once. No other waits for the kernel meanwhile, which would be
// woken in its place.
//
// Nothing may wait for the leader for long. Who answers a request and knows that it takes
// its time gives the turn away first (yield); of any other the watch sees that it takes
// longer than a tick, and makes another the leader. And where requests queue up and
// processors are free, leaders follow each other at once.

const (
	// alertFor is how long the leader looks for the next request before it sleeps: about
	// as long as waking it would take. Where processors should be kept awake (latency.go)
	// and cannot be, that is alertForAsleep.
	alertFor       = 20 * time.Microsecond
	alertForAsleep = 100 * time.Microsecond
	// looksPerClock is how often it looks between looks at the clock.
	looksPerClock = 8
	// maxHope bounds how many times in a row it may look in vain before it does not try
	// after each request any more, and hopeEvery is after how many it tries then.
	maxHope   = 8
	hopeEvery = 16
	// queueRun is how many requests in a row that were there already are a queue.
	queueRun = 8
	// maxWorkers bounds the requests under way, each with its buffers: those that wait
	// longest are writes while a repack holds writers.
	maxWorkers = 64
	// maxIdle is how many workers are kept with nothing to do.
	maxIdle = 4
)

// requestInit is FUSE_INIT of enum fuse_opcode (linux/fuse.h).
const requestInit = 26

// handler answers a request into out, and returns the length of the reply; 0: none is
// wanted. fuse.ProtocolServer has one.
type handler func(in, out [][]byte) (int, fuse.Status)

// connection is what the request loop needs of a device.
type connection interface {
	tryRead(buf []byte) (int, error)
	wait() error
	write(reply []byte) error
}

// Sizes in bytes of what begins a request, a WRITE and a reply (linux/fuse.h).
const (
	inHeaderSize  = 40                // struct fuse_in_header
	writeInSize   = inHeaderSize + 40 // and struct fuse_write_in
	outHeaderSize = 16                // struct fuse_out_header
)

// buffers are a worker's, for one request and its reply. Data in both begin at boundaries
// of pages, as files opened with O_DIRECT want it.
type buffers struct {
	memory []byte
	in     []byte
	out    []byte

	// What a handler takes: in, and out with the header by itself.
	inVec  [1][]byte
	outVec [2][]byte
}

// newBuffers makes room for the data of maxWrite bytes in each direction. They are to be
// freed.
func newBuffers(maxWrite int) (*buffers, error) {
	page := unix.Getpagesize()
	half := (maxWrite+page-1)&^(page-1) + 2*page
	memory, err := sys.Memory(2 * half)
	if err != nil {
		return nil, fmt.Errorf("memory for requests: %w", err)
	}
	b := &buffers{memory: memory, in: memory[page-writeInSize : half : half], out: memory[half+page-outHeaderSize:]}
	b.outVec = [2][]byte{b.out[:outHeaderSize], b.out[outHeaderSize:]}
	return b, nil
}

func (b *buffers) free() error { return sys.Unmap(b.memory) }

// opcode and unique are fields of the header of the request that was read.
func (b *buffers) opcode() uint32 { return binary.NativeEndian.Uint32(b.in[4:]) }
func (b *buffers) unique() uint64 { return binary.NativeEndian.Uint64(b.in[8:]) }

// answer handles the request of n bytes in the buffer. The reply is valid until the next
// request is read; it is empty where none is wanted.
func (b *buffers) answer(handle handler, n int) []byte {
	b.inVec[0] = b.in[:n]
	size, st := handle(b.inVec[:], b.outVec[:])
	if size == 0 && !st.Ok() { // it could not make sense of it
		size = outHeaderSize
		out := binary.NativeEndian.AppendUint32(b.out[:0], uint32(size))
		out = binary.NativeEndian.AppendUint32(out, uint32(-int32(st)))
		binary.NativeEndian.AppendUint64(out, b.unique())
	}
	return b.out[:size]
}

// requestLoop serves a connection.
type requestLoop struct {
	dev      connection
	handle   handler
	log      *slog.Logger
	maxWrite int
	watch    watch
	// crowd is how many workers may answer quick requests at a time, if they queue up.
	crowd int

	// turn is who may read. It is odd while the leader answers: whoever makes it even
	// then by compare-and-swap has the turn. Each request is another pair of numbers.
	turn atomic.Uint64
	busy atomic.Int32 // workers that answer

	alert alertness // the leader's

	mu      sync.Mutex
	idle    []*worker // protected by mu
	workers int       // protected by mu
	vacant  bool      // protected by mu: nobody leads, as all are busy
	ended   bool      // protected by mu
	running sync.WaitGroup
}

// worker answers requests, one at a time.
type worker struct {
	*buffers
	lead chan struct{} // it is the leader from now on; closed: at an end
}

// serve returns when nothing is mounted any more and the last request is answered.
func (l *requestLoop) serve() {
	if l.crowd == 0 {
		l.crowd = max(1, runtime.GOMAXPROCS(0)/2)
	}
	l.alert.able = runtime.GOMAXPROCS(0) > 1 // else who asks could not run meanwhile
	l.alert.hope = maxHope
	l.alert.patience = cmp.Or(l.alert.patience, alertFor)
	l.watch.start(&l.turn, l.takeTurn)
	l.passTurn()
	l.running.Wait()
	l.watch.stop()
}

// passTurn makes an idle worker the leader. The caller has the turn, and then not.
func (l *requestLoop) passTurn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch last := len(l.idle) - 1; {
	case l.ended:
	case last >= 0:
		w := l.idle[last]
		l.idle = l.idle[:last]
		w.lead <- struct{}{} // has room: an idle worker is told once
	case !l.hire():
		l.vacant = true
	}
}

// hire makes a worker that leads. Preconditions: mu is held.
func (l *requestLoop) hire() bool {
	if l.workers >= maxWorkers {
		return false
	}
	b, err := newBuffers(l.maxWrite)
	if err != nil {
		l.log.Warn("begin another worker", slog.Any("error", err))
		return false
	}
	l.workers++
	l.running.Add(1)
	w := &worker{buffers: b, lead: make(chan struct{}, 1)}
	w.lead <- struct{}{}
	go l.work(w)
	return true
}

func (l *requestLoop) work(w *worker) {
	defer l.running.Done()
	defer func() {
		if err := w.free(); err != nil {
			l.log.Warn("end a worker", slog.Any("error", err))
		}
	}()
	for range w.lead {
		for l.leadOnce(w) {
		}
		if !l.rest(w) {
			return
		}
	}
}

// rest makes a worker idle, or the leader where there is none; false: it is not needed
// any more.
func (l *requestLoop) rest(w *worker) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.vacant && !l.ended:
		l.vacant = false
		w.lead <- struct{}{}
	case l.ended, len(l.idle) >= maxIdle:
		l.workers--
		return false
	default:
		l.idle = append(l.idle, w)
	}
	return true
}

// end sends the idle workers home; the others go when they are done.
func (l *requestLoop) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	for _, w := range l.idle {
		close(w.lead)
	}
	l.workers -= len(l.idle)
	l.idle = nil
}

// leadOnce reads a request and answers it, and reports whether the worker still leads.
func (l *requestLoop) leadOnce(w *worker) bool {
	n, queued, err := l.read(w)
	if err != nil {
		if !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ECONNABORTED) {
			l.log.Error("read requests", slog.Any("error", err))
		}
		l.end()
		return false
	}
	number := l.turn.Load() + 2
	l.watch.request()
	l.busy.Add(1)
	defer l.busy.Add(-1)
	if queued && int(l.busy.Load()) < l.crowd {
		l.turn.Store(number)
		l.passTurn()
		l.answer(w, n)
		return false
	}
	l.turn.Store(number | 1)
	l.answer(w, n)
	return l.turn.CompareAndSwap(number|1, number)
}

// yield says that the request being answered takes long. Where that is not the leader's,
// because it has no turn any more, another leader loses it, which does no harm.
func (l *requestLoop) yield() { l.takeTurn(l.turn.Load()) }

// takeTurn takes the turn from a leader that answers the request that number is of.
func (l *requestLoop) takeTurn(number uint64) {
	if number&1 != 0 && l.turn.CompareAndSwap(number, number&^1) {
		l.passTurn()
	}
}

func (l *requestLoop) answer(w *worker, n int) {
	unique := w.unique()
	reply := w.buffers.answer(l.handle, n)
	if len(reply) == 0 {
		return
	}
	// ENOENT: the request was given up. ENODEV: so was the mount.
	if err := l.dev.write(reply); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		l.log.Warn("answer a request", slog.Uint64("request", unique), slog.Any("error", err))
	}
}

// read waits for a request. queued is whether requests come faster than they are
// answered.
func (l *requestLoop) read(w *worker) (n int, queued bool, err error) {
	for looks := 0; ; {
		n, err := l.dev.tryRead(w.in)
		switch err { //nolint:errorlint // raw errnos, and this is most of what the loop does
		case nil:
			return n, l.alert.found(looks), nil
		case unix.EINTR, unix.ENOENT:
			continue
		case unix.EAGAIN:
		default:
			return 0, false, err
		}
		if l.alert.looksOn(looks) {
			looks++
			continue
		}
		if err := l.dev.wait(); err != nil {
			return 0, false, err
		}
		l.alert.slept()
		looks = 0
	}
}

// alertness is whether to look for the next request or to sleep until it comes. The
// leader's turns order its use.
type alertness struct {
	able     bool
	patience time.Duration // how long it looks
	since    time.Time     // looked since
	asked    int           // requests since it last looked
	hope     int           // how many more times it may be in vain
	run      int           // requests in a row that were there at once
}

// looksOn reports whether to look once more, after looks times in vain.
func (a *alertness) looksOn(looks int) bool {
	switch {
	case !a.able:
		return false
	case looks == 0:
		a.asked++
		if a.hope == 0 && a.asked < hopeEvery {
			return false
		}
		a.since, a.asked = time.Now(), 0
	case looks%looksPerClock == 0 && time.Since(a.since) > a.patience:
		a.hope = max(0, a.hope-1)
		return false
	}
	return true
}

// slept says that the leader slept until a request came.
func (a *alertness) slept() { a.run = 0 }

// found says that there is a request, after looks in vain, and reports whether there is
// a queue of them.
func (a *alertness) found(looks int) bool {
	if looks > 0 {
		a.run, a.hope = 0, min(maxHope, a.hope+1)
		return false
	}
	a.run++
	return a.run >= queueRun
}
