package layer

import (
	"bytes"
	"compress/flate"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
)

// layerForms are stored forms of one plain stream; with -short, one of each kind.
func layerForms(t testing.TB, plain []byte) map[string]Source {
	skip := append([]byte{0x5a, 0x2a, 0x4d, 0x18, 5, 0, 0, 0}, "table"...)
	half := len(plain) / 2
	type form struct {
		mt   string
		make func() []byte
	}
	forms := map[string]form{
		"plain tar":             {mtRaw, func() []byte { return plain }},
		"gzip of level 6":       {mtGzip, func() []byte { return gz(t, plain, 6) }},
		"gzip of short members": {mtGzip, func() []byte { return gzMembers(t, plain, 50<<10) }},
		"zstd of frames":        {mtZstd, func() []byte { return zstFrames(t, plain, 700<<10) }},
	}
	if !testing.Short() {
		maps.Copy(forms, map[string]form{
			"gzip of level 1":             {mtGzip, func() []byte { return gz(t, plain, 1) }},
			"gzip of level 9":             {mtGzip, func() []byte { return gz(t, plain, 9) }},
			"gzip of stored blocks":       {mtGzip, func() []byte { return gz(t, plain, flate.NoCompression) }},
			"gzip of Huffman codes alone": {mtGzip, func() []byte { return gz(t, plain, flate.HuffmanOnly) }},
			"gzip of long members":        {mtGzip, func() []byte { return gzMembers(t, plain, 3<<20) }},
			"gzip with empty members":     {mtGzip, func() []byte { return slices.Concat(gz(t, nil, 6), gz(t, plain, 6), gz(t, nil, 6)) }},
			"gzip with zeros behind it":   {mtGzip, func() []byte { return append(gz(t, plain, 6), make([]byte, 70000)...) }},
			"zstd of one long frame":      {mtZstd, func() []byte { return zst(t, plain) }},
			"zstd of short frames":        {mtZstd, func() []byte { return zstFrames(t, plain, 30<<10) }},
			"zstd of frames and skippable ones": {mtZstd, func() []byte {
				return slices.Concat(skip, zstFrames(t, plain[:half], 300<<10), skip, zstFrames(t, plain[half:], 300<<10))
			}},
		})
		for _, c := range []Compression{CompressNone, CompressGzip, CompressZstd} {
			forms["written as "+c.String()] = form{[]string{mtRaw, mtGzip, mtZstd}[c], func() []byte {
				stored, _ := written(t, c, plain)
				return stored
			}}
		}
	}
	out := make(map[string]Source)
	for name, f := range forms {
		out[name] = storedLayer(t, f.mt, f.make(), plain)
	}
	return out
}

func TestRandomReadsOfEveryStoredFormGiveThePlainStream(t *testing.T) {
	plain := mixed(1, 9<<20)
	for name, src := range layerForms(t, plain) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in, err := indexSource(t, src)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d bytes stored, %d spans, %d bytes of index (%.2f %%)", src.Size, in.ix.numSpans(), len(in.raw),
				100*float64(len(in.raw))/float64(src.Size))
			for _, size := range []int64{0, 5 << 20, 64 << 20} {
				b := in.open(t, newSpanCache(size))
				if b.Size() != int64(len(plain)) {
					t.Fatalf("size %d, want %d", b.Size(), len(plain))
				}
				mustEqualAt(t, b, plain, uint64(size), 60)
				if got, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size())); err != nil || !bytes.Equal(got, plain) {
					t.Fatalf("read in order: %d bytes, %v", len(got), err)
				}
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestConcurrentReadersShareSpansAndGetTheRightBytes(t *testing.T) {
	plain := mixed(2, 6<<20)
	in, err := indexSource(t, storedLayer(t, mtGzip, gz(t, plain, 6), plain))
	if err != nil {
		t.Fatal(err)
	}
	cache := newSpanCache(3 << 20)
	b := in.open(t, cache)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { mustEqualAt(t, b, plain, uint64(i), 80) })
	}
	wg.Wait()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if len(cache.ring) != 0 {
		t.Errorf("%d spans are left of a closed blob", len(cache.ring))
	}
}

