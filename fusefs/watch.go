package fusefs

import (
	"sync/atomic"
	"time"
)

const (
	// watchTick is how often the watch looks.
	watchTick = 2 * time.Millisecond
	// quickRequests is how many requests in a tick are quick succession.
	quickRequests = 4
	// slowTicks is how many ticks in a row with fewer are the end of a burst, after
	// which the watch sleeps until the next request.
	slowTicks = 25
)

// watch looks at the request loop every tick while requests come: it takes the turn from
// a leader that a request keeps, and has processors kept awake in bursts.
type watch struct {
	processors processors
	turn       *atomic.Uint64      // the request loop's
	takeTurn   func(number uint64) // likewise

	requests atomic.Uint64 // so far
	looking  atomic.Bool   // else it waits for wake
	wake     chan struct{}
	ending   chan struct{} // closed when no request comes any more
	done     chan struct{} // closed when run has ended
}

func (w *watch) start(turn *atomic.Uint64, takeTurn func(number uint64)) {
	w.turn, w.takeTurn = turn, takeTurn
	w.wake, w.ending, w.done = make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	go w.run()
}

// request is called by the leader for each request before it is answered.
func (w *watch) request() {
	w.requests.Add(1)
	if !w.looking.Load() && w.looking.CompareAndSwap(false, true) {
		w.wake <- struct{}{} // has room: one for each turn from false to true
	}
}

// stop ends it; no request may come after it.
func (w *watch) stop() {
	close(w.ending)
	close(w.wake)
	<-w.done
}

func (w *watch) run() {
	defer close(w.done)
	for range w.wake {
		for {
			seen, ended := w.burst()
			w.processors.letSleep()
			if ended {
				return
			}
			w.looking.Store(false)
			// A request may have come after the last look, and seen that somebody looks.
			if w.requests.Load() == seen || !w.looking.CompareAndSwap(false, true) {
				break
			}
		}
	}
}

// burst returns when requests no longer come in quick succession, with how many it has
// seen.
func (w *watch) burst() (seen uint64, ended bool) {
	tick := time.NewTicker(watchTick)
	defer tick.Stop()
	seen, turn := w.requests.Load(), uint64(0)
	for slow := 0; slow < slowTicks; {
		select {
		case <-tick.C:
		case <-w.ending:
			return seen, true
		}
		now := w.turn.Load()
		if now == turn {
			w.takeTurn(now)
		}
		turn = now
		requests := w.requests.Load()
		if slow++; requests-seen >= quickRequests {
			slow = 0
			w.processors.keepAwake()
		}
		seen = requests
	}
	return seen, false
}
