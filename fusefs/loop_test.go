package fusefs

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// What is asked: quick stands for most, and slow for what yields.
const (
	quick = 3
	slow  = 15
)

type fuseRequest struct {
	opcode uint32
	unique uint64
}

// fakeLoop is a request loop whose kernel is the test.
type fakeLoop struct {
	requestLoop

	requests chan fuseRequest // closed: unmounted
	asked    atomic.Uint64
	ended    chan struct{}

	mu      sync.Mutex
	waiting map[uint64]chan struct{} // protected by mu; closed by the reply
	next    *fuseRequest             // the leader's: come while it waited
	gone    bool                     // the leader's
}

// newFakeLoop answers each request when f returns.
func newFakeLoop(f func(fuseRequest)) *fakeLoop {
	l := &fakeLoop{requests: make(chan fuseRequest, 1000), ended: make(chan struct{}), waiting: map[uint64]chan struct{}{}}
	l.requestLoop = requestLoop{dev: l, log: slog.New(slog.DiscardHandler), maxWrite: 4096}
	l.handle = func(in, out [][]byte) (int, fuse.Status) {
		h := *(*fuse.InHeader)(unsafe.Pointer(&in[0][0]))
		if h.Opcode == slow {
			l.yield()
		}
		f(fuseRequest{h.Opcode, h.Unique})
		(*fuse.OutHeader)(unsafe.Pointer(&out[0][0])).Unique = h.Unique
		return outHeaderSize, fuse.OK
	}
	return l
}

func (l *fakeLoop) serve() {
	l.requestLoop.serve()
	close(l.ended)
}

func (l *fakeLoop) tryRead(buf []byte) (int, error) {
	if l.next == nil && !l.gone {
		select {
		case r, ok := <-l.requests:
			l.next, l.gone = &r, !ok
		default:
			return 0, unix.EAGAIN
		}
	}
	if l.gone {
		return 0, unix.ENODEV
	}
	*(*fuse.InHeader)(unsafe.Pointer(&buf[0])) = fuse.InHeader{Opcode: l.next.opcode, Unique: l.next.unique}
	l.next = nil
	return int(unsafe.Sizeof(fuse.InHeader{})), nil
}

func (l *fakeLoop) wait() error {
	r, ok := <-l.requests
	l.next, l.gone = &r, !ok
	return nil
}

func (l *fakeLoop) write(reply []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	unique := (*fuse.OutHeader)(unsafe.Pointer(&reply[0])).Unique
	close(l.waiting[unique]) // twice, or not asked for: a panic
	delete(l.waiting, unique)
	return nil
}

// begin asks; the channel is closed by the reply.
func (l *fakeLoop) begin(opcode uint32) <-chan struct{} {
	r := fuseRequest{opcode, l.asked.Add(1)}
	done := make(chan struct{})
	l.mu.Lock()
	l.waiting[r.unique] = done
	l.mu.Unlock()
	l.requests <- r
	return done
}

func (l *fakeLoop) ask(opcode uint32) { <-l.begin(opcode) }

func (l *fakeLoop) unmount() {
	close(l.requests)
	<-l.ended
}

// untilBusy waits until n workers answer.
func (l *fakeLoop) untilBusy(t *testing.T, n int32) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); l.busy.Load() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d workers are busy", l.busy.Load())
		}
	}
}

// answered fails unless there is an answer soon.
func answered(t *testing.T, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("no answer: %s", what)
	}
}

func TestEveryRequestIsAnsweredOnce(t *testing.T) {
	for _, crowd := range []int{0, 1, 8} {
		var handled atomic.Int64
		l := newFakeLoop(func(r fuseRequest) {
			if handled.Add(1); r.unique%97 == 0 {
				time.Sleep(3 * watchTick)
			}
		})
		l.crowd = crowd
		go l.serve()
		const askers, each = 8, 2000
		var all sync.WaitGroup
		for i := range askers {
			all.Go(func() {
				for n := range each {
					l.ask([]uint32{quick, quick, slow}[(i+n)%3])
				}
			})
		}
		all.Wait()
		l.unmount()
		if n := handled.Load(); n != askers*each {
			t.Errorf("%d requests handled", n)
		}
		if l.workers != 0 || l.busy.Load() != 0 {
			t.Errorf("%d workers, %d of them busy, after the end", l.workers, l.busy.Load())
		}
	}
}

func TestNothingWaitsForARequestThatTakesLong(t *testing.T) {
	for _, kind := range []uint32{quick, slow} {
		release := make(chan struct{})
		l := newFakeLoop(func(r fuseRequest) {
			if r.unique == 1 {
				<-release
			}
		})
		go l.serve()
		first := l.begin(kind)
		for range 100 {
			answered(t, l.begin(quick), "behind a slow request")
		}
		select {
		case <-first:
			t.Error("the slow request is answered")
		default:
		}
		close(release)
		answered(t, first, "the slow request itself")
		l.unmount()
	}
}

