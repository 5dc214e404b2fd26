package extract

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
	"github.com/umoci-mount/umoci-mount/layer"
)

// everyKind has one entry of each kind, and of each attribute.
const everyKind = `
dir . 0750 mtime=1500000000.5
dir d 0700 uid=7 gid=8 mtime=1500000001.25 xattr:user.k=v
file d/f 0644 "hello" uid=1 gid=2 mtime=1500000002.123456789
file d/setuid 06755 @300000 uid=3
dir closed 0000
file closed/f 0000 "secret" xattr:user.k=closed
symlink d/l ../closed/f uid=9 gid=10 mtime=1500000003
hardlink closed/again d/f
fifo fifo 0610 mtime=1500000004
char null 0666 1,3 uid=11
block disk 0660 8,0
dir sticky 01777 mtime=1500000005
file empty 0400 ""
dir sticky/sub 02755
file capable 0755 "x" xattr:user.a=b
`

func TestATreeLiesOnTheDiskAsInTheImage(t *testing.T) {
	imagetest.NeedRoot(t)
	im := openImage(t, everyKind, "file d/g 0600 @70000\nwhiteout empty\nsymlink c2 closed")
	dest, res := extractTo(t, im, Options{Record: true, Rootless: os.Geteuid() != 0})
	tree := imagetest.MustReadTree(t, dest)
	if len(tree) != res.Entries {
		t.Errorf("%d entries are there, %d were reported", len(tree), res.Entries)
	}
	var check func(dir layer.Ino, path string)
	check = func(ino layer.Ino, path string) {
		e := tree[path]
		if e == nil {
			t.Fatalf("%s is missing", path)
		}
		compareAttr(t, im, ino, e)
		compareRecord(t, &res.Objects[ino-1], e)
		a, err := im.Attr(ino)
		if err != nil {
			t.Fatal(err)
		}
		if a.Mode&unix.S_IFMT != unix.S_IFDIR {
			return
		}
		n, err := im.NumEntries(ino)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			d, err := im.Entry(ino, i)
			if err != nil {
				t.Fatal(err)
			}
			check(d.Ino, filepath.Join(path, d.Name))
		}
	}
	check(layer.RootIno, ".")
	if a, b := tree["d/f"], tree["closed/again"]; a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("the hard link is another file: inodes %d and %d, %d links", a.Ino, b.Ino, a.Nlink)
	}
}

func compareAttr(t *testing.T, im *layer.Image, ino layer.Ino, e *imagetest.Entry) {
	t.Helper()
	a, err := im.Attr(ino)
	if err != nil {
		t.Fatal(err)
	}
	if e.Mode != a.Mode || e.UID != a.UID || e.GID != a.GID || e.Rdev != a.Rdev {
		t.Errorf("%s: mode %#o owner %d:%d device %d, want %#o %d:%d %d", e.Path, e.Mode, e.UID, e.GID, e.Rdev,
			a.Mode, a.UID, a.GID, a.Rdev)
	}
	if want := time.Unix(a.Mtime.Sec, int64(a.Mtime.Nsec)); !e.Mtime.Equal(want) {
		t.Errorf("%s: mtime %v, want %v", e.Path, e.Mtime, want)
	}
	xattrs := map[string]string{}
	for name, value := range im.Xattrs(ino) {
		xattrs[name] = string(value)
	}
	if fmt.Sprint(xattrs) != fmt.Sprint(e.Xattrs) && len(xattrs)+len(e.Xattrs) > 0 {
		t.Errorf("%s: attributes %v, want %v", e.Path, e.Xattrs, xattrs)
	}
	switch e.Type() {
	case unix.S_IFLNK:
		if target, err := im.Readlink(ino); err != nil || e.Target != target {
			t.Errorf("%s: leads to %q, want %q (%v)", e.Path, e.Target, target, err)
		}
	case unix.S_IFREG:
		f, err := im.Open(ino)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, f.Size())
		if _, err := f.ReadAt(p, 0); err != nil && len(p) > 0 && !strings.Contains(err.Error(), "EOF") {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(p); hex.EncodeToString(sum[:]) != e.Sum {
			t.Errorf("%s: other content", e.Path)
		}
	}
}

