package layer

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

const untouchedRoot = ". d 0755 @0.000000000\n"

func wantDump(want string) string {
	if strings.HasPrefix(want, ". ") {
		return want
	}
	return untouchedRoot + want
}

func TestLayersMergeAsExtractingThemWould(t *testing.T) {
	for _, c := range oddLayers {
		t.Run(c.name, func(t *testing.T) {
			im, err := imageOf(t, c.keepDirlinks, c.layers(t)...)
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) || !errors.Is(err, ErrFormat) {
					t.Fatalf("got %v, want %q", err, c.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, want := dump(walkImage(t, im)), wantDump(c.want); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// The same layers give the same bytes, whatever the seeds of the hash tables.
func TestEncodingIsDeterministic(t *testing.T) {
	for _, c := range oddLayers {
		if c.fails != "" {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			var files [2][]byte
			for i := range files {
				m, err := mergeLayers(c.keepDirlinks, c.layers(t)...)
				if err != nil {
					t.Fatal(err)
				}
				f, b := encodeFile(t, m, len(c.layers(t)))
				files[i] = b
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(files[0], files[1]) {
				t.Error("two encodings differ")
			}
		})
	}
}

func TestA127LayerImageMerges(t *testing.T) {
	var layers [][]byte
	for i := range 127 {
		layers = append(layers, tarOf(t, tDir("d"), tReg("d/f", strings.Repeat("x", i)), tWhite("d/", "f"), tReg("top", "")))
	}
	im, err := imageOf(t, false, layers...)
	if err != nil {
		t.Fatal(err)
	}
	ino, err := im.LookupPath("d/f")
	if err != nil {
		t.Fatal(err)
	}
	if a, err := im.Attr(ino); err != nil || a.Size != 126 {
		t.Errorf("size %d, %v", a.Size, err)
	}
	if im.Len() != 4 {
		t.Errorf("%d inodes, want 4", im.Len())
	}
}

// A cycle of symlinks is as bad for a path as for open(2).
func TestSymlinkLoopsInAPathAreRefused(t *testing.T) {
	_, err := imageOf(t, false, tarOf(t, tSym("a", "b"), tSym("b", "a"), tReg("a/x", "")))
	if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "symbolic links") {
		t.Errorf("got %v", err)
	}
}