func TestEmptyLayersAreReadAsNothing(t *testing.T) {
	for name, src := range map[string]Source{
		"plain":           storedLayer(t, mtRaw, nil, nil),
		"gzip":            storedLayer(t, mtGzip, gz(t, nil, 6), nil),
		"gzip, twice":     storedLayer(t, mtGzip, append(gz(t, nil, 6), gz(t, nil, 6)...), nil),
		"zstd":            storedLayer(t, mtZstd, zst(t, nil), nil),
		"zstd, skippable": storedLayer(t, mtZstd, []byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, nil),
	} {
		t.Run(name, func(t *testing.T) {
			in, err := indexSource(t, src)
			if err != nil {
				t.Fatal(err)
			}
			b := in.open(t, newSpanCache(0))
			defer b.Close()
			if n, err := b.ReadAt(make([]byte, 1), 0); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("got %d, %v", n, err)
			}
		})
	}
}

func TestMalformedLayersAreToldApart(t *testing.T) {
	plain := mixed(3, 3<<20)
	packed, frames, long := gz(t, plain, 6), zstFrames(t, plain, 1<<20), zst(t, append(plain, plain...))
	flip := func(b []byte, at int) []byte { b = bytes.Clone(b); b[at] ^= 0x10; return b }
	good := func(mt string, b []byte) Source { return storedLayer(t, mt, b, plain) }
	other := func(src Source, f func(s *Source)) Source { f(&src); return src }
	for _, c := range []struct {
		name string
		src  Source
		want error
	}{
		{"a wrong digest", other(good(mtGzip, packed), func(s *Source) { s.Digest = digest.FromString("x") }), ErrDigest},
		{"a wrong size", other(good(mtGzip, packed), func(s *Source) { s.Size++ }), ErrDigest},
		{"a negative size", other(good(mtGzip, packed), func(s *Source) { s.Size = -1 }), ErrDigest},
		{"a wrong diffID", other(good(mtGzip, packed), func(s *Source) { s.DiffID = digest.FromString("x") }), ErrDiffID},
		{"a wrong diffID of a plain tar", other(good(mtRaw, plain), func(s *Source) { s.DiffID = digest.FromString("x") }), ErrDiffID},
		{"a wrong diffID of zstd", other(good(mtZstd, frames), func(s *Source) { s.DiffID = digest.FromString("x") }), ErrDiffID},
		{"a digest that is none", other(good(mtGzip, packed), func(s *Source) { s.Digest = "sha256:x" }), ErrDigest},
		{"a digest of another kind", other(good(mtGzip, packed), func(s *Source) { s.Digest = digest.Digest("sha512:" + strings.Repeat("0", 128)) }), ErrUnsupported},
		{"an unknown media type", other(good(mtGzip, packed), func(s *Source) { s.MediaType = mtRaw + "+bzip2" }), ErrUnsupported},
		{"garbled and of a wrong digest", other(good(mtGzip, flip(packed, 1<<20)), func(s *Source) { s.Digest = digest.FromBytes(packed) }), ErrDigest},
		{"garbled gzip", good(mtGzip, flip(packed, 1<<20)), ErrFormat},
		{"a garbled gzip header", good(mtGzip, flip(packed, 0)), ErrFormat},
		{"a garbled gzip CRC", good(mtGzip, flip(packed, len(packed)-6)), ErrFormat},
		{"cut gzip", good(mtGzip, packed[:len(packed)/2]), ErrFormat},
		{"gzip without its last byte", good(mtGzip, packed[:len(packed)-1]), ErrFormat},
		{"gzip with garbage behind it", good(mtGzip, append(bytes.Clone(packed), "junk"...)), ErrFormat},
		{"nothing as gzip", good(mtGzip, nil), ErrFormat},
		{"plain tar as gzip", good(mtGzip, plain), ErrFormat},
		{"gzip as zstd", good(mtZstd, packed), ErrFormat},
		{"garbled zstd", good(mtZstd, flip(frames, len(frames)/2)), ErrFormat},
		{"cut zstd", good(mtZstd, frames[:len(frames)/2]), ErrFormat},
		{"a garbled long zstd frame", storedLayer(t, mtZstd, flip(long, len(long)/2), nil), ErrFormat},
		{"a cut long zstd frame", storedLayer(t, mtZstd, long[:len(long)/2], nil), ErrFormat},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := indexSource(t, c.src); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestALongZstdFrameNeedsASideFile(t *testing.T) {
	plain := mixed(4, 6<<20)
	src := storedLayer(t, mtZstd, zst(t, plain), plain)
	f, err := src.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := buildBlobIndex(t.Context(), f, src, passOptions{shared: testShared(t)}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("without one: %v", err)
	}
	full := func() (*os.File, error) { return os.OpenFile("/dev/full", os.O_WRONLY, 0) }
	if _, err := buildBlobIndex(t.Context(), f, src, passOptions{side: full, shared: testShared(t)}); !errors.Is(err, errSide) || errors.Is(err, ErrFormat) {
		t.Errorf("with one that cannot be written: %v", err)
	}
}

func TestIndexingStopsWithItsContext(t *testing.T) {
	plain := mixed(5, 8<<20)
	for name, src := range layerForms(t, plain) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			why := errors.New("enough")
			f, err := src.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			_, err = buildBlobIndex(ctx, f, src, passOptions{
				shared: testShared(t),
				side:   func() (*os.File, error) { return os.Create(t.TempDir() + "/side") },
				scan:   func(r io.Reader) error { cancel(why); _, err := io.Copy(io.Discard, r); return err },
			})
			if !errors.Is(err, why) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestScanMayStopEarlyOrFail(t *testing.T) {
	plain := mixed(6, 4<<20)
	src := storedLayer(t, mtGzip, gz(t, plain, 6), plain)
	f, err := src.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var told int64
	if _, err := buildBlobIndex(t.Context(), f, src, passOptions{
		scan: func(io.Reader) error { return nil }, progress: func(n int64) { told += n }, shared: testShared(t),
	}); err != nil {
		t.Error(err)
	}
	if told != src.Size {
		t.Errorf("progress of %d bytes, want %d", told, src.Size)
	}
	bad := errors.New("bad entry")
	fail := passOptions{scan: func(io.Reader) error { return bad }, shared: testShared(t)}
	if _, err := buildBlobIndex(t.Context(), f, src, fail); !errors.Is(err, bad) {
		t.Errorf("got %v", err)
	}
	src.Digest = digest.FromString("x")
	if _, err := buildBlobIndex(t.Context(), f, src, fail); !errors.Is(err, ErrDigest) {
		t.Errorf("the digest's error must win, got %v", err)
	}
}

// Every block of the file is damaged in turn: what is read is right or an error.
func TestABitFlippedAfterIndexingIsFoundAndNeverGivesWrongData(t *testing.T) {
	plain := mixed(7, 5<<20)
	for name, src := range layerForms(t, plain) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in, err := indexSource(t, src)
			if err != nil {
				t.Fatal(err)
			}
			path := in.side
			if path == "" {
				f, err := src.Open()
				if err != nil {
					t.Fatal(err)
				}
				path = f.Name()
				f.Close()
			}
			stored, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			found := 0
			for at := 100; at < len(stored); at += 150_000 {
				damaged := bytes.Clone(stored)
				damaged[at] ^= 4
				if err := os.WriteFile(path, damaged, 0o644); err != nil {
					t.Fatal(err)
				}
				b := in.open(t, newSpanCache(8<<20))
				p := make([]byte, 128<<10)
				for off := 0; off < len(plain); off += len(p) {
					n, err := b.ReadAt(p, int64(off))
					if !bytes.Equal(p[:n], plain[off:off+n]) {
						t.Fatalf("flip at %d: wrong data at %d", at, off)
					}
					if err == nil || errors.Is(err, io.EOF) {
						continue
					}
					found++
					if ce := (*CorruptError)(nil); !errors.As(err, &ce) || !errors.Is(err, errChanged) || ce.Blob != src.Digest {
						t.Fatalf("flip at %d: %v", at, err)
					}
				}
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			}
			if found == 0 {
				t.Error("nothing was found")
			}
			for _, size := range []int{0, len(stored) / 2, len(stored) - 1} {
				if err := os.WriteFile(path, stored[:size], 0o644); err != nil {
					t.Fatal(err)
				}
				if _, err := in.tryOpen(newSpanCache(0)); !errors.As(err, new(*CorruptError)) {
					t.Errorf("cut to %d: %v", size, err)
				}
			}
			// Cut while it is open.
			if err := os.WriteFile(path, stored, 0o644); err != nil {
				t.Fatal(err)
			}
			b := in.open(t, newSpanCache(0))
			defer b.Close()
			if err := os.Truncate(path, int64(len(stored)/2)); err != nil {
				t.Fatal(err)
			}
			if _, err := b.ReadAt(make([]byte, 10), int64(len(plain)-10)); !errors.As(err, new(*CorruptError)) {
				t.Errorf("cut while open: %v", err)
			}
		})
	}
}

