package layer

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"

	"golang.org/x/sys/unix"
)

// cutMapped cuts every file of a cache short.
func cutMapped(t *testing.T, dir string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(dir), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return os.Truncate(dir+"/"+p, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestACacheThatIsCutShortWhileInUseIsAnErrorNotACrash(t *testing.T) {
	dir := t.TempDir()
	cache := cacheIn(t, dir)
	big := strings.Repeat("data ", 1<<18)
	layer := sourceOf(t, t.TempDir(), tarOf(t, tDir("d"), tReg("d/a", big), tReg("d/b", "b")), ispec.MediaTypeImageLayerGzip)
	im, err := cache.Open(context.Background(), []Source{layer}, IndexOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, im)
	var file Ino
	for ino := RootIno; int(ino) <= im.Len(); ino++ {
		if a, err := im.Attr(ino); err == nil && a.Mode&unix.S_IFMT == unix.S_IFREG && a.Size > 0 {
			file = ino
		}
	}
	open, err := im.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	cutMapped(t, dir)
	for what, call := range map[string]func() error{
		"Attr":       func() error { _, err := im.Attr(file); return err },
		"Lookup":     func() error { _, err := im.Lookup(RootIno, "x"); return err },
		"Entry":      func() error { _, err := im.Entry(RootIno, 0); return err },
		"NumEntries": func() error { _, err := im.NumEntries(RootIno); return err },
		"PathOf":     func() error { _, err := im.PathOf(file); return err },
		"Open":       func() error { _, err := im.Open(file); return err },
		"ReadAt":     func() error { _, err := open.ReadAt(make([]byte, 1), 0); return err },
	} {
		err := call()
		if what == "ReadAt" && err == nil {
			continue // it has made the index again
		}
		if !errors.Is(err, ErrChecksum) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for range im.Names(file) {
		t.Error("a name of a tree that is gone")
	}
	for range im.Xattrs(file) {
		t.Error("an attribute of a tree that is gone")
	}
	again, err := cache.Open(context.Background(), []Source{layer}, IndexOptions{})
	if err != nil {
		t.Fatalf("the next to open it: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestAPanicThatIsNoFaultGoesOn(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("it was taken for a fault")
		}
	}()
	func() (err error) {
		defer catchFault(guardFaults(), &err)
		panic("bug")
	}()
}
