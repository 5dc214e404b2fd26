package fusefs

import (
	"encoding/binary"
	"os"
	"sync/atomic"
	"time"
)

// A program that waits for an answer leaves its processor idle, and so does the server
// that waits for the next request. Where an idle processor sleeps deeply, as in a
// virtual machine, where it is taken away, waking it costs several times what the
// request does. The kernel's quality of service for power management lets root say how
// long waking may take (Documentation/power/pm_qos_interface.rst): with 0 idle
// processors poll. wakefulness says so while requests come in quick succession, and
// takes it back when they do not.

const (
	latencyDevice = "/dev/cpu_dma_latency"
	// wakefulTick is how often the rate of requests is looked at.
	wakefulTick = 2 * time.Millisecond
	// wakefulRequests is how many requests in a tick are quick succession.
	wakefulRequests = 4
	// restlessTicks is how many slow ticks in a row end it.
	restlessTicks = 25
)

// Values of the device, in microseconds.
const (
	noLatency  = 0
	anyLatency = 2_000_000_000 // PM_QOS_CPU_LATENCY_DEFAULT_VALUE
)

// wakefulness keeps processors awake during bursts of requests. Its zero value does
// nothing.
type wakefulness struct {
	device   *os.File      // nil: not allowed here
	requests atomic.Uint64 // so far
	watched  atomic.Bool   // run looks at them; else it waits for wake
	wake     chan struct{}
	ending   chan struct{} // closed when no request comes any more
	done     chan struct{} // closed when run has ended
}

// start begins, where the device can be opened.
func (w *wakefulness) start(device string) {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return // not root, or a container without it
	}
	w.device, w.wake = f, make(chan struct{}, 1)
	w.ending, w.done = make(chan struct{}), make(chan struct{})
	go w.run()
}

// request is called with each request.
func (w *wakefulness) request() {
	if w.device == nil {
		return
	}
	w.requests.Add(1)
	if !w.watched.Load() && w.watched.CompareAndSwap(false, true) {
		w.wake <- struct{}{} // has room: one for each turn from false to true
	}
}

// stop ends it; no request may come after it. Closing the device takes back what it said.
func (w *wakefulness) stop() error {
	if w.device == nil {
		return nil
	}
	close(w.ending)
	close(w.wake)
	<-w.done
	return w.device.Close()
}

func (w *wakefulness) run() {
	defer close(w.done)
	for range w.wake {
		w.burst()
		w.watched.Store(false)
	}
}

// burst returns when requests no longer come in quick succession.
func (w *wakefulness) burst() {
	held := false
	defer func() {
		if held {
			w.say(anyLatency)
		}
	}()
	tick := time.NewTicker(wakefulTick)
	defer tick.Stop()
	for slow, last := 0, w.requests.Load(); slow < restlessTicks; {
		select {
		case <-tick.C:
		case <-w.ending:
			return
		}
		now := w.requests.Load()
		switch quick := now-last >= wakefulRequests; {
		case !quick:
			slow++
		case !held:
			held = w.say(noLatency)
			fallthrough
		default:
			slow = 0
		}
		last = now
	}
}

// say writes a latency, and reports whether that could be done.
func (w *wakefulness) say(microseconds int32) bool {
	_, err := w.device.Write(binary.NativeEndian.AppendUint32(nil, uint32(microseconds)))
	return err == nil
}