func TestAPlainLayerCanBeSplicedOnceItWasRead(t *testing.T) {
	plain := mixed(8, 1<<20)
	in, err := indexSource(t, storedLayer(t, mtRaw, plain, plain))
	if err != nil {
		t.Fatal(err)
	}
	b := in.open(t, newSpanCache(0))
	defer b.Close()
	if _, _, _, ok := b.Direct(100, 10); ok {
		t.Error("spliced before it was verified")
	}
	if _, err := b.ReadAt(make([]byte, 10), 100); err != nil {
		t.Fatal(err)
	}
	fd, off, n, ok := b.Direct(100, 1<<20)
	if !ok || fd < 0 || off != 100 || n != blockSize-100 {
		t.Errorf("got fd %d, %d bytes at %d, %v", fd, n, off, ok)
	}
	for _, c := range [][2]int64{{-1, 10}, {1 << 20, 1}, {0, 0}, {blockSize, 10}} {
		if _, _, _, ok := b.Direct(c[0], int(c[1])); ok {
			t.Errorf("%d bytes at %d: ok", c[1], c[0])
		}
	}
}

func TestWhatIsDecodedIsReadyUntilItIsGivenUp(t *testing.T) {
	plain := mixed(8, 4<<20)
	for mt, stored := range map[string][]byte{mtGzip: gz(t, plain, 6), mtZstd: zstFrames(t, plain, 1<<20)} {
		in, err := indexSource(t, storedLayer(t, mt, stored, plain))
		if err != nil {
			t.Fatal(err)
		}
		b := in.open(t, newSpanCache(1<<20))
		defer b.Close()
		read := func(off int64, n int) {
			t.Helper()
			if _, err := b.ReadAt(make([]byte, n), off); err != nil {
				t.Fatal(err)
			}
		}
		want := func(ready bool, off int64, n int) {
			t.Helper()
			if b.Ready(off, n) != ready {
				t.Errorf("%s: %d bytes at %d: ready is %t", mt, n, off, !ready)
			}
		}
		want(false, 100, 10)
		read(100, 10)
		want(true, 100, 10)
		want(false, 100, 2<<20) // goes on in spans that nobody has read
		want(false, -1, 10)
		want(false, 100, 0)
		want(false, int64(len(plain))-5, 10)
		for off := int64(1 << 20); off < int64(len(plain)); off += 1000 {
			read(off, 10)
		}
		want(false, 100, 10)
		want(true, int64(len(plain))/1000*1000-1000, 10)
	}
}

