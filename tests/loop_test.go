package tests

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// loop is the main job on one image: mount, compare, edit, diff, unmount, mount
// again, repack, and see what stock tools make of the result.
type loop struct {
	layout, tag string
	edit        func(t *testing.T, root string)
	// asGzip has stock umoci unpack a copy whose layers are gzip: umoci 0.4.7 reads
	// no others. Docker archives know no zstd either.
	asGzip bool
}

func (l *loop) image(tag string) string { return l.layout + ":" + tag }

// stock unpacks a tag with stock umoci, and reads its tree.
func (l *loop) stock(t *testing.T, tag string) imagetest.Tree {
	t.Helper()
	bundle := filepath.Join(t.TempDir(), "stock")
	from := l.image(tag)
	if l.asGzip {
		from = imagetest.AsGzip(t, l.layout, tag) + ":" + tag
	}
	env.MustCommand(t, "umoci", "unpack", "--image", from, bundle)
	tree := imagetest.MustReadTree(t, filepath.Join(bundle, "rootfs"))
	if err := os.RemoveAll(bundle); err != nil {
		t.Fatal(err)
	}
	return tree
}

func (l *loop) run(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "umoci", "skopeo")

	b := env.Mount(t, l.image(l.tag))
	base := imagetest.MustReadTree(t, b.Rootfs())
	imagetest.SameTree(t, "mounted tree against stock umoci's", l.stock(t, l.tag), base,
		imagetest.CompareOptions{DirNlink: true})

	l.edit(t, b.Rootfs())
	edited := imagetest.MustReadTree(t, b.Rootfs())
	checkDiff(t, b, base, edited)
	repacked := l.repackMounted(t, b)

	b.Umount(t)
	checkDiff(t, b, base, edited)
	if got := l.repack(t, b, "unmounted"); got != repacked {
		t.Errorf("repacked layer is %s when mounted, %s when not", repacked, got)
	}
	b.Remount(t)
	imagetest.SameTree(t, "tree after the next mount", edited, imagetest.MustReadTree(t, b.Rootfs()),
		imagetest.CompareOptions{DirNlink: true})
	b.Umount(t)

	onDisk := imagetest.CompareOptions{Seconds: true, NoSockets: true}
	imagetest.SameTree(t, "stock umoci's tree of the repacked image", edited, l.stock(t, "new"), onDisk)
	again := env.Mount(t, l.image("new"))
	imagetest.SameTree(t, "mounted tree of the repacked image", edited, imagetest.MustReadTree(t, again.Rootfs()), onDisk)
	again.Umount(t)
	if !l.asGzip {
		l.throughDocker(t, "new")
	}
}

// repackMounted repacks in the ways that must all give the same layer, the first
// of them as tag new.
func (l *loop) repackMounted(t *testing.T, b *imagetest.Bundle) string {
	t.Helper()
	layer := l.repack(t, b, "new")
	if got := l.repack(t, b, "checked", "--full-check"); got != layer {
		t.Errorf("repacked layer is %s, with --full-check %s", layer, got)
	}
	for _, compress := range []string{"none", "zstd"} {
		l.repack(t, b, compress, "--compress", compress)
		if want, got := l.diffIDs(t, "new"), l.diffIDs(t, compress); !slices.Equal(want, got) {
			t.Errorf("diffIDs with --compress=%s are %v, want %v", compress, got, want)
		}
	}
	return layer
}

// repack returns the digest of the layer that it adds.
func (l *loop) repack(t *testing.T, b *imagetest.Bundle, tag string, flags ...string) string {
	t.Helper()
	env.Must(t, append(append([]string{"repack", "--image", l.image(tag)}, flags...), b.Path)...)
	_, before, _ := imagetest.Manifest(t, l.layout, l.tag)
	_, m, _ := imagetest.Manifest(t, l.layout, tag)
	if len(m.Layers) != len(before.Layers)+1 {
		t.Fatalf("%s has %d layers, its base %d", tag, len(m.Layers), len(before.Layers))
	}
	return m.Layers[len(m.Layers)-1].Digest.String()
}

