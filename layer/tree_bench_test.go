package layer

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
)

// bigStream is a layer of n files, a thousand to a directory.
func bigStream(n int) []byte {
	out := make([]byte, 0, (n+n/1000+4)*tarBlock)
	for i := range n {
		if i%1000 == 0 {
			out = append(out, newRawTar(fmt.Sprintf("dir%d/", i/1000), '5', 0).with("")...)
		}
		out = append(out, newRawTar(fmt.Sprintf("dir%d/file%08d.txt", i/1000, i%1000*100), '0', 0).with("")...)
	}
	return append(out, make([]byte, 2*tarBlock)...)
}

func bigImage(t testing.TB, n int) *Image {
	t.Helper()
	im, err := imageOf(t, false, bigStream(n))
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func BenchmarkLookup(b *testing.B) {
	im := bigImage(b, 100_000)
	dir, err := im.LookupPath("dir50")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := im.Lookup(dir, "file00000300.txt"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAttr(b *testing.B) {
	im := bigImage(b, 10_000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := im.Attr(77); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkScan's rate is of the plain stream: headers alone, then mostly data.
func BenchmarkScan(b *testing.B) {
	for name, stream := range map[string][]byte{
		"headers": bigStream(20_000),
		"data":    tarOf(b, tReg("a", strings.Repeat("x", 64<<20))),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(stream)))
			for b.Loop() {
				if _, err := scanTar(bytes.NewReader(stream)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkMergeMillion merges and encodes a million entries.
func BenchmarkMergeMillion(b *testing.B) {
	toc, err := scanTar(bytes.NewReader(bigStream(1_000_000)))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(len(toc.body)), "toc-bytes")
	b.ReportAllocs()
	for b.Loop() {
		m := newMerger(false)
		if err := m.apply(context.Background(), "0", toc); err != nil {
			b.Fatal(err)
		}
		f, err := os.CreateTemp(b.TempDir(), "tree")
		if err != nil {
			b.Fatal(err)
		}
		if err := encodeTree(m, f, [32]byte{}, 1); err != nil {
			b.Fatal(err)
		}
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
