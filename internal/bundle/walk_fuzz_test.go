package bundle

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// Any bytes as the upper one of two layers: the image is refused, or each of its names
// can be listed, described and read, in bounds that the bytes set.
func FuzzImageWalk(f *testing.F) {
	for _, a := range imagetest.Attacks() {
		for _, tar := range a.Layers(f, "/outside") {
			if len(tar) > 64<<10 {
				continue // what is found by changing it is found in smaller ones
			}
			f.Add(tar)
			f.Add(append(bytes.Clone(tar[:len(tar)/2&^511]), tar[len(tar)/4&^511:]...))
		}
	}
	lower := imagetest.Layer{Text: "dir d 0755\nfile d/x 0644 \"x\"\nsymlink s d\nfile etc/passwd 0644 \"root\"\nhardlink h etc/passwd\n"}
	f.Fuzz(func(t *testing.T, data []byte) {
		layout := imagetest.Layout(t, imagetest.Image{Tag: "a", Layers: []imagetest.Layer{lower, {Tar: data, Compress: imagetest.Plain}}})
		im, err := OpenImage(context.Background(), ImageOptions{Layout: layout, Tag: "a", CacheDir: filepath.Join(t.TempDir(), "cache")})
		if err != nil {
			return // refused
		}
		defer func() {
			if err := im.Close(); err != nil {
				t.Error(err)
			}
		}()
		fs, err := overlay.New(im.Image, nil, overlay.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := fs.Close(); err != nil {
				t.Error(err)
			}
		}()
		w := walker{t: t, fs: fs, left: 100_000, room: 64 << 20}
		w.dir(layer.RootIno, 0)
	})
}

// walker looks at everything, in bounds.
type walker struct {
	t    *testing.T
	fs   *overlay.FS
	left int   // names
	room int64 // bytes of content
}

func (w *walker) dir(ino overlay.Ino, depth int) {
	d, err := w.fs.OpenDir(ino)
	if err != nil {
		w.t.Fatalf("list %d: %v", ino, err)
	}
	for i := 2; i < d.Len(); i++ {
		e, ok, err := d.Entry(i)
		if err != nil || !ok {
			w.t.Fatalf("entry %d of %d: %v, %v", i, ino, ok, err)
		}
		if e.Name == "" || e.Name == "." || e.Name == ".." || bytes.ContainsAny([]byte(e.Name), "/\x00") {
			w.t.Fatalf("a name %q", e.Name)
		}
		if w.left--; w.left < 0 || depth > 5000 {
			w.t.Fatal("more names than the bytes can hold")
		}
		a, err := w.fs.GetAttr(e.Ino)
		if err != nil {
			w.t.Fatalf("%q: %v", e.Name, err)
		}
		if err := w.object(e.Ino, a, depth); err != nil {
			w.t.Fatalf("%q: %v", e.Name, err)
		}
	}
}

func (w *walker) object(ino overlay.Ino, a overlay.Attr, depth int) error {
	if _, err := w.fs.ListXattr(ino, make([]byte, 65536), nil); err != nil {
		return err
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		w.dir(ino, depth+1)
	case unix.S_IFLNK:
		if target, err := w.fs.Readlink(ino); err != nil || len(target) >= unix.PathMax {
			return fmt.Errorf("a target of %d bytes, %w", len(target), err)
		}
	case unix.S_IFREG:
		h, err := w.fs.Open(ino, unix.O_RDONLY)
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, io.LimitReader(io.NewSectionReader(h, 0, a.Size), w.room))
		if w.room -= n; err == nil && n != a.Size && w.room > 0 {
			err = fmt.Errorf("%d bytes of %d", n, a.Size)
		}
		if cerr := h.Close(); err == nil {
			err = cerr
		}
		return err
	}
	return nil
}
