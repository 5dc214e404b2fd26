package layer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// directBlob is a blob stored uncompressed: all of it can be spliced.
type directBlob struct {
	memBlob
	closed *int
}

func (b directBlob) Direct(off int64, n int) (fd int, fdOff int64, m int, ok bool) {
	return 99, off, n, true
}

func (b directBlob) Close() error { *b.closed++; return nil }

func lazyOf(b Blob) *lazyBlob {
	return &lazyBlob{
		open:    func() (*openedBlob, error) { return &openedBlob{Blob: b}, nil },
		abandon: func() error { return nil },
	}
}

// readyBlob is a layer of which the bytes before ready can be read at once.
type readyBlob struct {
	memBlob
	ready int64
}

func (b readyBlob) Ready(off int64, n int) bool { return off+int64(n) <= b.ready }

func TestAFileIsReadyWhereItsLayerIs(t *testing.T) {
	stream := tarOf(t, tReg("a", strings.Repeat("x", 1000)), tReg("b", "later"), tReg("empty", ""),
		tRaw(paxHeader('x', "GNU.sparse.size=100", "GNU.sparse.map=10,5,50,10", "GNU.sparse.numblocks=2")), tRaw(newRawTar("holes", '0', 15).with("0123456789abcde")))
	im, err := imageOf(t, false, stream)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path  string
		off   int64
		n     int
		until string // the layer is ready up to this
		ready bool
	}{
		{"a", 0, 1000, "later", true},
		{"a", 0, 1 << 20, "later", true}, // a file has no more
		{"a", 1000, 5, "", true},
		{"a", 0, 1000, "xxx", false},
		{"b", 0, 5, "later", false},
		{"b", 0, 5, "789a", true},
		{"empty", 0, 10, "", true},
		{"holes", 10, 5, "56", true},
		{"holes", 52, 8, "56", false},
		{"holes", 0, 100, "56", false},
		{"holes", 20, 5, "56", false}, // not looked at
	} {
		im.layers[0] = lazyOf(readyBlob{memBlob{bytes.NewReader(stream)}, int64(max(0, bytes.Index(stream, []byte(c.until))))})
		if _, err := im.layers[0].get(); err != nil {
			t.Fatal(err)
		}
		f := openPath(t, im, c.path)
		if got := f.Ready(c.off, c.n); got != c.ready {
			t.Errorf("%s: %d bytes at %d with the layer up to %q: ready is %t", c.path, c.n, c.off, c.until, got)
		}
	}
}

// What follows a file in its layer must not leak, whatever is asked for.
func TestDirectReadsStayInTheFile(t *testing.T) {
	stream := tarOf(t, tReg("a", strings.Repeat("x", 1000)), tReg("secret", "top"), tReg("empty", ""),
		tRaw(paxHeader('x', "GNU.sparse.size=100", "GNU.sparse.map=10,5,50,10", "GNU.sparse.numblocks=2")), tRaw(newRawTar("holes", '0', 15).with("0123456789abcde")))
	im, err := imageOf(t, false, stream)
	if err != nil {
		t.Fatal(err)
	}
	closed := 0
	im.layers[0] = lazyOf(directBlob{memBlob{bytes.NewReader(stream)}, &closed})
	holes := int64(bytes.Index(stream, []byte("0123456789abcde")))
	for _, c := range []struct {
		path  string
		off   int64
		n     int
		fdOff int64
		m     int
		ok    bool
	}{
		{"a", 0, 100, 512, 100, true},
		{"a", 990, 100, 1502, 10, true},
		{"a", 0, 1 << 20, 512, 1000, true},
		{"a", 1000, 1, 0, 0, false},
		{"a", -1, 5, 0, 0, false},
		{"a", 0, 0, 0, 0, false},
		{"empty", 0, 10, 0, 0, false},
		{"holes", 0, 100, 0, 0, false},
		{"holes", 10, 100, holes, 5, true},
		{"holes", 12, 2, holes + 2, 2, true},
		{"holes", 15, 5, 0, 0, false},
		{"holes", 52, 100, holes + 7, 8, true},
		{"holes", 60, 100, 0, 0, false},
		{"holes", 200, 1, 0, 0, false},
		{"holes", -20, 100, 0, 0, false},
	} {
		f := openPath(t, im, c.path)
		_, fdOff, m, ok := f.Direct(c.off, c.n)
		if ok != c.ok || ok && (fdOff != c.fdOff || m != c.m) {
			t.Errorf("%s %d+%d: %d+%d %t, want %d+%d %t", c.path, c.off, c.n, fdOff, m, ok, c.fdOff, c.m, c.ok)
		}
	}
	if got, want := readPath(t, im, "holes"), strings.Repeat("\x00", 10)+"01234"+strings.Repeat("\x00", 35)+"56789abcde"+strings.Repeat("\x00", 40); got != want {
		t.Errorf("holes: %q", got)
	}
	if err := im.layers[0].close(); err != nil || closed != 1 {
		t.Errorf("closed %d times, %v", closed, err)
	}
}

// sparseEntry is a file of size bytes of which the map (offset, length, …) has data.
func sparseEntry(name string, size int64, runs ...int64) tent {
	var stored int64
	var list []string
	for i, n := range runs {
		list = append(list, strconv.FormatInt(n, 10))
		stored += n * int64(i%2)
	}
	return tRaw(append(paxHeader('x', fmt.Sprintf("GNU.sparse.size=%d", size), "GNU.sparse.map="+strings.Join(list, ","),
		fmt.Sprintf("GNU.sparse.numblocks=%d", len(runs)/2)), newRawTar(name, '0', stored).with(strings.Repeat("d", int(stored)))...))
}

