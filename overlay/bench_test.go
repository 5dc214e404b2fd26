package overlay

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// The union's own cost of the requests that a walk over an image makes. Lower
// objects allocate nothing.
func BenchmarkRequests(b *testing.B) {
	lines := []string{"d d 755"}
	for i := range 1000 {
		lines = append(lines, fmt.Sprintf("f d/f%d 644 x", i))
	}
	fs, err := New(newMemLower(lines...), nil, Options{})
	if err != nil {
		b.Fatal(err)
	}
	dir, err := fs.Lookup(1, "d")
	if err != nil {
		b.Fatal(err)
	}
	file, err := fs.Lookup(dir.Ino, "f500")
	if err != nil {
		b.Fatal(err)
	}
	h, err := fs.Open(file.Ino, unix.O_RDONLY)
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	for _, bench := range []struct {
		name string
		run  func() error
	}{
		{"lookup", func() error { _, err := fs.Lookup(dir.Ino, "f501"); return err }},
		{"getattr", func() error { _, err := fs.GetAttr(file.Ino); return err }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := bench.run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	d, err := fs.OpenDir(dir.Ino)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("readdirplus of 1000", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for i := range 1002 {
				if _, ok, err := d.EntryName(i); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		}
	})
}
