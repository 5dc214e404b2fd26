package inflate

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// block is where a block of a stream begins.
type block struct {
	bit    int64 // in the stored stream
	at     int   // in the plain stream
	member int   // where its member begins in the plain stream
}

// blocks lists the blocks of b.
func blocks(t testing.TB, b []byte) (plain []byte, all []block) {
	t.Helper()
	g := new(Gzip)
	g.In = Input{Buf: append(bytes.Clone(b), make([]byte, InSlack)...), End: len(b), EOF: true}
	g.PauseAt = 1
	g.Start(true)
	o := Output{Dst: make([]byte, 4<<20+OutSlack), Limit: 4 << 20}
	for {
		err := g.Decode(&o)
		if errors.Is(err, io.EOF) {
			return o.Dst[:o.Out], all
		}
		if err != nil || !g.Paused() {
			t.Fatalf("at %d: %v", o.Out, err)
		}
		all = append(all, block{g.Bit(), o.Out, int(g.MemberStart())})
		g.PauseAt = g.Bit() + 1
	}
}

// aheadOf makes an Ahead whose input is b from a byte on, in pieces.
func aheadOf(b []byte, from, piece int) *Ahead {
	a := new(Ahead)
	buf := append(bytes.Clone(b), make([]byte, InSlack)...)
	a.Fill = func(in *Input) error {
		in.End = min(in.End+piece, len(b)-from)
		in.EOF = in.End == len(b)-from
		return nil
	}
	a.In = Input{Buf: buf[from:], At: int64(from)}
	_ = a.Fill(&a.In)
	return a
}

// aheadInputs are streams of blocks of every kind, some of them with long ones.
func aheadInputs(t testing.TB) map[string][]byte {
	all := make(map[string][]byte)
	for name, plain := range plainInputs() {
		for _, level := range levels {
			all[fmt.Sprintf("%s at level %d", name, level)] = gzipOf(t, plain, level)
		}
	}
	noise := plainInputs()["noise"]
	var mixed []byte
	for i := 0; len(mixed) < 1<<20; i++ {
		mixed = append(mixed, sampleText(30000)...)
		mixed = append(mixed, noise[i*1000:][:20000]...)
	}
	all["what forgets its window"] = gzipOf(t, mixed, 6)
	all["two members"] = append(gzipOf(t, mixed, 6), gzipOf(t, sampleText(200000), 1)...)
	return all
}

func TestDecodedAheadFromAnyBlockAreTheSameBytes(t *testing.T) {
	narrowed, kept := false, false
	for name, b := range aheadInputs(t) {
		t.Run(name, func(t *testing.T) {
			plain, all := blocks(t, b)
			for i, block := range all {
				if len(all) > 30 && i%5 != 0 {
					continue
				}
				rest := len(plain) - block.at
				for _, n := range []int{rest / 3, rest * 4 / 5, rest + 1} {
					decodeAhead(t, b, plain, block, n, &narrowed, &kept)
				}
			}
		})
	}
	if !narrowed || !kept {
		t.Errorf("the window was forgotten: %v, and not: %v: the cases do not tell", narrowed, kept)
	}
}

// decodeAhead decodes n bytes or the rest of the stream, gives the window, as far as it
// was used, and has a Gzip go on behind it.
func decodeAhead(t *testing.T, b, plain []byte, from block, n int, narrowed, kept *bool) {
	t.Helper()
	a := aheadOf(b, int(from.bit/8), 10000)
	a.Start(from.bit)
	w := new(Window)
	a.Track(w, 0)
	for !a.Ended() && a.Len() < n {
		if err := a.Decode(min(a.Len()+20000, n)); err != nil {
			t.Fatalf("at bit %d: %v", from.bit, err)
		}
		if a.Len() >= WindowSize {
			a.Untrack()
		}
	}
	a.Untrack()
	*narrowed, *kept = *narrowed || a.narrow, *kept || !a.narrow && a.Len() > 3*WindowSize
	have := min(from.at-from.member, WindowSize)
	copy(w.Bytes[WindowSize-have:], plain[from.at-have:from.at])
	w.Sparse()
	a.SetWindow(w.Bytes[:])
	got := make([]byte, a.Len())
	for at := 0; at < len(got); {
		at += a.Copy(got[at:min(at+7001, len(got))], at)
	}
	if !bytes.HasPrefix(plain[from.at:], got) {
		t.Fatalf("at bit %d: other bytes", from.bit)
	}

	g := aheadOf(b, 0, len(b)).Gzip
	o := Output{Dst: make([]byte, len(plain)+1+OutSlack), Limit: len(plain) + 1}
	g.PauseAt = from.bit
	g.Start(true)
	if err := g.Decode(&o); err != nil || g.Bit() != from.bit {
		t.Fatalf("at bit %d of %d: %v", g.Bit(), from.bit, err)
	}
	if end := a.MemberEnd(); end == nil {
		g.AddPlain(got)
	} else {
		g.AddPlain(got[:end.Out])
		if err := g.EndMember(end, int64(from.at+end.Out)); err != nil {
			t.Fatalf("the member of bit %d: %v", from.bit, err)
		}
		other := *end
		other.crc ^= 1
		if err := g.EndMember(&other, int64(from.at+end.Out)); !errors.Is(err, ErrChecksum) {
			t.Fatalf("another checksum: %v", err)
		}
	}
	o.Out += copy(o.Dst[o.Out:], got)
	g.Adopt(a, int64(from.at))
	g.In.Pos, g.PauseAt = int(a.In.At)+a.In.Pos, 0
	err := g.Decode(&o)
	if !errors.Is(err, io.EOF) || !bytes.Equal(o.Dst[:o.Out], plain) {
		t.Fatalf("adopted at bit %d: %v, %d bytes of %d", from.bit, err, o.Out, len(plain))
	}
}