func TestHolesAreWhereTheLayerHasThem(t *testing.T) {
	const gib = 1 << 30
	many := make([]int64, 0, 2*maxCounted+200)
	for i := range int64(maxCounted + 100) {
		many = append(many, i*2*BlockSize, 1)
	}
	im, err := imageOf(t, false, tarOf(t,
		tReg("dense", strings.Repeat("x", 5000)), tReg("empty", ""),
		sparseEntry("hole", 5*gib),
		sparseEntry("two", 5*gib, 1<<20, 4, 3*gib, 4),
		sparseEntry("near", 40960, 4000, 200, 8191, 1, 8200, 10, 40950, 10),
		sparseEntry("long", 1<<63-1, 1<<63-5, 3),
		sparseEntry("many", 1<<30, many...),
	))
	if err != nil {
		t.Fatal(err)
	}
	type run struct{ start, end int64 }
	for _, c := range []struct {
		path   string
		blocks int64
		runs   []run
	}{
		{"dense", 10, []run{{0, 5000}}},
		{"empty", 0, nil},
		{"hole", 0, nil},
		{"two", 16, []run{{1 << 20, 1<<20 + BlockSize}, {3 * gib, 3*gib + BlockSize}}},
		{"near", 32, []run{{0, 12288}, {36864, 40960}}},
		{"long", 8, []run{{(1<<63 - 1) &^ (BlockSize - 1), 1<<63 - 1}}},
	} {
		ino, err := im.LookupPath(c.path)
		if err != nil {
			t.Fatal(err)
		}
		a, err := im.Attr(ino)
		if err != nil || a.Blocks != c.blocks {
			t.Errorf("%s has %d blocks, %v", c.path, a.Blocks, err)
		}
		f := openPath(t, im, c.path)
		var runs []run
		for off := int64(0); ; {
			start, end := f.Data(off)
			if start == f.Size() {
				break
			}
			runs = append(runs, run{start, end})
			if inside, to := f.Data(end - 1); inside != end-1 || to != end {
				t.Errorf("%s: from %d on data is at %d to %d", c.path, end-1, inside, to)
			}
			off = end
		}
		if !slices.Equal(runs, c.runs) {
			t.Errorf("%s has data at %v", c.path, runs)
		}
	}
	ino, err := im.LookupPath("many")
	if err != nil {
		t.Fatal(err)
	}
	if a, err := im.Attr(ino); err != nil || a.Blocks < maxCounted*8 || a.Blocks > (maxCounted+100)*8 {
		t.Errorf("many has %d blocks, %v", a.Blocks, err)
	}
}

func TestReadsKeepToReaderAt(t *testing.T) {
	stream := tarOf(t, tReg("a", "hello"), tReg("empty", ""))
	im, err := imageOf(t, false, stream)
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string]string{"a": "hello", "empty": ""} {
		f := openPath(t, im, path)
		for off := range int64(len(content) + 2) {
			for n := range len(content) + 3 {
				p := make([]byte, n)
				got, err := f.ReadAt(p, off)
				want := content[min(off, int64(len(content))):]
				want = want[:min(n, len(want))]
				if string(p[:got]) != want || (got < n) != errors.Is(err, io.EOF) {
					t.Errorf("%s: %d at %d: %q, %v", path, n, off, p[:got], err)
				}
			}
		}
		if _, err := f.ReadAt(make([]byte, 1), -1); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: negative offset: %v", path, err)
		}
	}
}

// A blob that ends before the tree says so is an error, not a short file.
func TestABlobThatIsTooShortIsAnError(t *testing.T) {
	stream := tarOf(t, tReg("a", "hello"))
	im, err := imageOf(t, false, stream)
	if err != nil {
		t.Fatal(err)
	}
	closed := 0
	im.layers[0] = lazyOf(directBlob{memBlob{bytes.NewReader(stream[:514])}, &closed})
	f, err := im.Open(2)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := f.ReadAt(make([]byte, 5), 0); n != 2 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%d, %v", n, err)
	}
}

func TestALayerThatDoesNotOpenFailsEveryRead(t *testing.T) {
	broken := errors.New("broken")
	opens, abandoned := 0, 0
	b := &lazyBlob{
		open:    func() (*openedBlob, error) { opens++; return nil, broken },
		abandon: func() error { abandoned++; return nil },
	}
	for range 3 {
		if _, err := b.readFull(make([]byte, 1), 0); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
	}
	if _, _, _, ok := b.direct(0, 1); ok {
		t.Error("direct")
	}
	if err := errors.Join(b.close(), b.close()); err != nil {
		t.Error(err)
	}
	if _, err := b.readFull(make([]byte, 1), 0); !errors.Is(err, errClosed) {
		t.Errorf("after close: %v", err)
	}
	if opens != 1 || abandoned != 0 {
		t.Errorf("%d opens, %d abandoned", opens, abandoned)
	}
	b = &lazyBlob{abandon: func() error { abandoned++; return nil }}
	if err := errors.Join(b.close(), b.close()); err != nil || abandoned != 1 {
		t.Errorf("%d abandoned, %v", abandoned, err)
	}
}
