package layer

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

const (
	mtRaw  = "application/vnd.oci.image.layer.v1.tar"
	mtGzip = mtRaw + "+gzip"
	mtZstd = mtRaw + "+zstd"
)

// storedLayer writes a layer's stored bytes to a file.
func storedLayer(t testing.TB, mt string, stored, plain []byte) Source {
	t.Helper()
	name := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(name, stored, 0o644); err != nil {
		t.Fatal(err)
	}
	return Source{
		Digest: digest.FromBytes(stored), DiffID: digest.FromBytes(plain), Size: int64(len(stored)), MediaType: mt,
		Open: func() (*os.File, error) { return os.Open(name) },
	}
}

// indexed is a layer and its index, which went through its file form.
type indexed struct {
	src  Source
	ix   *blobIndex
	side string // the side file's path, if there is one
	raw  []byte // the index's file form
}

// indexSource builds the index of src and checks what scan was given.
func indexSource(t testing.TB, src Source) (indexed, error) {
	t.Helper()
	f, err := src.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	in := indexed{src: src}
	h := sha256.New()
	side := func() (*os.File, error) {
		in.side = filepath.Join(t.TempDir(), "side")
		return os.Create(in.side)
	}
	shared := newSharedWork(1, 3)
	defer shared.close()
	scan := func(r io.Reader) error { _, err := io.Copy(h, r); return err }
	ix, err := buildBlobIndex(context.Background(), f, src, passOptions{side: side, scan: scan, shared: shared})
	if err != nil {
		return in, err
	}
	if got := digest.NewDigest(digest.SHA256, h); got != src.DiffID {
		t.Errorf("scan was given a stream of %s, want %s", got, src.DiffID)
	}
	if ix.usesSide() != (in.side != "") {
		t.Errorf("usesSide is %v, the side file is %q", ix.usesSide(), in.side)
	}
	var b bytes.Buffer
	if err := ix.encode(&b); err != nil {
		t.Fatal(err)
	}
	in.raw = b.Bytes()
	if in.ix, err = decodeBlobIndex(in.raw); err != nil {
		t.Fatal(err)
	}
	return in, nil
}

// open opens the layer by its index.
func (in indexed) open(t testing.TB, cache *spanCache) Blob {
	t.Helper()
	b, err := in.tryOpen(cache)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (in indexed) tryOpen(cache *spanCache) (Blob, error) {
	var f *os.File
	var err error
	if in.side != "" {
		f, err = os.Open(in.side)
	} else {
		f, err = in.src.Open()
	}
	if err != nil {
		return nil, err
	}
	return openBlob(f, in.src, in.ix, cache)
}

// mixed is n bytes as layers have them: text, zeros, repeats near and far, noise.
func mixed(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	out := make([]byte, 0, n+4096)
	for len(out) < n {
		size := 1 + r.IntN(3000)
		switch r.IntN(8) {
		case 0:
			for range size {
				out = append(out, byte(r.Uint32()))
			}
		case 1:
			out = append(out, make([]byte, size)...)
		case 2, 3:
			if len(out) > 0 {
				at := max(len(out)-1-r.IntN(60000), 0)
				for i := range size {
					out = append(out, out[at+i])
				}
			}
		default:
			for range size {
				out = append(out, "etaoin shrdlu\n(){}=.,/0123"[min(r.IntN(26), r.IntN(26))])
			}
		}
	}
	return out[:n]
}

func gz(t testing.TB, p []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// gzMembers compresses p as members of size plain bytes.
func gzMembers(t testing.TB, p []byte, size int) []byte {
	t.Helper()
	var out []byte
	for len(p) > 0 {
		n := min(size, len(p))
		out = append(out, gz(t, p[:n], 6)...)
		p = p[n:]
	}
	return out
}

// zst compresses p as one frame, written as a stream: without its size.
func zst(t testing.TB, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithZeroFrames(true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// zstFrames compresses p as frames of size plain bytes.
func zstFrames(t testing.TB, p []byte, size int) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for len(p) > 0 {
		n := min(size, len(p))
		out = w.EncodeAll(p[:n], out)
		p = p[n:]
	}
	return out
}

// written compresses p with a BlobWriter.
func written(t testing.TB, c Compression, p []byte) ([]byte, BlobResult) {
	t.Helper()
	var b bytes.Buffer
	w := NewBlobWriter(&b, c)
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	res, err := w.Result()
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), res
}

// mustEqualAt reads at random places and compares.
func mustEqualAt(t *testing.T, b io.ReaderAt, want []byte, seed uint64, times int) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 3))
	for range times {
		off := r.IntN(len(want) + 1)
		p := make([]byte, 1+r.IntN(200<<10))
		n, err := b.ReadAt(p, int64(off))
		wantN := min(len(p), len(want)-off)
		if n != wantN || !bytes.Equal(p[:n], want[off:off+n]) {
			t.Fatalf("read of %d bytes at %d: got %d (%v), or wrong ones", len(p), off, n, err)
		}
		if short := n < len(p); short != errors.Is(err, io.EOF) && !(err == nil && !short) {
			t.Fatalf("read of %d bytes at %d: %d, %v", len(p), off, n, err)
		}
	}
}
