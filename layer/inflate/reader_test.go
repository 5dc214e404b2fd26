package inflate

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"runtime"
	"testing"
	"time"

	kgzip "github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// feed makes a Gzip read from r in pieces of size bytes.
func feed(r io.Reader, size int) *Gzip {
	g := new(Gzip)
	buf := make([]byte, MinInput+maxGzipField+4+size+InSlack)
	g.In.Buf = buf
	g.Fill = func(in *Input) error {
		in.End = copy(buf, buf[in.Pos:in.End])
		in.Pos = 0
		n, err := io.ReadFull(r, buf[in.End:min(in.End+size, len(buf)-InSlack)])
		in.End += n
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			in.EOF, err = true, nil
		}
		return err
	}
	g.Start(true)
	return g
}

// pump decodes to the end, chunk bytes at a time, and hands every chunk to sink.
func pump(g *Gzip, chunk int, sink func([]byte)) error {
	o := Output{Dst: make([]byte, WindowSize+chunk+OutSlack)}
	for {
		keep := min(o.Out, WindowSize)
		copy(o.Dst, o.Dst[o.Out-keep:o.Out])
		o.Origin += int64(o.Out - keep)
		o.Out, o.Limit = keep, keep+chunk
		err := g.Decode(&o)
		sink(o.Dst[keep:o.Out])
		if err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}

// gunzip decodes b whole.
func gunzip(b []byte, piece, chunk int) ([]byte, error) {
	var out bytes.Buffer
	err := pump(feed(bytes.NewReader(b), piece), chunk, func(p []byte) { out.Write(p) })
	return out.Bytes(), err
}

// BenchmarkGunzip decodes the file named by GZ, or text that is made up. The rates
// are of the plain stream; cpuMB/s is by the thread's own time, which a busy
// machine disturbs less.
func BenchmarkGunzip(b *testing.B) {
	gz, plain := benchInput(b)
	run := func(name string, f func(r io.Reader) error) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(plain)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			start := threadTime(b)
			for b.Loop() {
				if err := f(bytes.NewReader(gz)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(plain)*float64(b.N)/1e6/(threadTime(b)-start).Seconds(), "cpuMB/s")
		})
	}
	run("this", func(r io.Reader) error { return pump(feed(r, 256<<10), 256<<10, func([]byte) {}) })
	run("klauspost", func(r io.Reader) error {
		z, err := kgzip.NewReader(r)
		if err != nil {
			return err
		}
		_, err = z.WriteTo(io.Discard)
		return err
	})
	run("stdlib", func(r io.Reader) error {
		z, err := gzip.NewReader(r)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, z)
		return err
	})
}

// threadTime is the processor time that the calling thread has used.
func threadTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchInput(b *testing.B) (gz []byte, plain int64) {
	if name := os.Getenv("GZ"); name != "" {
		gz, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		z, err := gzip.NewReader(bytes.NewReader(gz))
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, z)
		if err != nil {
			b.Fatal(err)
		}
		return gz, n
	}
	p := sampleText(8 << 20)
	return gzipOf(b, p, 6), int64(len(p))
}

func gzipOf(t testing.TB, p []byte, level int) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// sampleText is n bytes that compress like source code.
func sampleText(n int) []byte {
	words := []string{"func", "return", "(", ")", "{", "}", "\n\t", " := ", "error", "nil", "if err != nil ", "bytes", "offset", "inode", "\n\n// ", "the ", "of ", "a "}
	out := make([]byte, 0, n+16)
	for x := uint32(1); len(out) < n; {
		x = x*1664525 + 1013904223
		out = append(out, words[x>>16%uint32(len(words))]...)
		if x>>28 == 0 {
			out = append(out, byte('a'+x>>8%26), byte('a'+x>>12%26))
		}
	}
	return out[:n]
}
