package layer

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func FuzzScanTar(f *testing.F) {
	for _, c := range oddLayers {
		for _, l := range c.layers(f) {
			f.Add(l)
		}
	}
	f.Add(append(paxHeader('x', "GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=9"), newRawTar("f", '0', 515).with("1\n0\n3\n"+strings.Repeat("\x00", 506)+"abc")...))
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzScan(t, b)
		// Past the checksums too: every block as if it were a header.
		for block := range slices.Chunk(b, tarBlock) {
			if len(block) == tarBlock && !isZero(block) {
				sealBlock(block)
			}
		}
		fuzzScan(t, b)
	})
}

func fuzzScan(t *testing.T, b []byte) {
	toc, err := scanTar(bytes.NewReader(b))
	if err != nil {
		if !errors.Is(err, ErrFormat) {
			t.Fatalf("not ErrFormat: %v", err)
		}
		return
	}
	var file sliceWriter
	if err := toc.encode(&file); err != nil {
		t.Fatal(err)
	}
	useTOC(t, file, false)
}

// sealBlock makes a header's checksum right.
func sealBlock(b []byte) {
	copy(fieldChksum.of(b), "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(fieldChksum.of(b), fmt.Sprintf("%06o\x00 ", sum))
}

// useTOC decodes a table of contents and does with it all there is to do. What
// scanTar gave must be whole.
func useTOC(t *testing.T, file []byte, mayBeCorrupt bool) {
	toc, err := decodeTOC(file)
	if err != nil {
		if !mayBeCorrupt {
			t.Fatal(err)
		}
		return
	}
	if _, err := toc.paths(); err != nil {
		if !mayBeCorrupt {
			t.Fatal(err)
		}
		return
	}
	for _, keep := range []bool{false, true} {
		m := newMerger(keep)
		if m.apply(context.Background(), "fuzz", toc) != nil || m.apply(context.Background(), "again", toc) != nil {
			continue
		}
		fl, b := encodeFile(t, m, 2)
		if err := fl.Close(); err != nil {
			t.Fatal(err)
		}
		tree, err := newTree(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.Verify(t.Context()); err != nil {
			t.Fatalf("verify: %v", err)
		}
	}
}

func FuzzDecodeTOC(f *testing.F) {
	for _, c := range oddLayers {
		for _, l := range c.layers(f) {
			if b, err := ScanTOC(bytes.NewReader(l)); err == nil {
				f.Add(b)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		useTOC(t, b, true)
		// Past the checksums too: the body as it is, under a right header.
		if len(b) > tocHeaderSize {
			tc := toc{n: binary.LittleEndian.Uint64(b[16:]), body: b[tocHeaderSize:]}
			var file sliceWriter
			if err := tc.encode(&file); err != nil {
				t.Fatal(err)
			}
			useTOC(t, file, true)
		}
	})
}
