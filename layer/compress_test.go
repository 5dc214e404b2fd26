package layer

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	kgzip "github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
)

func TestAWrittenBlobIsDescribedByItsResultAndReadByItsIndex(t *testing.T) {
	for _, c := range []Compression{CompressNone, CompressGzip, CompressZstd} {
		for _, size := range []int{0, 1, gzipMember, gzipMember + 1, 5 << 20} {
			plain := mixed(uint64(size), size)
			stored, res := written(t, c, plain)
			mt := []string{mtRaw, mtGzip, mtZstd}[c]
			src := storedLayer(t, mt, stored, plain)
			if res.Digest != src.Digest || res.DiffID != src.DiffID || res.Size != src.Size || res.PlainSize != int64(size) {
				t.Fatalf("%v, %d bytes: result %v %v %d %d", c, size, res.Digest, res.DiffID, res.Size, res.PlainSize)
			}
			ix, err := decodeBlobIndex(res.Index)
			if err != nil {
				t.Fatalf("%v, %d bytes: %v", c, size, err)
			}
			if limit := len(stored)/50 + 400; len(res.Index) > limit {
				t.Errorf("%v, %d bytes: an index of %d bytes for %d stored", c, size, len(res.Index), len(stored))
			}
			b := indexed{src: src, ix: ix}.open(t, newSpanCache(8<<20))
			got, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%v, %d bytes: read %d, %v", c, size, len(got), err)
			}
			mustEqualAt(t, b, plain, 5, 30)
			if err := b.Close(); err != nil {
				t.Error(err)
			}
			again, err := indexSource(t, src)
			if err != nil {
				t.Fatal(err)
			}
			if c == CompressNone && !bytes.Equal(again.raw, res.Index) {
				t.Errorf("%v, %d bytes: another index than from indexing", c, size)
			}
		}
	}
}

func TestOutputDependsOnInputAlone(t *testing.T) {
	plain := mixed(11, 7<<20)
	for _, c := range []Compression{CompressGzip, CompressZstd} {
		var first []byte
		for _, procs := range []int{1, 2, 5} {
			before := runtime.GOMAXPROCS(procs)
			var b bytes.Buffer
			w := NewBlobWriter(&b, c)
			for p, n := plain, procs*1000+1; len(p) > 0; p = p[min(n, len(p)):] {
				if _, err := w.Write(p[:min(n, len(p))]); err != nil {
					t.Fatal(err)
				}
			}
			err := w.Close()
			runtime.GOMAXPROCS(before)
			if err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = b.Bytes()
			}
			if !bytes.Equal(first, b.Bytes()) {
				t.Errorf("%v on %d cores: other bytes", c, procs)
			}
		}
	}
}

func TestOtherToolsReadWhatIsWritten(t *testing.T) {
	plain := mixed(12, 3<<20)
	for c, tool := range map[Compression]string{CompressGzip: "gzip", CompressZstd: "zstd"} {
		stored, _ := written(t, c, plain)
		if c == CompressGzip {
			z, err := gzip.NewReader(bytes.NewReader(stored))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("compress/gzip: %d bytes, %v", len(got), err)
			}
		}
		if _, err := exec.LookPath(tool); err != nil {
			t.Logf("no %s here", tool)
			continue
		}
		cmd := exec.CommandContext(t.Context(), tool, "-dc")
		cmd.Stdin = bytes.NewReader(stored)
		if got, err := cmd.Output(); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %d bytes, %v", tool, len(got), err)
		}
	}
}

// Against one member of the same compressor, on this module's sources.
func TestIndependentMembersCostLessThanTwoPercent(t *testing.T) {
	names, err := filepath.Glob("../*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	var plain []byte
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		plain = append(plain, b...)
	}
	var one bytes.Buffer
	z := kgzip.NewWriter(&one)
	if _, err := z.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	stored, _ := written(t, CompressGzip, plain)
	t.Logf("%d bytes plain, %d in one member, %d in ours", len(plain), one.Len(), len(stored))
	if len(stored) > one.Len()+one.Len()/50 {
		t.Errorf("%d bytes, one member has %d", len(stored), one.Len())
	}
}

func TestAFailingWriterBelowIsReported(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	plain := mixed(14, 4<<20)
	for _, c := range []Compression{CompressNone, CompressGzip, CompressZstd} {
		w := NewBlobWriter(full, c)
		for range 100 {
			if _, err = w.Write(plain); err != nil {
				break
			}
		}
		if err == nil {
			t.Errorf("%v: no error while writing", c)
		}
		if err := w.Close(); err == nil {
			t.Errorf("%v: no error from Close", c)
		}
		if _, err := w.Result(); err == nil {
			t.Errorf("%v: a result", c)
		}
	}
}

func TestAnUnknownCompressionIsAnError(t *testing.T) {
	w := NewBlobWriter(io.Discard, CompressZstd+1)
	if _, err := w.Write(make([]byte, 100)); err != nil && !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
	if err := w.Close(); !errors.Is(err, ErrUnsupported) {
		t.Error(err)
	}
}

func TestAResultBeforeCloseIsAnError(t *testing.T) {
	w := NewBlobWriter(io.Discard, CompressGzip)
	if _, err := w.Result(); err == nil {
		t.Error("a result")
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("written after Close")
	}
	if res, err := w.Result(); err != nil || res.DiffID != digest.FromString("") {
		t.Errorf("%v, %v", res, err)
	}
}
