package repack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mtree "github.com/vbatts/go-mtree"
	"golang.org/x/sys/unix"
)

// newManifestFixture is newFixture with a manifest in the bundle.
func newManifestFixture(t *testing.T) *fixture {
	f := newFixture(t, smallTree(t))
	f.umount()
	must(t, os.RemoveAll(f.bundle))
	run(t, program, "mount", "--mtree", "--image", f.layout+":base", f.bundle)
	return f
}

// manifestDifferences are those of the mounted tree and the bundle's one manifest.
func (f *fixture) manifestDifferences() (out []string) {
	f.t.Helper()
	list, err := filepath.Glob(filepath.Join(f.bundle, "*.mtree*"))
	if err != nil || len(list) != 1 {
		f.t.Fatalf("manifests %q (%v)", list, err)
	}
	file, err := os.Open(list[0])
	must(f.t, err)
	defer file.Close()
	spec, err := mtree.ParseSpec(file)
	must(f.t, err)
	deltas, err := mtree.Check(f.root(""), spec, spec.UsedKeywords(), nil)
	must(f.t, err)
	for _, d := range deltas {
		out = append(out, d.String())
	}
	return out
}

// editMany makes a change of each kind, with times that no layer of an epoch keeps.
func (f *fixture) editMany() {
	t := f.t
	t.Helper()
	f.write("etc/new", "1")
	f.write("etc/conf", "other")
	must(t, os.Chmod(f.root("usr/bin/tool"), 0o4711)) // its content stays the image's
	must(t, unix.Setxattr(f.root("etc/passwd"), "user.k", []byte("v"), 0))
	must(t, unix.Setxattr(f.root("etc/new"), "user.long", []byte(strings.Repeat("l", 2000)), 0))
	must(t, os.RemoveAll(f.root("usr/lib/sub")))
	must(t, os.Rename(f.root("var/data"), f.root("var/moved")))
	must(t, os.Link(f.root("usr/lib/a"), f.root("usr/lib/c")))
	must(t, os.Symlink("to nowhere", f.root("etc/a link")))
	must(t, os.MkdirAll(f.root("new/dir"), 0o700))
	must(t, os.Chown(f.root("new/dir"), 12, 34))
	must(t, unix.Mkfifo(f.root("new/pipe"), 0o600))
}

// The manifest says what is on the disk: a layer's times may be others.
func TestARefreshedManifestDescribesTheTree(t *testing.T) {
	f := newManifestFixture(t)
	t.Setenv("SOURCE_DATE_EPOCH", "1200000000")
	f.editMany()
	tag, _ := f.repack("--refresh-bundle")
	if d := f.manifestDifferences(); len(d) > 0 {
		t.Errorf("mounted: %q", d)
	}
	// Stock umoci, which has the manifest alone, finds nothing either.
	run(t, "umoci", "repack", "--image", f.layout+":stock", f.bundle)
	if a, b := f.image(tag), f.image("stock"); len(a.Layers) != len(b.Layers) {
		t.Errorf("stock umoci repacks %q", f.entries("stock"))
	}
	f.umount()
	run(t, program, "mount", f.bundle)
	f.write("etc/late", "2")
	f.umount()
	f.repack("--refresh-bundle")
	run(t, program, "mount", f.bundle)
	if d := f.manifestDifferences(); len(d) > 0 {
		t.Errorf("not mounted: %q", d)
	}
	f.umount()
}

// What a volume holds is on the disk, and in no layer.
func TestARefreshedManifestHasWhatIsMasked(t *testing.T) {
	f := newManifestFixture(t)
	f.write("etc/conf", "other")
	must(t, os.Mkdir(f.root("var/lib"), 0o755))
	must(t, os.WriteFile(f.root("var/lib/x"), []byte("x"), 0o644))
	must(t, os.Chtimes(f.root("var"), time.Time{}, time.Unix(1_000_000_000, 0)))
	f.repack("--refresh-bundle", "--mask-path", "/var/lib")
	if d := f.manifestDifferences(); len(d) > 0 {
		t.Errorf("%q", d)
	}
	f.umount()
}
