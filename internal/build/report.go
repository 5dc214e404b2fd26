package build

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Report tells the user what happens: lines and, on a terminal, one line below them that
// says what is being done. Its methods can be called by several goroutines.
type Report struct {
	out      io.Writer
	terminal bool

	mu      sync.Mutex
	total   int               // protected by mu; targets
	ended   int               // protected by mu; of them
	running map[string]string // protected by mu; target: step
	drawn   bool              // protected by mu; the line is there
}

// NewReport writes to out, which may be a terminal.
func NewReport(out io.Writer, terminal bool) *Report {
	return &Report{out: out, terminal: terminal, running: map[string]string{}}
}

func (r *Report) begin(total int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total = total
}

// end takes the line away.
func (r *Report) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = map[string]string{}
	r.writeLocked("")
}

// say writes a line of a target; change may change what is shown below.
func (r *Report) say(change func(), format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if change != nil {
		change()
	}
	r.writeLocked(fmt.Sprintf(format, args...) + "\n")
}

// writeLocked writes lines, and the last one anew. Preconditions: r.mu is held.
func (r *Report) writeLocked(s string) {
	var b strings.Builder
	if r.drawn {
		b.WriteString("\r\x1b[K")
		r.drawn = false
	}
	b.WriteString(s)
	if r.terminal && len(r.running) > 0 {
		var now []string
		for target, step := range r.running {
			now = append(now, target+": "+step)
		}
		slices.Sort(now)
		line := fmt.Sprintf("[%d/%d] %s", r.ended, r.total, strings.Join(now, ", "))
		b.WriteString(line[:min(len(line), 79)])
		r.drawn = true
	}
	_, _ = io.WriteString(r.out, b.String()) // a user who does not look is no failure
}

func (r *Report) cached(target string) {
	r.say(func() { r.ended++ }, "%s: cached", target)
}

func (r *Report) stepCached(target string, s *step) {
	r.say(nil, "%s: %s: cached", target, s.label)
}

func (r *Report) notCached(target, step, why string) {
	r.say(nil, "%s: %s: not cached: %s", target, step, why)
}

func (r *Report) step(target, step, text string) {
	r.say(func() { r.running[target] = step }, "%s: %s: %s", target, step, oneLine(text))
}

func (r *Report) stepDone(target, step string, d time.Duration) {
	r.say(nil, "%s: %s: done in %s", target, step, d.Round(time.Millisecond))
}

func (r *Report) done(target string, d digest.Digest, took time.Duration) {
	r.say(func() { r.ended++; delete(r.running, target) }, "%s: %s in %s", target, d, took.Round(time.Millisecond))
}

// oneLine shortens text to what a line can show.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	const most = 100
	if runes := []rune(s); len(runes) > most {
		s = string(runes[:most]) + " ..."
	}
	return s
}

// output is where a target's programs write to. Flush it when they have ended.
func (r *Report) output(target string) *lineWriter { return &lineWriter{r: r, prefix: target + " | "} }

// lineWriter passes whole lines on, with the target's name before each.
type lineWriter struct {
	r      *Report
	prefix string
	mu     sync.Mutex
	part   []byte // protected by mu; of a line
}

// maxLine is what is kept of a line without an end, in bytes.
const maxLine = 64 << 10

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.part = append(w.part, p...)
	for {
		i := bytes.IndexByte(w.part, '\n')
		if i < 0 && len(w.part) < maxLine {
			return len(p), nil
		}
		line := w.part
		if i >= 0 {
			line = w.part[:i]
		}
		w.r.say(nil, "%s%s", w.prefix, bytes.TrimSuffix(line, []byte("\r")))
		w.part = w.part[min(len(line)+1, len(w.part)):]
	}
}

// flush writes what was left without a newline.
func (w *lineWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.part) > 0 {
		w.r.say(nil, "%s%s", w.prefix, w.part)
		w.part = nil
	}
}
