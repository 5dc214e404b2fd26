package cas

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// sharedLayout is a layout with one image and a blob that nothing needs, of which a
// directory was moved to another place and linked to from its own.
func sharedLayout(t *testing.T, name string, relative bool) (path, elsewhere string, img *Image) {
	t.Helper()
	l, err := Create(filepath.Join(t.TempDir(), "layout"))
	if err != nil {
		t.Fatal(err)
	}
	img = blank(t, l, "a")
	putBlob(t, l, `{"of":"another layout"}`)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	path, elsewhere = l.Path(), filepath.Join(t.TempDir(), "shared")
	link := filepath.Join(path, name)
	if err := os.Rename(link, elsewhere); err != nil {
		t.Fatal(err)
	}
	target := elsewhere
	if relative {
		if target, err = filepath.Rel(filepath.Dir(link), elsewhere); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	return path, elsewhere, img
}

func open(t *testing.T, path string) *Layout {
	t.Helper()
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func blobNames(t *testing.T, l *Layout) []string {
	t.Helper()
	blobs, err := l.Blobs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, b := range blobs {
		if b.Digest == "" {
			t.Errorf("%s has no digest", b.Name)
		}
		names = append(names, b.Name)
	}
	slices.Sort(names)
	return names
}

func TestBlobsMayLieWhereALinkLeads(t *testing.T) {
	for _, name := range []string{"blobs", "blobs/sha256"} {
		for _, relative := range []bool{false, true} {
			path, _, img := sharedLayout(t, name, relative)
			l := open(t, path)
			if got := image(t, l, "a"); got.Config.Created == nil || !got.Config.Created.Equal(*img.Config.Created) {
				t.Errorf("%s: the config is of %v", name, got.Config.Created)
			}
			before := blobNames(t, l)
			if len(before) != 3 {
				t.Errorf("%s: blobs are %q", name, before)
			}
			d, _ := putBlob(t, l, `{"more":1}`)
			if err := l.VerifyBlob(ctx, d); err != nil {
				t.Errorf("%s: a new blob: %v", name, err)
			}
			if g, err := l.Check(ctx); err != nil || len(g.Problems) > 0 || len(g.Images) != 1 {
				t.Errorf("%s: check: %v, %+v", name, err, g)
			}
			res, err := l.GC(ctx, GCOptions{})
			if err != nil || res.Blobs != 0 || !slices.Equal(res.Linked, []string{name}) {
				t.Errorf("%s: gc: %+v, %v", name, res, err)
			}
			if after := blobNames(t, l); len(after) != len(before)+1 {
				t.Errorf("%s: blobs after gc are %q", name, after)
			}
		}
	}
}

func TestALinkOfAnotherUsersIsNotFollowed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a symbolic link is given away by root")
	}
	path, elsewhere, img := sharedLayout(t, "blobs/sha256", false)
	if err := os.Lchown(filepath.Join(path, "blobs/sha256"), 4242, 4242); err != nil {
		t.Fatal(err)
	}
	l := open(t, path)
	if _, err := l.ReadBlob(ctx, ispec.Descriptor{Digest: img.Manifest.Config.Digest, Size: img.Manifest.Config.Size}); err == nil {
		t.Error("a blob was read")
	}
	before, err := os.ReadDir(elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.putJSON(ctx, []byte("{}")); err == nil {
		t.Error("a blob was written")
	}
	if after, err := os.ReadDir(elsewhere); err != nil || len(after) != len(before) {
		t.Errorf("there are %d files, were %d, %v", len(after), len(before), err)
	}
}

func TestALinkThatLeadsNowhereIsNoBlob(t *testing.T) {
	path, elsewhere, img := sharedLayout(t, "blobs/sha256", false)
	if err := os.RemoveAll(elsewhere); err != nil {
		t.Fatal(err)
	}
	l := open(t, path)
	if refs, err := l.Refs(ctx); err != nil || !slices.Equal(refs, []string{"a"}) {
		t.Errorf("tags are %q, %v", refs, err)
	}
	if _, err := l.Blob(ctx, img.Manifest.Config.Digest); err == nil {
		t.Error("a blob was found")
	}
}
