package layer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/umoci-mount/umoci-mount/layer/inflate"
)

func TestBrokenBlobIndexesAreToldApart(t *testing.T) {
	plain := mixed(20, 2<<20)
	in, err := indexSource(t, storedLayer(t, mtGzip, gz(t, plain, 6), plain))
	if err != nil {
		t.Fatal(err)
	}
	edit := func(f func(b []byte)) []byte { b := bytes.Clone(in.raw); f(b); sealIndex(b); return b }
	le := binary.LittleEndian
	for _, c := range []struct {
		name string
		b    []byte
		want error
	}{
		{"empty", nil, ErrMagic},
		{"another format", []byte("#!/bin/sh\n"), ErrMagic},
		{"cut in the header", in.raw[:100], ErrChecksum},
		{"cut by a byte", in.raw[:len(in.raw)-1], ErrChecksum},
		{"longer by a byte", append(bytes.Clone(in.raw), 0), ErrChecksum},
		{"a flipped bit in the header", flipped(in.raw, bhDigest), ErrChecksum},
		{"a flipped bit in a span", flipped(in.raw, blobHeaderSize+40), ErrChecksum},
		{"of the next version", edit(func(b []byte) { b[bhVersion]++ }), ErrVersion},
		{"with other blocks", edit(func(b []byte) { b[bhBlockLog]++ }), ErrVersion},
		{"of an unknown kind", edit(func(b []byte) { b[bhKind] = 77 }), ErrVersion},
		{"with one span too many", edit(func(b []byte) { b[bhSpans]++ }), ErrCorrupt},
		{"with too much resume data", edit(func(b []byte) { b[bhResume+6]++ }), ErrCorrupt},
		{"with a negative size", edit(func(b []byte) { b[bhDataSize+7] = 0x80 }), ErrCorrupt},
		{"with sizes that disagree", edit(func(b []byte) { b[bhStoredSize]++ }), ErrCorrupt},
		{"a plain one with spans", edit(func(b []byte) { b[bhKind] = byte(blobRaw) }), ErrCorrupt},
		{"with a first span that does not begin at 0", edit(func(b []byte) { b[blobHeaderSize+8] = 1 }), ErrCorrupt},
		{"with a span beyond the file", edit(func(b []byte) { le.PutUint64(b[blobHeaderSize+spanSize:], 1<<40) }), ErrCorrupt},
		{"with a span of negative length", edit(func(b []byte) { le.PutUint64(b[blobHeaderSize+spanSize+8:], 1<<40) }), ErrCorrupt},
		{"with resume data beyond the end", edit(func(b []byte) { le.PutUint64(b[blobHeaderSize+spanSize+16:], 1<<40) }), ErrCorrupt},
		{"with a last span too long", edit(func(b []byte) { le.PutUint64(b[bhPlainSize:], 1<<40) }), ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := decodeBlobIndex(c.b); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// sealIndex makes a changed index's sums and size right again, as far as it goes.
func sealIndex(b []byte) {
	if len(b) < blobHeaderSize {
		return
	}
	le := binary.LittleEndian
	body := b[blobHeaderSize:]
	if resume := le.Uint64(b[bhResume:]); resume <= uint64(len(body)) {
		body = body[:uint64(len(body))-resume]
	}
	le.PutUint64(b[bhFileSize:], uint64(len(b)))
	le.PutUint32(b[bhBodyCRC:], crc32.Checksum(body, castagnoli))
	le.PutUint32(b[bhHeaderCRC:], crc32.Checksum(b[:bhHeaderCRC], castagnoli))
}

// Every byte of the index is changed in turn: what is read by it is right, or an
// error.
func TestADamagedIndexNeverGivesWrongData(t *testing.T) {
	plain := mixed(21, 1<<20)
	for name, src := range map[string]Source{
		"gzip": storedLayer(t, mtGzip, gz(t, plain, 6), plain),
		"zstd": storedLayer(t, mtZstd, zstFrames(t, plain, 200<<10), plain),
	} {
		in, err := indexSource(t, src)
		if err != nil {
			t.Fatal(err)
		}
		resume := len(in.raw) - len(in.ix.resume)
		for i := 0; i < len(in.raw); i++ {
			if i > resume+500 && i%97 != 0 {
				continue // windows: each byte is under the same sum
			}
			if testing.Short() && i%8 != 0 {
				continue
			}
			b := flipped(in.raw, i)
			ix, err := decodeBlobIndex(b)
			if i < resume && err == nil {
				t.Fatalf("%s: byte %d: accepted", name, i)
			}
			if err == nil {
				readByIndex(t, src, ix, plain, i)
			}
		}
	}
}

// readByIndex reads all by an index and accepts errors, but no wrong data.
func readByIndex(t *testing.T, src Source, ix *blobIndex, plain []byte, at int) {
	t.Helper()
	f, err := src.Open()
	if err != nil {
		t.Fatal(err)
	}
	b, err := openBlob(f, src, ix, newSpanCache(1<<20))
	if err != nil {
		return
	}
	defer b.Close()
	p := make([]byte, 256<<10)
	failed := false
	for off := int64(0); off < b.Size(); off += int64(len(p)) {
		n, err := b.ReadAt(p, off)
		if !bytes.Equal(p[:n], plain[off:off+int64(n)]) {
			t.Fatalf("byte %d: wrong data at %d", at, off)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			failed = true
			if !errors.As(err, new(*CorruptError)) {
				t.Fatalf("byte %d: %v", at, err)
			}
		}
	}
	if !failed {
		t.Errorf("byte %d: not noticed", at)
	}
}

func TestAnIndexOfAnotherLayerIsRefused(t *testing.T) {
	plain := mixed(22, 100<<10)
	in, err := indexSource(t, storedLayer(t, mtGzip, gz(t, plain, 6), plain))
	if err != nil {
		t.Fatal(err)
	}
	other := in
	other.src.Digest = digest.FromString("x")
	if _, err := other.tryOpen(newSpanCache(0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another digest: %v", err)
	}
	other = in
	other.src.DiffID = digest.FromString("x")
	if _, err := other.tryOpen(newSpanCache(0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another diffID: %v", err)
	}
}

// The span of a long run of zeros is cut before it grows large.
func TestSpansOfHighlyCompressedDataAreBounded(t *testing.T) {
	plain := make([]byte, 64<<20)
	src := storedLayer(t, mtGzip, gz(t, plain, 9), plain)
	in, err := indexSource(t, src)
	if err != nil {
		t.Fatal(err)
	}
	for i := range in.ix.numSpans() {
		if n := in.ix.spanOut(i+1) - in.ix.spanOut(i); n > gzipSpanMost+gzipStep+inflate.OutSlack {
			t.Errorf("span %d has %d bytes", i, n)
		}
	}
	t.Logf("%d bytes stored, %d spans, an index of %d bytes", src.Size, in.ix.numSpans(), len(in.raw))
}

// sampleIndexes are index files of every kind.
func sampleIndexes(t testing.TB) map[string]indexed {
	plain := mixed(23, 600<<10)
	out := make(map[string]indexed)
	for name, src := range map[string]Source{
		"raw":  storedLayer(t, mtRaw, plain, plain),
		"gzip": storedLayer(t, mtGzip, gz(t, plain, 6), plain),
		"zstd": storedLayer(t, mtZstd, zstFrames(t, plain, 100<<10), plain),
	} {
		in, err := indexSource(t, src)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = in
	}
	return out
}

// FuzzDecodeBlobIndex reads layers by whatever index: an error or bytes, never
// more.
func FuzzDecodeBlobIndex(f *testing.F) {
	samples := sampleIndexes(f)
	for _, in := range samples {
		f.Add(in.raw)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for range 2 {
			ix, err := decodeBlobIndex(b)
			if err != nil {
				sealIndex(b)
				continue
			}
			for _, in := range samples {
				file, err := in.src.Open()
				if err != nil {
					t.Fatal(err)
				}
				forced := *ix // of this layer, so that reading gets further
				forced.digest, forced.diffID = in.ix.digest, in.ix.diffID
				blob, err := openBlob(file, in.src, &forced, newSpanCache(1<<20))
				if err != nil {
					continue
				}
				var p [1000]byte
				for off := int64(0); off < min(blob.Size(), 1<<20); off += 50000 {
					_, _ = blob.ReadAt(p[:], off)
				}
				if err := blob.Close(); err != nil {
					t.Error(err)
				}
			}
			break
		}
	})
}

// FuzzZstdBlob indexes whatever as a zstd layer. What is accepted must be what a
// decoder makes of the whole, and be read at random the same.
func FuzzZstdBlob(f *testing.F) {
	f.Add(zst(f, []byte("some text")))
	f.Add(zstFrames(f, mixed(24, 5000), 700))
	f.Add(append(zst(f, nil), 0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 'x'))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 3, 0x1b, 0, 0, 'a'})
	name := filepath.Join(f.TempDir(), "layer")
	f.Fuzz(func(t *testing.T, b []byte) {
		dec, err := zstdDecoder()
		if err != nil {
			t.Fatal(err)
		}
		plain, decErr := dec.DecodeAll(b, make([]byte, 0, 1<<20))
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
		src := Source{
			Digest: digest.FromBytes(b), DiffID: digest.FromBytes(plain), Size: int64(len(b)), MediaType: mtZstd,
			Open: func() (*os.File, error) { return os.Open(name) },
		}
		in, err := indexSource(t, src)
		if (err == nil) != (decErr == nil) {
			t.Fatalf("%x: %v; all at once: %v", b, err, decErr)
		}
		if err != nil {
			return
		}
		blob := in.open(t, newSpanCache(1<<20))
		defer blob.Close()
		got, err := io.ReadAll(io.NewSectionReader(blob, 0, blob.Size()))
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%x: %d bytes of %d, %v", b, len(got), len(plain), err)
		}
	})
}
