package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/layer"
)

// busyTree is a tree in memory in which a writer is at work: before each look at a
// version after the first, spoil may change the file.
type busyTree struct {
	*memTree
	looks int
	spoil func(n *memNode, look int)
}

func (t *busyTree) version(ino layer.Ino) (fileVersion, error) {
	_, n := t.byIno(ino)
	t.looks++
	t.spoil(n, t.looks)
	return fileVersion{size: n.attr.Size, mtime: n.attr.Mtime}, nil
}

// open gives what is there at the time of each read.
func (t *busyTree) open(ino layer.Ino) (content, error) {
	_, n := t.byIno(ino)
	return liveContent{n}, nil
}

type liveContent struct{ n *memNode }

func (c liveContent) ReadAt(p []byte, off int64) (int, error) {
	return strings.NewReader(c.n.data).ReadAt(p, off)
}

func (liveContent) Close() error { return nil }

func (n *memNode) set(data string) {
	n.data = data
	n.attr.Size = int64(len(data))
	n.attr.Mtime.Nsec++
}

func TestAFileThatIsWrittenToWhileItIsReadIsReadAgainOrRefused(t *testing.T) {
	small, large := "small", strings.Repeat("large", smallFile/4)
	for name, c := range map[string]struct {
		data  string
		spoil func(n *memNode, look int)
		want  error
		get   string
	}{
		"nobody writes":                 {small, func(*memNode, int) {}, nil, small},
		"nobody writes to a large file": {large, func(*memNode, int) {}, nil, large},
		"a small file changes once": {small, func(n *memNode, look int) {
			if look == 2 {
				n.set("another")
			}
		}, nil, "another"},
		"a small file becomes shorter once": {small, func(n *memNode, look int) {
			if look == 2 {
				n.set("s")
			}
		}, nil, "s"},
		"a small file was longer when it was compared": {small, func(n *memNode, look int) {
			if look == 1 {
				n.set("much longer than before")
			}
		}, nil, "much longer than before"},
		"a small file always changes": {small, func(n *memNode, _ int) { n.set(n.data + "x") }, ErrChanging, ""},
		"a large file changes": {large, func(n *memNode, look int) {
			if look == 2 {
				n.set(large + "x")
			}
		}, ErrChanging, ""},
	} {
		t.Run(name, func(t *testing.T) {
			tree := &busyTree{memTree: newMemTree(), spoil: c.spoil}
			tree.put("f", fileMode, c.data)
			o, err := find(tree, "f")
			if err != nil {
				t.Fatal(err)
			}
			s := recordSource{view: tree}
			var out bytes.Buffer
			_, err = layer.WriteDiff(&out, s.records(context.Background(), []planned{{path: "f", now: o}}), layer.DiffOptions{})
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			if err != nil {
				return
			}
			r := tar.NewReader(&out)
			if _, err := r.Next(); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || string(got) != c.get {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

func TestALargeFileThatBecomesShorterIsKnownToHaveChanged(t *testing.T) {
	tree := &busyTree{memTree: newMemTree()}
	n := tree.put("f", fileMode, strings.Repeat("x", smallFile+1))
	tree.spoil = func(*memNode, int) {}
	o, err := find(tree, "f")
	if err != nil {
		t.Fatal(err)
	}
	s := recordSource{view: tree}
	cut := func(yield func(layer.Record, error) bool) {
		for r, err := range s.records(context.Background(), []planned{{path: "f", now: o}}) {
			n.set("cut")
			if !yield(r, err) {
				return
			}
		}
	}
	_, err = layer.WriteDiff(io.Discard, cut, layer.DiffOptions{})
	if !errors.Is(err, layer.ErrBodySize) || !s.spoilt {
		t.Errorf("error %v, spoilt %v", err, s.spoilt)
	}
}

func TestTheReadingOfATreeEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := newTreeWalk(exampleBase(), exampleBase()).everything(ctx, ".")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	s := recordSource{view: &busyTree{memTree: exampleBase(), spoil: func(*memNode, int) {}}}
	_, err = layer.WriteDiff(io.Discard, s.records(ctx, []planned{{path: "gone", whiteout: true}}), layer.DiffOptions{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