// A hostile stream is full of blocks without content: what was decoded before them is not
// looked at for each.
func TestABlockWithoutContentCostsLittleWhateverWasDecodedBefore(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	letters := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = 'a' + byte(r.IntN(26))
		}
		return b
	}
	const empty = 100_000
	var took [2]time.Duration
	for i, n := range []int{1000, WindowSize - 100} {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		first := letters(40000)
		for _, part := range [][]byte{first, append(bytes.Clone(first[len(first)-300:]), letters(n)...)} {
			if _, err := w.Write(part); err != nil {
				t.Fatal(err)
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		b.WriteString(strings.Repeat("\x00\x00\x00\xff\xff", empty))
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		_, all := blocks(t, b.Bytes())
		from := slices.IndexFunc(all, func(b block) bool { return b.at == len(first) })
		a := aheadOf(b.Bytes(), 0, b.Len())
		for try := range 3 {
			a.Start(all[from].bit)
			a.PauseAt = all[from].bit + 1
			calls, start := 0, time.Now()
			for ; !a.Ended(); calls++ {
				if err := a.Decode(a.Len() + 1<<20); err != nil {
					t.Fatal(err)
				}
				a.PauseAt = a.Bit() + 1
			}
			if calls < empty {
				t.Fatalf("%d calls", calls)
			}
			if d := time.Since(start); try == 0 || d < took[i] {
				took[i] = d
			}
		}
	}
	if took[1] > 4*took[0]+20*time.Millisecond {
		t.Errorf("%v with a window of bytes before them, %v without", took[1], took[0])
	}
}

func TestEveryBlockWithDynamicCodesIsFoundUnlessItIsTheLast(t *testing.T) {
	found := 0
	for name, b := range aheadInputs(t) {
		t.Run(name, func(t *testing.T) {
			_, all := blocks(t, b)
			padded := append(bytes.Clone(b), make([]byte, InSlack)...)
			var f BlockFinder
			for i, block := range all {
				bit := int(block.bit)
				if load(padded, bit)&7 != 4 {
					continue
				}
				found++
				from := max(bit-100, 0)
				if i > 0 {
					from = max(from, int(all[i-1].bit)+1)
				}
				if got := f.Next(padded, len(b), from, bit+1); got != bit {
					t.Errorf("from bit %d: found %d, there is one at %d", from, got, bit)
				}
				a := aheadOf(b, bit/8, 3000)
				a.Start(block.bit)
				if !a.MayBeBlock(&f) {
					t.Errorf("bit %d is said not to be a block", bit)
				}
			}
		})
	}
	if found < 100 {
		t.Errorf("the cases have %d such blocks", found)
	}
}

func TestNoBlockIsFoundWhereNoneIs(t *testing.T) {
	noise := append(plainInputs()["noise"], make([]byte, InSlack)...)
	end := len(noise) - InSlack
	var f BlockFinder
	if bit := f.Next(noise, end, 0, end*8); bit >= 0 {
		t.Errorf("noise has a block at bit %d", bit)
	}
	// A header that the end cuts off is none.
	b := gzipOf(t, sampleText(100<<10), 6)
	_, all := blocks(t, b)
	padded := append(bytes.Clone(b), make([]byte, InSlack)...)
	bit := int(all[1].bit)
	for _, n := range []int{1, 2, 10, 20} {
		if got := f.Next(padded, bit/8+n, bit, bit+1); got >= 0 {
			t.Errorf("a block of %d bytes is found at bit %d", n, got)
		}
	}
}

// FuzzAhead begins anywhere in anything: what it gives is of no account, but it comes to
// an end, within bounds.
func FuzzAhead(f *testing.F) {
	for _, plain := range plainInputs() {
		b := gzipOf(f, plain[:min(len(plain), 40000)], 6)
		_, all := blocks(f, b)
		f.Add(b, all[len(all)/2].bit)
	}
	f.Fuzz(func(t *testing.T, b []byte, bit int64) {
		if bit < 0 || bit/8 >= int64(len(b)) {
			return
		}
		var finder BlockFinder
		padded := append(bytes.Clone(b), make([]byte, InSlack)...)
		if got := finder.Next(padded, len(b), int(bit), len(b)*8); got >= 0 && got < int(bit) {
			t.Fatalf("from bit %d: found %d", bit, got)
		}
		a := aheadOf(b, int(bit/8), 1000)
		a.Start(bit)
		var err error
		for err == nil && !a.Ended() && a.Len() < 1<<20 {
			err = a.Decode(a.Len() + 5000)
		}
		a.SetWindow(make([]byte, WindowSize))
		if got := make([]byte, a.Len()+10); a.Copy(got, 0) != a.Len() {
			t.Fatalf("not all of %d bytes", a.Len())
		}
	})
}
