package layer

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/umoci-mount/umoci-mount/layer/inflate"
)

// indexWith indexes src with that many processors said to be there.
func indexWith(t *testing.T, src Source, cpus int) (*blobIndex, error) {
	t.Helper()
	f, err := src.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	shared := newSharedWork(1, cpus)
	defer shared.close()
	return buildBlobIndex(context.Background(), f, src, passOptions{shared: shared})
}

// longStreams are gzip streams of several parts each.
func longStreams(t *testing.T) map[string][2][]byte {
	text := mixed(31, 8<<20)
	noise := make([]byte, 3<<20)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	// Where a part would begin there is nothing that can begin one.
	stored := append(append(bytes.Clone(text[:3<<20]), noise...), text[3<<20:6<<20]...)
	// A part whose content is too long: its stream is short.
	zeros := append(append(bytes.Clone(text[:4<<20]), make([]byte, 40<<20)...), text[:4<<20]...)
	return map[string][2][]byte{
		"one member":             {gz(t, text, 6), text},
		"long blocks, few codes": {gz(t, text, 1), text},
		"members of 3 MiB":       {gzMembers(t, text, 3<<20), text},
		"short members":          {gzMembers(t, text, 20<<10), text},
		"blocks of noise":        {gz(t, stored, 6), stored},
		"zeros in the middle":    {gz(t, zeros, 6), zeros},
	}
}

func TestALayerOfWhichPartsAreDecodedAheadIsReadAsAnyOther(t *testing.T) {
	processors := []int{2, 5}
	if testing.Short() {
		processors = processors[1:]
	}
	for name, stream := range longStreams(t) {
		t.Run(name, func(t *testing.T) {
			src := storedLayer(t, mtGzip, stream[0], stream[1])
			for _, cpus := range processors {
				ix, err := indexWith(t, src, cpus)
				if err != nil {
					t.Fatal(err)
				}
				checkReads(t, src, ix, stream[1])
			}
		})
	}
}

// checkReads reads a layer and sees that its spans are not too long.
func checkReads(t *testing.T, src Source, ix *blobIndex, plain []byte) {
	t.Helper()
	for i := range ix.numSpans() {
		end := src.Size * 8
		if i+1 < ix.numSpans() {
			end = ix.span(i + 1).in
		}
		size, stored := ix.spanOut(i+1)-ix.spanOut(i), (end-ix.span(i).in)/8
		if size > gzipSpanMost+gzipStep+inflate.OutSlack || stored > 2*gzipSpanStored {
			t.Errorf("span %d: %d bytes, %d stored", i, size, stored)
		}
	}
	readBackwards(t, src, ix, plain)
}

// readBackwards reads a layer so that every span is decoded by itself.
func readBackwards(t *testing.T, src Source, ix *blobIndex, plain []byte) {
	t.Helper()
	f, err := src.Open()
	if err != nil {
		t.Fatal(err)
	}
	b, err := openBlob(f, src, ix, newSpanCache(0))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Size() != int64(len(plain)) {
		t.Fatalf("%d bytes, want %d", b.Size(), len(plain))
	}
	for i := ix.numSpans() - 1; i >= 0; i-- {
		from, to := ix.spanOut(i), ix.spanOut(i+1)
		p := make([]byte, to-from)
		if _, err := b.ReadAt(p, from); err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("span %d: %v", i, err)
		}
		if !bytes.Equal(p, plain[from:to]) {
			t.Fatalf("span %d: other bytes", i)
		}
	}
}

// Parts are taken, and not all decoded again by the pass.
func TestPartsDecodedAheadJoin(t *testing.T) {
	plain := mixed(32, 20<<20)
	t.Run("of one member", func(t *testing.T) { joinParts(t, storedLayer(t, mtGzip, gz(t, plain, 6), plain)) })
	t.Run("of many", func(t *testing.T) { joinParts(t, storedLayer(t, mtGzip, gzMembers(t, plain, 256<<10), plain)) })
}

// joinParts decodes three parts and joins them.
func joinParts(t *testing.T, src Source) {
	t.Helper()
	f, err := src.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	shared := newSharedWork(1, 3)
	defer shared.close()
	parts := aheadParts{file: f, size: src.Size, shared: shared, next: aheadStored}
	parts.plan(0)
	if len(parts.parts) < 3 { // more where one is done already
		t.Fatalf("%d parts are planned for three idle processors", len(parts.parts))
	}
	for at := int64(-1); len(parts.parts) > 0; {
		p, later := parts.at(max(at, parts.pauseAt()))
		if p == nil {
			if at >= 0 {
				t.Fatalf("nothing begins at bit %d, where the part before ended, but at %d", at, later)
			}
			at = later
			continue
		}
		if p.a.Len() < aheadStored || p.cuts[0].bit != p.start {
			t.Errorf("a part of %d bytes, its first cut at bit %d of %d", p.a.Len(), p.cuts[0].bit, p.start)
		}
		at = p.a.Bit()
	}
	parts.end()
}