func compareRecord(t *testing.T, o *Object, e *imagetest.Entry) {
	t.Helper()
	if o.Mode != e.Mode || o.UID != e.UID || o.GID != e.GID || uint64(o.Nlink) != e.Nlink ||
		!time.Unix(o.Mtime.Sec, int64(o.Mtime.Nsec)).Equal(e.Mtime) || e.Size > 0 && o.Size != e.Size {
		t.Errorf("%s: recorded as %+v, is %+v", e.Path, o, e)
	}
	switch e.Type() {
	case unix.S_IFREG:
		if got := hex.EncodeToString(o.Sum[:]); got != e.Sum {
			t.Errorf("%s: recorded digest %s, is %s", e.Path, got, e.Sum)
		}
		fallthrough
	case unix.S_IFDIR:
		if fmt.Sprint(o.Xattrs) != fmt.Sprint(e.Xattrs) && len(o.Xattrs)+len(e.Xattrs) > 0 {
			t.Errorf("%s: recorded attributes %v, are %v", e.Path, o.Xattrs, e.Xattrs)
		}
	}
}

// The values are those that rootless tools write: 0x08e007107b is 992:123.
func TestRootlessOwnersAreSquashedAndNoted(t *testing.T) {
	for _, c := range []struct {
		uid, gid uint32
		hex      string
	}{
		{992, 123, "08e007107b"}, {0, 456, "08ffffffff0f10c803"}, {98, 0, "086210ffffffff0f"}, {1000, 1001, "08e80710e907"},
	} {
		if got := hex.EncodeToString(rootlessOwner(c.uid, c.gid)); got != c.hex {
			t.Errorf("%d:%d: %s, want %s", c.uid, c.gid, got, c.hex)
		}
	}
	im := openImage(t, everyKind)
	var log bytes.Buffer
	dest, _ := extractTo(t, im, Options{Rootless: true, Log: textLog(&log)})
	t.Cleanup(func() { open(t, dest) })
	open(t, dest)
	tree := imagetest.MustReadTree(t, dest)
	for path, want := range map[string]string{"d": "\x08\x07\x10\x08", "d/f": "\x08\x01\x10\x02", "d/setuid": "\x08\x03\x10\xff\xff\xff\xff\x0f", "empty": ""} {
		e := tree[path]
		if e.Xattrs[RootlessXattr] != want {
			t.Errorf("%s: attribute %q, want %q", path, e.Xattrs[RootlessXattr], want)
		}
		if e.UID != uint32(os.Geteuid()) || e.GID != uint32(os.Getegid()) {
			t.Errorf("%s belongs to %d:%d", path, e.UID, e.GID)
		}
	}
	for path, mode := range map[string]uint32{"null": 0o100666, "disk": 0o100660, "fifo": 0o010610} {
		if e := tree[path]; e.Mode != mode || e.Size != 0 {
			t.Errorf("%s: mode %#o and %d bytes, want %#o and none", path, e.Mode, e.Size, mode)
		}
	}
	if !strings.Contains(log.String(), "devices=2") {
		t.Errorf("nobody was told of the devices: %s", log.String())
	}
}

// open lets a plain user look into the tree of everyKind.
func open(t testing.TB, dest string) {
	if err := errors.Join(os.Chmod(filepath.Join(dest, "closed"), 0o700), os.Chmod(filepath.Join(dest, "closed/f"), 0o600)); err != nil {
		t.Error(err)
	}
}

func TestOwnersAreMapped(t *testing.T) {
	imagetest.NeedRoot(t)
	im := openImage(t, "file a 0644 x uid=5 gid=0\nsymlink l a uid=1 gid=1")
	dest, _ := extractTo(t, im, Options{
		UIDs: []IDRange{{0, 100000, 2}, {5, 7, 1}}, GIDs: []IDRange{{0, 200000, 65536}},
	})
	tree := imagetest.MustReadTree(t, dest)
	for path, want := range map[string][2]uint32{".": {100000, 200000}, "a": {7, 200000}, "l": {100001, 200001}} {
		if e := tree[path]; e.UID != want[0] || e.GID != want[1] {
			t.Errorf("%s belongs to %d:%d, want %v", path, e.UID, e.GID, want)
		}
	}
	dest = filepath.Join(t.TempDir(), "rootfs")
	_, err := Tree(t.Context(), im, dest, Options{UIDs: []IDRange{{0, 100000, 2}}})
	if !errors.Is(err, ErrUnmapped) || !strings.Contains(err.Error(), `"/a"`) {
		t.Errorf("an owner outside the map gives %v", err)
	}
	if _, err := os.Lstat(dest); err == nil {
		t.Error("something was made all the same")
	}
}