func (l *loop) diffIDs(t *testing.T, tag string) []string {
	t.Helper()
	_, _, config := imagetest.Manifest(t, l.layout, tag)
	var out []string
	for _, d := range config.RootFS.DiffIDs {
		out = append(out, d.String())
	}
	return out
}

// throughDocker copies a tag to a docker archive and back.
func (l *loop) throughDocker(t *testing.T, tag string) {
	t.Helper()
	dir := t.TempDir()
	archive := "docker-archive:" + filepath.Join(dir, "image.tar")
	back := &loop{layout: filepath.Join(dir, "back")}
	copyImage := []string{"--insecure-policy", "copy", "--quiet"}
	env.MustCommand(t, "skopeo", append(copyImage, "oci:"+l.image(tag), archive+":umoci-mount/test:"+tag)...)
	env.MustCommand(t, "skopeo", append(copyImage, archive, "oci:"+back.image(tag))...)
	if want, got := l.diffIDs(t, tag), back.diffIDs(t, tag); !slices.Equal(want, got) {
		t.Errorf("diffIDs after a docker archive are %v, want %v", got, want)
	}
}

// change is an entry of diff --json.
type change struct {
	Kind string `json:"kind"`
	Path string `json:"path"`
}

func (c change) String() string { return c.Kind + " " + c.Path }

// checkDiff compares what the program says has changed with what two listings of
// the tree say, by the keywords that umoci gives go-mtree: times to the second.
func checkDiff(t *testing.T, b *imagetest.Bundle, before, after imagetest.Tree) {
	t.Helper()
	var got []change
	if err := json.Unmarshal([]byte(env.Must(t, "diff", "--json", b.Path)), &got); err != nil {
		t.Fatalf("diff --json: %v", err)
	}
	want := expectedDiff(before, after)
	extra, missing := subtract(got, want), subtract(want, got)
	if len(extra)+len(missing) > 0 {
		t.Errorf("diff says too much: %v\ntoo little: %v", shorten(extra), shorten(missing))
	}
}

func expectedDiff(before, after imagetest.Tree) []change {
	gone := map[string]bool{}
	var out []change
	for _, d := range imagetest.Compare(before, after, imagetest.CompareOptions{Seconds: true, DirNlink: true}) {
		parent := filepath.Dir(d.Path)
		switch {
		case d.Kind == 'D':
			gone[d.Path] = true
			if gone[parent] || after[parent] != nil && after[parent].Type() != unix.S_IFDIR {
				continue // it went with its directory
			}
		case after[d.Path].Type() == unix.S_IFSOCK:
			continue // no layer can hold it
		case d.Kind == 'C' && after[d.Path].Type() != unix.S_IFDIR && onlyLinks(d):
			continue // a name more or less elsewhere is no change of this one
		}
		out = append(out, change{string(d.Kind), jsonName(filepath.Join("/", d.Path))})
	}
	return out
}

func onlyLinks(d imagetest.Difference) bool {
	for _, what := range d.What {
		if !strings.HasPrefix(what, "nlink ") && !strings.HasPrefix(what, "hard link ") {
			return false
		}
	}
	return true
}

// jsonName is a name as it comes out of JSON, which has no bytes but UTF-8.
func jsonName(name string) string {
	var b strings.Builder
	for _, r := range name {
		b.WriteRune(r)
	}
	return b.String()
}

func subtract(a, b []change) []change {
	in := map[change]bool{}
	for _, c := range b {
		in[c] = true
	}
	var out []change
	for _, c := range a {
		if !in[c] {
			out = append(out, c)
		}
	}
	return out
}

func shorten(list []change) string {
	const shown = 20
	if len(list) <= shown {
		return fmt.Sprint(list)
	}
	return fmt.Sprintf("%v … and %d more", list[:shown], len(list)-shown)
}