func TestABrokenStreamIsAsBrokenWithPartsDecodedAhead(t *testing.T) {
	plain := mixed(33, 12<<20)
	whole := gz(t, plain, 6)
	members := gzMembers(t, plain, 900<<10)
	ends := bytes.Split(members, whole[:10])
	last := len(members) - len(ends[len(ends)-1]) - 10
	for name, b := range map[string][]byte{
		"cut":                   whole[:len(whole)-len(whole)/3],
		"cut by much":           whole[:aheadStored+100],
		"flipped":               flipped(whole, len(whole)/2),
		"other sum":             flipped(whole, len(whole)-8),
		"other sum of a member": flipped(members, last-8),
		"other length of one":   flipped(members, last-2),
	} {
		t.Run(name, func(t *testing.T) {
			src := storedLayer(t, mtGzip, b, plain)
			_, want := indexWith(t, src, 1)
			_, got := indexWith(t, src, 4)
			for _, class := range []error{ErrFormat, ErrDiffID, ErrDigest} {
				if errors.Is(want, class) != errors.Is(got, class) {
					t.Errorf("with parts: %v; without: %v", got, want)
				}
			}
			if want == nil || got == nil {
				t.Errorf("not noticed: %v, %v", want, got)
			}
		})
	}
}

// What was decoded ahead is what was hashed, or else the layer is not indexed.
func TestALayerThatChangesBetweenTwoReadsIsNotIndexed(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	noise := make([]byte, 150<<10)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	var plain []byte
	for i := range 12 {
		plain = append(append(plain, mixed(uint64(40+i), 1<<20)...), noise...)
	}
	stored := gz(t, plain, 6)
	src := storedLayer(t, mtGzip, stored, plain)
	changed := bytes.Clone(stored) // in what was not compressed, so that it decodes
	for at := 0; ; {
		i := bytes.Index(changed[at:], noise[60<<10:][:32])
		if i < 0 {
			break
		}
		changed[at+i] ^= 1
		at += i + 1
	}
	index := func(other []byte) error {
		f, err := src.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		ahead, err := storedLayer(t, mtGzip, other, plain).Open()
		if err != nil {
			t.Fatal(err)
		}
		defer ahead.Close()
		shared := newSharedWork(1, 3)
		defer shared.close()
		ix := &blobIndex{storedSize: src.Size}
		if ix.digest, err = parseDigest(src.Digest); err != nil {
			t.Fatal(err)
		}
		if ix.diffID, err = parseDigest(src.DiffID); err != nil {
			t.Fatal(err)
		}
		p := newIndexPass(f, ix, passOptions{shared: shared})
		g := newGzipIndexer(p)
		g.ahead.file = ahead
		return p.run(t.Context(), g.decode, nil)
	}
	if err := index(stored); err != nil {
		t.Errorf("unchanged: %v", err)
	}
	if err := index(changed); !errors.Is(err, ErrDigest) {
		t.Errorf("changed: %v", err)
	}
}

// randomStream is a gzip stream of members of all lengths, of contents and levels that
// change within them.
func randomStream(t *testing.T, seed uint64) (stored, plain []byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 12))
	text := mixed(50+seed, 4<<20)
	piece := func() []byte {
		n := []int{1, 300, 20 << 10, 200 << 10, 2 << 20}[r.IntN(5)]
		switch r.IntN(6) {
		case 0:
			return make([]byte, n)
		case 1:
			b := make([]byte, min(n, 700<<10))
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			return b
		case 2: // what matches reach far back in
			b := text[:min(n, 40<<10)]
			return bytes.Repeat(b, n/len(b))
		}
		at := r.IntN(len(text) - n)
		return text[at : at+n]
	}
	var out bytes.Buffer
	for out.Len() < 5*aheadStored/2 {
		w, err := gzip.NewWriterLevel(&out, []int{0, 1, 4, 6, 9, gzip.HuffmanOnly}[r.IntN(6)])
		if err != nil {
			t.Fatal(err)
		}
		for range []int{0, 1, 5, 40}[r.IntN(4)] {
			p := piece()
			if _, err := w.Write(p); err != nil {
				t.Fatal(err)
			}
			plain = append(plain, p...)
			if r.IntN(3) == 0 {
				if err := w.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			if len(plain) > 40<<20 {
				break
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if len(plain) > 40<<20 {
			break
		}
	}
	return out.Bytes(), plain
}

func TestRandomStreamsOfWhichPartsAreDecodedAheadAreReadAsAnyOther(t *testing.T) {
	seeds := uint64(4)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		stored, plain := randomStream(t, seed)
		src := storedLayer(t, mtGzip, stored, plain)
		ix, err := indexWith(t, src, 5)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		checkReads(t, src, ix, plain)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}