func TestADirectoryThatWasThereIsKeptAndWhatIsInTheWayReplaced(t *testing.T) {
	imagetest.NeedRoot(t)
	im := openImage(t, `
dir . 0755
dir etc 0711 uid=4
file etc/f 0644 "new"
dir was-link 0755
file was-link/f 0644 "inside"
file was-dir 0644 "file"
symlink was-file elsewhere
file linked 0644 "one"
hardlink again linked
`)
	outside := t.TempDir()
	dest := filepath.Join(t.TempDir(), "rootfs")
	writeFiles(t, dest, map[string]string{
		"etc/f": "old", "etc/mine": "mine", "mine": "mine", "was-dir/deep/f": "x", "was-file": "x", "again": "x",
	})
	if err := errors.Join(os.Symlink(outside, filepath.Join(dest, "was-link")), os.Symlink(outside, filepath.Join(dest, "linked")),
		unix.Setxattr(filepath.Join(dest, "etc"), "user.old", []byte("x"), 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := Tree(t.Context(), im, dest, Options{Record: true}); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside there is %v (%v)", entries, err)
	}
	tree := imagetest.MustReadTree(t, dest)
	for path, want := range map[string]string{"etc/f": "new", "etc/mine": "mine", "mine": "mine", "was-link/f": "inside", "was-dir": "file", "again": "one"} {
		if b, err := os.ReadFile(filepath.Join(dest, path)); err != nil || string(b) != want {
			t.Errorf("%s: %q, want %q (%v)", path, b, want, err)
		}
	}
	if e := tree["etc"]; e.Mode != 0o040711 || e.UID != 4 || len(e.Xattrs) > 0 {
		t.Errorf("etc: mode %#o, owner %d, attributes %v", e.Mode, e.UID, e.Xattrs)
	}
	if e := tree["was-file"]; e == nil || e.Target != "elsewhere" {
		t.Errorf("was-file: %+v", e)
	}
}

func writeFiles(t testing.TB, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		name = filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// A directory hands its group and its default ACL on to what is made in it.
func TestNothingIsInheritedFromTheDirectoryAbove(t *testing.T) {
	imagetest.NeedRoot(t)
	parent := t.TempDir()
	acl := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 7, 0, 1, 0, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255}
	if err := errors.Join(unix.Chown(parent, 0, 12345), unix.Chmod(parent, 0o2775)); err != nil {
		t.Fatal(err)
	}
	err := unix.Setxattr(parent, "system.posix_acl_default", acl, 0)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatal(err)
	}
	im := openImage(t, "dir d 0755\nfile d/f 0644 x\nfifo p 0600")
	dest := filepath.Join(parent, "rootfs")
	if _, err := Tree(t.Context(), im, dest, Options{}); err != nil {
		t.Fatal(err)
	}
	for path, e := range imagetest.MustReadTree(t, dest) {
		if e.GID != 0 || len(e.Xattrs) > 0 || e.Mode&unix.S_ISGID != 0 {
			t.Errorf("%s: group %d, mode %#o, attributes %v", path, e.GID, e.Mode, e.Xattrs)
		}
	}
}

func TestHolesStayHoles(t *testing.T) {
	im := openLayers(t, imagetest.Image{Tag: "t", Layers: []imagetest.Layer{{Tar: sparseTar(t)}}})
	dest, res := extractTo(t, im, Options{Record: true, Rootless: os.Geteuid() != 0})
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dest, "sparse"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != 64<<20 || st.Blocks*512 > 1<<20 {
		t.Errorf("%d bytes take %d on the disk", st.Size, st.Blocks*512)
	}
	b, err := os.ReadFile(filepath.Join(dest, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 64<<20)
	copy(want[32<<20:], "data")
	if !bytes.Equal(b, want) {
		t.Error("other content")
	}
	ino, err := im.LookupPath("sparse")
	if err != nil {
		t.Fatal(err)
	}
	if res.Objects[ino-1].Sum != sha256.Sum256(want) {
		t.Error("another digest was recorded")
	}
}

func TestNamesThatAreNoNamesAreRefused(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "/", "a\x00", strings.Repeat("x", 256)} {
		if err := checkName(name); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"...", ".wh.x", " ", "\xff", strings.Repeat("x", 255)} {
		if err := checkName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}
