package overlay

import (
	"errors"
	"fmt"
	"os"
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

// benchLower looks one of BenchmarkChanges' lower files up.
func benchLower(fs *FS, i int) (Attr, error) {
	d, err := fs.Lookup(1, "d")
	if err != nil {
		return d, err
	}
	return fs.Lookup(d.Ino, fmt.Sprint("f", i%1000))
}

// The union's own cost of changes, on an upper in the test's temporary directory.
func BenchmarkChanges(b *testing.B) {
	lines := []string{"d d 755"}
	for i := range 1000 {
		lines = append(lines, fmt.Sprintf("f d/f%d 644 x", i))
	}
	for _, bench := range []struct {
		name    string
		prepare func(fs *FS) error
		run     func(fs *FS, i int) error
	}{
		{"create", nil, func(fs *FS, i int) error {
			h, _, err := fs.Create(1, fmt.Sprint("n", i), 0, 0o644, Caller{})
			if err != nil {
				return err
			}
			return h.Close()
		}},
		{"chmod", benchFile, func(fs *FS, i int) error {
			a, err := fs.Lookup(1, "x")
			if err != nil {
				return err
			}
			_, err = fs.SetAttr(a.Ino, SetAttr{Valid: SetMode, Mode: 0o600 | uint32(i&1)})
			return err
		}},
		{"chmod of a lower file", nil, func(fs *FS, i int) error {
			a, err := benchLower(fs, i)
			if err != nil {
				return err
			}
			_, err = fs.SetAttr(a.Ino, SetAttr{Valid: SetMode, Mode: 0o600})
			return err
		}},
		{"rename", benchFile, func(fs *FS, _ int) error {
			return errors.Join(fs.Rename(1, "x", 1, "y", 0), fs.Rename(1, "y", 1, "x", 0))
		}},
		{"rename over an empty directory", nil, func(fs *FS, _ int) error {
			if _, err := fs.Mkdir(1, "v", 0o755, Caller{}); err != nil {
				return err
			}
			if _, err := fs.Mkdir(1, "w", 0o755, Caller{}); err != nil {
				return err
			}
			return errors.Join(fs.Rename(1, "v", 1, "w", 0), fs.Rmdir(1, "w"))
		}},
		{"write to a lower file", nil, func(fs *FS, i int) error {
			a, err := benchLower(fs, i)
			if err != nil {
				return err
			}
			h, err := fs.Open(a.Ino, unix.O_RDWR)
			if err != nil {
				return err
			}
			return h.Close()
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			fs := benchFS(b, newMemLower(lines...))
			defer fs.Close()
			if bench.prepare != nil {
				if err := bench.prepare(fs); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := bench.run(fs, i); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func benchFS(b *testing.B, lower Lower) *FS {
	b.Helper()
	var dirs [2]*os.File
	for i := range dirs {
		var err error
		if dirs[i], err = os.Open(b.TempDir()); err != nil {
			b.Fatal(err)
		}
		defer dirs[i].Close()
	}
	u, err := OpenUpper(UpperOptions{Upper: dirs[0], Work: dirs[1], Volatile: true, Rootless: os.Geteuid() != 0})
	if err != nil {
		b.Fatal(err)
	}
	fs, err := New(lower, u, Options{})
	if err != nil {
		b.Fatal(err)
	}
	return fs
}

func benchFile(fs *FS) error {
	_, err := fs.Mknod(1, "x", unix.S_IFREG|0o644, 0, Caller{})
	return err
}
