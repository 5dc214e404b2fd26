package tests

import (
	"os"
	"path/filepath"
	"testing"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// oddLayers are three layers with what real images seldom have, in every
// compression. No entry lacks its parent: stock umoci gives such a parent the time
// of the unpacking.
var oddLayers = []imagetest.Layer{
	{Text: `
dir . 0755 mtime=1500000000
dir bin 0755
file bin/sh 0755 "#!shell" mtime=1234567890.123456789
file bin/su 04755 "setuid" xattr:user.note="kept"
dir etc 0755
file etc/passwd 0644 "root:x:0:0:root:/root:/bin/sh\n"
file etc/config 0600 "old" uid=1000 gid=1001
dir var 0755
dir var/spool 03775 gid=8
dir var/tmp 01777
file var/tmp/a 0644 @100000
hardlink var/tmp/b var/tmp/a
hardlink var/tmp/c var/tmp/a
dir gone 0755
file gone/one 0644 "1"
dir gone/sub 0700
file gone/sub/two 0644 "2"
dir hidden 0755
file hidden/old 0644 "old"
dir big 0755
file big/zero 0644 ""
file big/random 0644 @3000000
symlink link "etc/passwd"
symlink broken "nowhere/at all"
symlink dirlink etc
`},
	{Compress: imagetest.Zstd, Text: `
dir dev 0755
char dev/null 0666 1,3
block dev/loop 0660 7,200 gid=6
fifo dev/pipe 0622
whiteout gone
file etc/config 0644 "new" mtime=1600000001.5
dir hidden 0750 uid=5
opaque hidden
file hidden/new 0644 "new"
file "name with blanks" 0644 "x"
file "\xff\xfe not utf-8" 0644 "y"
file "line\nbreak" 0644 "z"
dir names 0755
file names/` + long(255) + ` 0644 "long"
dir caps 0755 xattr:user.dir="d"
file caps/ping 0755 "ping" xattr:security.capability="\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
file caps/big 0644 "x" xattr:user.big="` + long(900) + `"
symlink caps/link ping uid=7 gid=8
`},
	{Compress: imagetest.Plain, Text: `
dir gone 0711
file gone/again 0644 "again"
whiteout var/tmp/b
file bin 0644 "a file where a directory was"
dir link 0755
file link/inside 0644 "a directory where a symlink was"
dir deep 0755
dir deep/1 0755
dir deep/1/2 0755
dir deep/1/2/3 0755
file deep/1/2/3/file 0644 @5000
dir old-time 0755 mtime=0
file old-time/file 0644 "1970" mtime=0
file big/zero 0644 @70000
`},
}

func long(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = 'a' + byte(i%26)
	}
	return string(b)
}

func TestLoopOnAnOddImage(t *testing.T) {
	l := &loop{layout: imagetest.Layout(t, imagetest.Image{Tag: "odd", Layers: oddLayers}), tag: "odd", edit: editOdd}
	l.asGzip = true
	l.run(t)
}

func TestLoopOnBusybox(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "umoci", "busybox")
	layout := filepath.Join(t.TempDir(), "images")
	env.MustCommand(t, "images/mkbusybox.sh", layout)
	l := &loop{layout: layout, tag: "busybox", edit: editBusybox}
	l.run(t)
}

// realLayout is an image-layout of the image makers, with the tags busybox,
// minbase and compiler. Tests change copies of it: its blobs are linked, its
// index is its own.
func realLayout(t *testing.T) string {
	t.Helper()
	if os.Getenv("UMOCI_MOUNT_E2E") == "" {
		t.Skip("on real images: make e2e")
	}
	dir := os.Getenv("UMOCI_MOUNT_TESTDATA")
	if dir == "" {
		dir = "/var/tmp/umoci-mount-images"
	}
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	layout := filepath.Join(t.TempDir(), "images")
	env.MustCommand(t, "cp", "-al", filepath.Join(dir, "images"), layout)
	for _, name := range []string{ispec.ImageIndexFile, ispec.ImageLayoutFile} {
		file := filepath.Join(layout, name)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return layout
}

func TestRealLoopOnDebian(t *testing.T) {
	l := &loop{layout: realLayout(t), tag: "minbase", edit: editDebian}
	l.run(t)
}

// The compiler image has what a large one has: five layers, whiteouts, a renamed
// directory, 30,000 entries.
func TestRealLoopOnACompilerImage(t *testing.T) {
	l := &loop{layout: realLayout(t), tag: "compiler", edit: editDebian}
	_, m, _ := imagetest.Manifest(t, l.layout, l.tag)
	if len(m.Layers) < 4 {
		t.Errorf("the image has %d layers, want 4 at least", len(m.Layers))
	}
	var size int64
	for _, d := range m.Layers {
		size += d.Size
	}
	if size < 100_000_000 {
		t.Errorf("the image has %d bytes, want 100 MB at least", size)
	}
	l.run(t)
}