// The watch sleeps when the request comes that then takes long.
func TestTheWatchWakesForASlowRequest(t *testing.T) {
	release := make(chan struct{})
	l := newFakeLoop(func(r fuseRequest) {
		if r.unique == 2 {
			<-release
		}
	})
	go l.serve()
	l.ask(quick)
	time.Sleep((slowTicks + 20) * watchTick)
	second := l.begin(quick)
	answered(t, l.begin(quick), "behind a slow request")
	close(release)
	answered(t, second, "the slow request")
	l.unmount()
}

func TestWhenAllWorkersAreBusyTheFirstThatIsDoneLeads(t *testing.T) {
	release := make(chan struct{})
	l := newFakeLoop(func(r fuseRequest) {
		if r.opcode == slow {
			<-release
		}
	})
	go l.serve()
	var all []<-chan struct{}
	for range maxWorkers + 10 {
		all = append(all, l.begin(slow))
	}
	last := l.begin(quick)
	l.untilBusy(t, maxWorkers)
	release <- struct{}{}
	close(release)
	for _, done := range append(all, last) {
		answered(t, done, "after all were busy")
	}
	l.unmount()
}

func TestTheEndWaitsForRequestsUnderWay(t *testing.T) {
	release := make(chan struct{})
	l := newFakeLoop(func(fuseRequest) { <-release })
	go l.serve()
	both := []<-chan struct{}{l.begin(slow), l.begin(quick)}
	l.untilBusy(t, 2)
	close(l.requests)
	select {
	case <-l.ended:
		t.Fatal("the end, with requests under way")
	case <-time.After(20 * watchTick):
	}
	close(release)
	for _, done := range both {
		answered(t, done, "at the end")
	}
	answered(t, l.ended, "the end")
}

// someBuffers are freed with the test.
func someBuffers(t *testing.T) *buffers {
	t.Helper()
	b, err := newBuffers(4096)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.free(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func TestARequestThatNobodyUnderstandsIsAnError(t *testing.T) {
	b := someBuffers(t)
	(*fuse.InHeader)(unsafe.Pointer(&b.in[0])).Unique = 7
	reply := b.answer(func(_, _ [][]byte) (int, fuse.Status) { return 0, fuse.EIO }, 40)
	h := (*fuse.OutHeader)(unsafe.Pointer(&reply[0]))
	if len(reply) != outHeaderSize || int(h.Length) != outHeaderSize || h.Status != -int32(fuse.EIO) || h.Unique != 7 {
		t.Errorf("%d bytes: %+v", len(reply), *h)
	}
}

func TestDataInBuffersBeginAtPages(t *testing.T) {
	if inHeaderSize != unsafe.Sizeof(fuse.InHeader{}) || writeInSize != unsafe.Sizeof(fuse.WriteIn{}) || outHeaderSize != unsafe.Sizeof(fuse.OutHeader{}) {
		t.Fatal("the sizes are not those of go-fuse")
	}
	page := uintptr(unix.Getpagesize())
	b := someBuffers(t)
	in, out := uintptr(unsafe.Pointer(&b.in[writeInSize])), uintptr(unsafe.Pointer(&b.out[outHeaderSize]))
	if in%page != 0 || out%page != 0 {
		t.Fatalf("a WRITE's at %#x, a READ's at %#x", in, out)
	}
	if &b.outVec[1][0] != &b.out[outHeaderSize] || len(b.outVec[1]) < 4096+int(page) || len(b.in) < writeInSize+4096+int(page) {
		t.Fatal("a reply in two pieces is not in one")
	}
}

func TestWhoLooksInVainSoonSleeps(t *testing.T) {
	a := alertness{able: true, patience: alertFor, hope: maxHope}
	look := func() (looked bool) { // for one request that comes too late
		for looks := 0; a.looksOn(looks); looks++ {
			looked = true
			if looks > 0 && looks%looksPerClock == 0 {
				a.since = a.since.Add(-2 * alertFor)
			}
		}
		a.slept()
		a.found(0)
		return looked
	}
	looked := 0
	for range maxHope + 10*hopeEvery {
		if look() {
			looked++
		}
	}
	if looked != maxHope+10 {
		t.Errorf("it looked %d times, want %d", looked, maxHope+10)
	}
	for range maxHope {
		for !a.looksOn(0) {
		}
		a.found(1)
	}
	if !look() {
		t.Error("it does not look, though that did well")
	}
	a.able = false
	if look() {
		t.Error("it looks where there is one processor")
	}
}
