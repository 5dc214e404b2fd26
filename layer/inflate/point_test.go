package inflate

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// point is where decoding was interrupted.
type point struct {
	state  []byte // nil: between members
	bit    int64  // in the stored stream
	at     int    // in the plain stream
	window []byte // packed by Sparse
}

// points decodes b and notes a point after every chunk.
func points(t testing.TB, b []byte, chunk int) (plain []byte, all []point, err error) {
	t.Helper()
	g := feed(bytes.NewReader(b), 1<<20)
	// feed holds all of the input from the first Fill on, or what is left of it.
	total := int64(len(b))
	o := Output{Dst: make([]byte, WindowSize+chunk+OutSlack)}
	w, pending := new(Window), -1
	settle := func() {
		if pending >= 0 {
			all[pending].window = bytes.Clone(w.Sparse())
			g.Untrack()
			pending = -1
		}
	}
	for {
		keep := min(o.Out, WindowSize)
		copy(o.Dst, o.Dst[o.Out-keep:o.Out])
		o.Origin += int64(o.Out - keep)
		o.Out, o.Limit = keep, keep+chunk
		err := g.Decode(&o)
		plain = append(plain, o.Dst[keep:o.Out]...)
		if pending < 0 || len(plain)-all[pending].at >= WindowSize || err != nil {
			settle()
		}
		if errors.Is(err, io.EOF) {
			return plain, all, nil
		}
		if err != nil {
			return plain, all, err
		}
		if len(b) > 1<<20 || pending >= 0 {
			continue
		}
		p := point{bit: (total-int64(g.In.End-g.In.Pos))*8 - int64(g.Pending()), at: len(plain)}
		if g.InMember() {
			p.state = g.AppendState(nil)
			clear(w.Bytes[:])
			n := min(len(plain), WindowSize)
			copy(w.Bytes[WindowSize-n:], plain[len(plain)-n:])
			g.Track(w, int64(len(plain)))
			pending = len(all)
		}
		all = append(all, p)
	}
}

// resumeEverywhere decodes b from every point and compares with the whole.
func resumeEverywhere(t *testing.T, b []byte, chunk int) {
	t.Helper()
	if len(b) > 1<<20 {
		t.Fatal("too long for this test")
	}
	plain, all, err := points(t, b, chunk)
	if err != nil {
		return
	}
	for _, p := range all {
		g := feed(bytes.NewReader(b[p.bit/8:]), 3000)
		o := Output{Dst: make([]byte, WindowSize+len(plain)-p.at+OutSlack), Out: WindowSize}
		if p.state == nil {
			g.Start(false)
		} else {
			rest, err := g.Resume(append(bytes.Clone(p.state), "rest"...), int(p.bit%8))
			if err != nil || string(rest) != "rest" {
				t.Fatalf("%x: resume at bit %d: rest %q, %v", b, p.bit, rest, err)
			}
		}
		copy(o.Dst[WindowSize-len(p.window):], p.window)
		o.Limit = len(o.Dst) - OutSlack
		if err := g.Decode(&o); err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("%x: from bit %d: %v", b, p.bit, err)
		}
		if got := o.Dst[WindowSize:o.Out]; !bytes.Equal(got, plain[p.at:]) {
			t.Fatalf("%x: from bit %d: other bytes", b, p.bit)
		}
	}
}

func TestDecodingGoesOnFromEveryPointWithItsSparseWindow(t *testing.T) {
	for name, plain := range plainInputs() {
		t.Run(name, func(t *testing.T) {
			for _, level := range levels {
				b := gzipOf(t, plain[:min(len(plain), 200<<10)], level)
				resumeEverywhere(t, b, 9000)
				resumeEverywhere(t, append(b, b...), 40000)
			}
		})
	}
}

func TestASparseWindowHoldsLessThanTheWindow(t *testing.T) {
	plain := sampleText(300 << 10)
	noise := plainInputs()["noise"]
	_, all, err := points(t, gzipOf(t, append(plain, noise...), 6), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	if last := all[len(all)-1]; len(last.window) != 0 {
		t.Errorf("a window of %d bytes before noise", len(last.window))
	}
	for _, p := range all[:3] {
		if zeros := bytes.Count(p.window, []byte{0}); zeros < 1000 || len(p.window) < 1000 {
			t.Errorf("at %d: a window of %d bytes, %d of them cleared", p.at, len(p.window), zeros)
		}
	}
}

func FuzzResume(f *testing.F) {
	for _, plain := range plainInputs() {
		_, all, err := points(f, gzipOf(f, plain[:min(len(plain), 20000)], 6), 1000)
		if err != nil {
			f.Fatal(err)
		}
		for _, p := range all {
			f.Add(p.state, []byte("some input"), int(p.bit%8))
		}
	}
	f.Fuzz(func(t *testing.T, state, input []byte, bit int) {
		g := feed(bytes.NewReader(input), 100)
		if _, err := g.Resume(state, bit&7); err != nil {
			return
		}
		o := Output{Dst: make([]byte, WindowSize+10000+OutSlack), Out: WindowSize, Limit: WindowSize + 10000}
		_ = g.Decode(&o)
		if o.Out < WindowSize || o.Out > len(o.Dst) {
			t.Fatalf("output up to %d", o.Out)
		}
	})
}
