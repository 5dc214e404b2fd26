package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/term"

	"github.com/umoci-mount/umoci-mount/layer"
)

// progress is a line on a terminal that shows how far the indexing of layers is.
// Elsewhere it is silent.
type progress struct {
	out *os.File // nil: silent

	mu      sync.Mutex
	total   map[digest.Digest]int64 // protected by mu; of the layers seen so far
	done    int64                   // protected by mu
	started time.Time               // protected by mu
	shown   time.Time               // protected by mu
}

// redraw is how often the line changes.
const redraw = 100 * time.Millisecond

func newProgress(out *os.File) *progress {
	p := &progress{total: map[digest.Digest]int64{}}
	if term.IsTerminal(int(out.Fd())) {
		p.out = out
	}
	return p
}

func (p *progress) add(src layer.Source, bytes int64) {
	if p.out == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.started.IsZero() {
		p.started = now
	}
	p.total[src.Digest] = src.Size
	p.done += bytes
	if bytes > 0 && now.Sub(p.shown) >= redraw {
		p.shown = now
		p.draw(now)
	}
}

// draw writes the line. Preconditions: p.mu is held.
func (p *progress) draw(now time.Time) {
	var total int64
	for _, n := range p.total {
		total += n
	}
	elapsed := now.Sub(p.started).Seconds()
	if total == 0 || elapsed <= 0 {
		return
	}
	rate := float64(p.done) / elapsed
	left := "?"
	if rate > 0 {
		left = (time.Duration(float64(total-p.done)/rate*10) * time.Second / 10).Round(100 * time.Millisecond).String()
	}
	const width = 30
	filled := min(int(int64(width)*p.done/total), width)
	fmt.Fprintf(p.out, "\rindexing %d layers [%s%s] %s/%s %s/s %s left \x1b[K", len(p.total),
		strings.Repeat("=", filled), strings.Repeat(" ", width-filled), size(p.done), size(total), size(int64(rate)), left)
}

// finish takes the line away.
func (p *progress) finish() {
	if p.out == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.shown.IsZero() {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.shown = time.Time{}
	}
}

// size writes bytes for people: "12.3 MB".
func size(n int64) string {
	f := float64(n)
	for _, unit := range []string{"B", "kB", "MB", "GB"} {
		if f < 1000 || unit == "GB" {
			if unit == "B" {
				return fmt.Sprintf("%.0f B", f)
			}
			return fmt.Sprintf("%.1f %s", f, unit)
		}
		f /= 1000
	}
	return ""
}
