package layer

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"
)

// benchLayer is the gzip file named by GZ, else a layer that is made up.
func benchLayer(b *testing.B) (Source, int64) {
	b.Helper()
	name := os.Getenv("GZ")
	if name == "" {
		plain := mixed(1, 32<<20)
		return storedLayer(b, mtGzip, gz(b, plain, 6), plain), int64(len(plain))
	}
	stored, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(stored))
	if err != nil {
		b.Fatal(err)
	}
	h := sha256.New()
	n, err := io.Copy(h, z)
	if err != nil {
		b.Fatal(err)
	}
	return Source{
		Digest: digest.FromBytes(stored), DiffID: digest.NewDigest(digest.SHA256, h), Size: int64(len(stored)),
		MediaType: mtGzip, Open: func() (*os.File, error) { return os.Open(name) },
	}, n
}

// BenchmarkBuildBlobIndex indexes the layer named by GZ, or text that is made up, with
// that many processors said to be there. Its rate is of the plain stream.
func BenchmarkBuildBlobIndex(b *testing.B) {
	src, plain := benchLayer(b)
	f, err := src.Open()
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	scan := func(r io.Reader) error { _, err := scanTar(r); return err }
	if os.Getenv("GZ") == "" {
		scan = nil // not a tar
	}
	for _, cpus := range []int{1, 2, 4, 8} {
		b.Run(fmt.Sprintf("cpus=%d", cpus), func(b *testing.B) {
			b.SetBytes(plain)
			shared := newSharedWork(1, cpus)
			defer shared.close()
			for b.Loop() {
				ix, err := buildBlobIndex(b.Context(), f, src, passOptions{scan: scan, shared: shared})
				if err != nil {
					b.Fatal(err)
				}
				size := blobHeaderSize + len(ix.spans) + len(ix.states) + len(ix.resume)
				b.ReportMetric(100*float64(size)/float64(src.Size), "%index")
				b.ReportMetric(float64(ix.numSpans()), "spans")
			}
		})
	}
}

func BenchmarkReadAt(b *testing.B) {
	src, plain := benchLayer(b)
	in, err := indexSource(b, src)
	if err != nil {
		b.Fatal(err)
	}
	for _, size := range []int{4 << 10, 128 << 10} {
		p := make([]byte, size)
		run := func(name string, cache int64, next func(i int) int64) {
			b.Run(fmt.Sprintf("%s/%dK", name, size>>10), func(b *testing.B) {
				blob := in.open(b, newSpanCache(cache))
				defer blob.Close()
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if _, err := blob.ReadAt(p, next(i)); err != nil && err != io.EOF {
						b.Fatal(err)
					}
				}
			})
		}
		run("cached", 64<<20, func(int) int64 { return 1 << 20 })
		run("sequential", 32<<20, func(i int) int64 { return int64(i*size) % plain })
		r := rand.New(rand.NewPCG(1, 1))
		run("random", 8<<20, func(int) int64 { return r.Int64N(plain) })
	}
}

func BenchmarkBlobWriter(b *testing.B) {
	p := mixed(1, 16<<20)
	for _, c := range []Compression{CompressNone, CompressGzip, CompressZstd} {
		b.Run(c.String(), func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				w := NewBlobWriter(io.Discard, c)
				if _, err := w.Write(p); err != nil {
					b.Fatal(err)
				}
				if err := w.Close(); err != nil {
					b.Fatal(err)
				}
				res, err := w.Result()
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(100*float64(res.Size)/float64(res.PlainSize), "%size")
			}
		})
	}
}
