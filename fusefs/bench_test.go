package fusefs

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// benchRaw is the server's methods over the standard tree, for counting
// allocations.
func benchRaw(b *testing.B) *ops {
	b.Helper()
	dir := b.TempDir()
	for _, d := range []string{"upper", "work"} {
		if err := unix.Mkdir(dir+"/"+d, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	fs, err := openUnion(dir, unix.Geteuid() != 0, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := fs.Close(); err != nil {
			b.Error(err)
		}
	})
	b.ReportAllocs()
	return newOps(fs, slog.New(slog.DiscardHandler), false)
}

func mustLookup(b *testing.B, o *ops, name string) uint64 {
	b.Helper()
	var out fuse.EntryOut
	h := header(1)
	if st := o.Lookup(nil, &h, name, &out); !st.Ok() || out.NodeId == 0 {
		b.Fatalf("%s: %v", name, st)
	}
	return out.NodeId
}

func mustCreate(b *testing.B, o *ops, name string, size int) (node, fh uint64) {
	b.Helper()
	var out fuse.CreateOut
	in := fuse.CreateIn{InHeader: header(1), Flags: unix.O_RDWR, Mode: 0o644}
	if st := o.Create(nil, &in, name, &out); !st.Ok() {
		b.Fatal(st)
	}
	if n, st := o.Write(nil, &fuse.WriteIn{Fh: out.Fh}, make([]byte, size)); int(n) != size || !st.Ok() {
		b.Fatal(st)
	}
	return out.NodeId, out.Fh
}

func BenchmarkLookup(b *testing.B) {
	for _, bb := range []struct{ name, file string }{{"lower", "hello"}, {"none", "nothing"}, {"upper", "made"}} {
		b.Run(bb.name, func(b *testing.B) {
			o := benchRaw(b)
			mustCreate(b, o, "made", 10)
			h := header(1)
			var out fuse.EntryOut
			for b.Loop() {
				if st := o.Lookup(nil, &h, bb.file, &out); !st.Ok() {
					b.Fatal(st)
				}
			}
		})
	}
}

func BenchmarkGetAttr(b *testing.B) {
	for _, upper := range []bool{false, true} {
		b.Run(map[bool]string{false: "lower", true: "upper"}[upper], func(b *testing.B) {
			o := benchRaw(b)
			node := mustLookup(b, o, "hello")
			if upper {
				node, _ = mustCreate(b, o, "made", 10)
			}
			in := fuse.GetAttrIn{InHeader: header(node)}
			var out fuse.AttrOut
			for b.Loop() {
				if st := o.GetAttr(nil, &in, &out); !st.Ok() {
					b.Fatal(st)
				}
			}
		})
	}
}

func BenchmarkRead4K(b *testing.B) {
	for _, upper := range []bool{false, true} {
		b.Run(map[bool]string{false: "lower", true: "upper"}[upper], func(b *testing.B) {
			o := benchRaw(b)
			var open fuse.OpenOut
			if st := o.Open(nil, &fuse.OpenIn{InHeader: header(mustLookup(b, o, "big"))}, &open); !st.Ok() {
				b.Fatal(st)
			}
			if upper {
				_, open.Fh = mustCreate(b, o, "made", 1<<20)
			}
			buf := make([]byte, 4096)
			in := fuse.ReadIn{Fh: open.Fh, Size: 4096, Offset: 8192}
			for b.Loop() {
				res, st := o.Read(nil, &in, buf)
				if !st.Ok() || res.Size() != 4096 {
					b.Fatal(st)
				}
				res.Done()
			}
		})
	}
}

func BenchmarkWrite4K(b *testing.B) {
	o := benchRaw(b)
	_, fh := mustCreate(b, o, "made", 4096)
	data := [][]byte{make([]byte, 4096)}
	in := fuse.WriteIn{Fh: fh, Size: 4096}
	for b.Loop() {
		if _, st := o.Writev(nil, &in, data); !st.Ok() {
			b.Fatal(st)
		}
	}
}

// BenchmarkReadDirPlus lists 1500 lower files; figures are per entry.
func BenchmarkReadDirPlus(b *testing.B) {
	o := benchRaw(b)
	node := mustLookup(b, o, "many")
	var open fuse.OpenOut
	if st := o.OpenDir(nil, &fuse.OpenIn{InHeader: header(node)}, &open); !st.Ok() {
		b.Fatal(st)
	}
	buf := make([]byte, 32<<10)
	for i := uint64(0); b.Loop(); {
		in := fuse.ReadIn{InHeader: header(node), Fh: open.Fh, Offset: i, Size: uint32(len(buf))}
		out := fuse.NewDirEntryList(buf, i)
		if st := o.ReadDirPlus(nil, &in, out); !st.Ok() {
			b.Fatal(st)
		}
		if i = out.Offset; len(out.Bytes()) == 0 {
			i = 0
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/200, "ns/entry")
}

// BenchmarkMountedRead reads 32 MiB of an upper file through the page cache of a
// mount, from an empty page cache, in reads of two sizes; small ones read ahead.
func BenchmarkMountedRead(b *testing.B) {
	const size = 32 << 20
	m := mount(b, rootOptions(false))
	mustWrite(b, m.path("file"), string(pattern(size)))
	for _, bb := range []struct {
		name string
		n    int
	}{{"64K", 64 << 10}, {"1M", 1 << 20}} {
		b.Run(bb.name, func(b *testing.B) {
			f, err := os.Open(m.path("file"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			buf := make([]byte, bb.n)
			b.SetBytes(size)
			for b.Loop() {
				if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
					b.Fatal(err)
				}
				for off := int64(0); off < size; off += int64(bb.n) {
					if _, err := f.ReadAt(buf, off); err != nil && !errors.Is(err, io.EOF) {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkMountedRequest is one request that nothing caches and that does next to
// nothing: what it costs to ask. Asleep is with processors left to sleep (latency.go).
func BenchmarkMountedRequest(b *testing.B) {
	for _, asleep := range []bool{false, true} {
		b.Run(map[bool]string{false: "awake", true: "asleep"}[asleep], func(b *testing.B) {
			opt := rootOptions(false)
			opt.Sleepy = asleep
			m := mount(b, opt)
			name := m.path("hello")
			var value [8]byte
			for b.Loop() {
				if _, err := unix.Getxattr(name, "user.nothing", value[:]); !errors.Is(err, unix.ENODATA) {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkMountedCreate makes, writes and closes small files.
func BenchmarkMountedCreate(b *testing.B) {
	for _, mode := range modes {
		b.Run(mode.name, func(b *testing.B) {
			m := mount(b, rootOptions(mode.passthrough))
			for i := 0; b.Loop(); i++ {
				f, err := os.Create(m.path(fmt.Sprintf("open.d/f%d", i)))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := f.WriteString("data"); err != nil {
					b.Fatal(err)
				}
				if err := f.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