func TestACachedReadAllocatesNothing(t *testing.T) {
	plain := mixed(9, 2<<20)
	for _, mt := range []string{mtRaw, mtGzip, mtZstd} {
		stored := map[string][]byte{mtRaw: plain, mtGzip: gz(t, plain, 6), mtZstd: zstFrames(t, plain, 1<<20)}[mt]
		in, err := indexSource(t, storedLayer(t, mt, stored, plain))
		if err != nil {
			t.Fatal(err)
		}
		b := in.open(t, newSpanCache(64<<20))
		defer b.Close()
		p := make([]byte, len(plain))
		if _, err := b.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		p = p[:128<<10]
		if n := testing.AllocsPerRun(100, func() {
			if _, err := b.ReadAt(p, 1<<20-100); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", mt, n)
		}
	}
}

func TestMediaTypesOfOCIAndDockerAreKnown(t *testing.T) {
	for mt, want := range map[string]Compression{
		mtRaw: CompressNone, mtGzip: CompressGzip, mtZstd: CompressZstd,
		"application/vnd.oci.image.layer.nondistributable.v1.tar":      CompressNone,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": CompressGzip,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": CompressZstd,
		"application/vnd.docker.image.rootfs.diff.tar":                 CompressNone,
		"application/vnd.docker.image.rootfs.diff.tar.gzip":            CompressGzip,
		"application/vnd.docker.image.rootfs.diff.tar.zstd":            CompressZstd,
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":    CompressGzip,
	} {
		if got, err := ParseMediaType(mt); err != nil || got != want {
			t.Errorf("%s: got %v, %v", mt, got, err)
		}
	}
	for _, mt := range []string{"", "x", mtRaw + "+bzip2", mtRaw + ".gzip", mtRaw + "+", mtGzip + "x", "application/vnd.docker.image.rootfs.diff.tar+gzip"} {
		if _, err := ParseMediaType(mt); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%q: %v", mt, err)
		}
	}
}
