// Package imagecmds tests the commands that read images without a mount, or take one
// to pieces: unpack --extract, raw, cat, tree, diff --image, fsck and cache.
package imagecmds

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// env is set by TestMain and not changed after.
var env *imagetest.Env

func TestMain(m *testing.M) {
	os.Exit(imagetest.Main(m, func(e *imagetest.Env) { env = e }, 20*time.Minute))
}

// base and above are layers with an entry of each kind, and of each way to replace
// one.
const (
	base = `
dir bin 0755
file bin/tool 06755 @200000 uid=0
dir etc 0755 mtime=1500000000
file etc/passwd 0644 "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"
file etc/conf 0640 "old" uid=3 gid=4 xattr:user.k=v
symlink etc/link conf uid=5 gid=6 mtime=1500000001
hardlink etc/again etc/conf
dir gone 0755
file gone/f 0644 "gone"
dir hidden 0711 uid=7 xattr:user.d=w
file hidden/below 0644 "below"
fifo pipe 0600 mtime=1500000002.5
char null 0666 1,3
block disk 0660 8,0 gid=6
dir tmp 01777 mtime=1500000003
file to-dir 0644 "file"
dir to-file 0755
file to-file/x 0644 "x"
`
	above = `
file etc/conf 0600 "new" uid=3 mtime=1500000004
whiteout gone
opaque hidden
file hidden/new 0644 "new"
dir to-dir 0700
file to-dir/x 0400 "inside"
file to-file 0644 "file"
file "odd name\nwith\x01 bytes" 0644 "odd"
symlink dangling /nowhere/at/all
`
)

func twoLayers(t testing.TB) string {
	t.Helper()
	return imagetest.Layout(t, imagetest.Image{Tag: "t", Layers: []imagetest.Layer{{Text: base}, {Text: above}}})
}

// mustFail runs the program, which has to end with a code and one line on stderr.
func mustFail(t testing.TB, code int, args ...string) string {
	t.Helper()
	r := env.Run(t, args...)
	if r.Code != code {
		t.Errorf("%v: exit %d, want %d\n%s%s", args, r.Code, code, r.Stdout, r.Stderr)
	}
	return r.Stderr
}

func missing(t testing.TB, path string) {
	t.Helper()
	if _, err := os.Lstat(path); err == nil {
		t.Errorf("%s is there", path)
	}
}

func glob(t testing.TB, pattern string) string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil || len(list) != 1 {
		t.Fatalf("%s: %v (%v)", pattern, list, err)
	}
	return list[0]
}
