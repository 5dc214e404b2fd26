package layer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestPathCountIsRightToAFewPercent(t *testing.T) {
	for _, n := range []int{10_000, 1_000_000} {
		var c pathCount
		for i := range 3 * n {
			c.add(binary.LittleEndian.AppendUint32(nil, uint32(i%n)))
		}
		if got := int(c.estimate()); got < n*85/100 || got > n*115/100 {
			t.Errorf("%d paths, estimated %d", n, got)
		}
	}
}

// An entry takes next to nothing where it is repeated: only paths make a table longer.
func TestATableOfContentsIsBoundedByItsPaths(t *testing.T) {
	const n = 3 * tocFree / 800
	value := bytes.Repeat([]byte("v"), 800)
	signed := func(path string) *tocEntry {
		return &tocEntry{kind: kindRegular, path: []byte(path), xattrs: []xattr{{[]byte("security.ima"), value}}}
	}
	var w tocWriter
	for i := range n {
		if err := w.add(signed(fmt.Sprintf("d/f%d", i))); err != nil {
			t.Fatalf("after %d files of their own: %v", i, err)
		}
	}
	w = tocWriter{}
	for i := range n {
		if w.add(signed(fmt.Sprintf("d/f%d", i%1000))) != nil {
			return
		}
	}
	t.Errorf("%d bytes for a thousand paths", len(w.toc.body))
}

// layersOf applies entries to a tree, as many layers as there are lists.
func layersOf(m *merger, layers ...[]*tocEntry) error {
	for _, list := range layers {
		var w tocWriter
		for _, e := range list {
			if err := w.add(e); err != nil {
				return err
			}
		}
		if err := m.apply(context.Background(), "test", &w.toc); err != nil {
			return err
		}
	}
	return nil
}

func tocFile(path string) *tocEntry { return &tocEntry{kind: kindRegular, path: []byte(path)} }

func tocDir(path string) *tocEntry { return &tocEntry{kind: kindDir, path: []byte(path)} }

func TestATreeIsBoundedByItsEntries(t *testing.T) {
	if testing.Short() {
		t.Skip("long, and of one goroutine")
	}
	deep := strings.Repeat("d/", 1000)
	tests := map[string]struct {
		layers  [][]*tocEntry
		refused bool
	}{
		"deep directories that no entry describes": {[][]*tocEntry{manyEntries(400, func(i int) *tocEntry {
			return tocFile(fmt.Sprintf("%d/%sf", i, deep))
		})}, true},
		"the same in one tree": {[][]*tocEntry{manyEntries(400, func(i int) *tocEntry {
			return tocFile(fmt.Sprintf("%sf%d", deep, i))
		})}, false},
		"the same, replaced each time": {[][]*tocEntry{manyEntries(1000, func(i int) *tocEntry {
			if i%2 == 0 {
				return tocFile("d")
			}
			return tocFile(deep + "f")
		})}, false},
		"as many as can be, removed and made anew": {manyLayers(8, func(i int) []*tocEntry { return deepLayer(i, 200) }), false},
		"as many as can be, removed, then more":    {manyLayers(8, func(i int) []*tocEntry { return deepLayer(i, 200+i/7*100) }), true},
		"files in directories of their own, which come later": {[][]*tocEntry{
			manyEntries(300_000, func(i int) *tocEntry { return tocFile(fmt.Sprintf("d%d/f", i)) }),
			manyEntries(300_000, func(i int) *tocEntry { return tocDir(fmt.Sprintf("d%d", i)) }),
		}, false},
		"maps of sparse files": {[][]*tocEntry{manyEntries(300, func(i int) *tocEntry {
			e := tocFile(fmt.Sprintf("f%d", i))
			e.sparse, e.size = true, 1<<30
			for off := range int64(10_000) {
				e.pieces = append(e.pieces, piece{off: 2 * off, size: 1})
			}
			return e
		})}, true},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			err := layersOf(newMerger(false), c.layers...)
			if c.refused && !errors.Is(err, ErrFormat) || !c.refused && err != nil {
				t.Errorf("got %v", err)
			}
		})
	}
}

// deepLayer replaces all by files in n thousand directories, for which it has no entries.
func deepLayer(layer, n int) []*tocEntry {
	deep := strings.Repeat("d/", 1000)
	return append([]*tocEntry{{kind: kindOpaque}}, manyEntries(n, func(i int) *tocEntry {
		return tocFile(fmt.Sprintf("%d/%d/%sf", layer, i, deep))
	})...)
}

func manyEntries(n int, entry func(i int) *tocEntry) []*tocEntry {
	out := make([]*tocEntry, n)
	for i := range out {
		out[i] = entry(i)
	}
	return out
}

func manyLayers(n int, layer func(i int) []*tocEntry) [][]*tocEntry {
	out := make([][]*tocEntry, n)
	for i := range out {
		out[i] = layer(i)
	}
	return out
}

// Hours, else, for a layer of a few kilobytes.
func TestEntriesCannotKeepTheMergeBusy(t *testing.T) {
	t.Run("paths through long symlinks", func(t *testing.T) {
		deep := strings.Repeat("d/", 1000)
		list := []*tocEntry{tocDir(deep + "d")}
		for _, name := range []string{"s", "t"} {
			list = append(list, &tocEntry{kind: kindSymlink, path: []byte(name), link: []byte(deep)})
		}
		list = append(list, manyEntries(100_000, func(i int) *tocEntry { return tocFile("st"[i%2:i%2+1] + "/f") })...)
		if err := layersOf(newMerger(false), list); !errors.Is(err, ErrFormat) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("opaque markers and whiteouts in a great layer", func(t *testing.T) {
		const files, markers = 50_000, 100_000
		list := manyEntries(files, func(i int) *tocEntry { return tocFile(fmt.Sprintf("a/b/f%d", i)) })
		list = append(list, manyEntries(markers, func(i int) *tocEntry {
			return &tocEntry{kind: []entryKind{kindOpaque, kindOpaque, kindWhiteout}[i%3], path: []byte([]string{"a", "a/b", "a"}[i%3])}
		})...)
		m := newMerger(false)
		start := time.Now()
		if err := layersOf(m, []*tocEntry{tocFile("a/b/old")}, list); err != nil {
			t.Fatal(err)
		}
		// Milliseconds; some twenty seconds where each marker goes through the files.
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
		if m.budget.nodes != files+2 {
			t.Errorf("%d names are left, want %d", m.budget.nodes, files+2)
		}
	})
}
