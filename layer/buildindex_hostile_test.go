package layer

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// emptyBlocks is a gzip member of plain parts with so many stored bytes of blocks without
// content behind each.
func emptyBlocks(t *testing.T, empty int, parts ...[]byte) []byte {
	t.Helper()
	out := bytes.NewBuffer([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"))
	w, err := flate.NewWriter(out, 6)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range parts {
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		out.Write(bytes.Repeat([]byte("\x00\x00\x00\xff\xff"), empty/5))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	plain := bytes.Join(parts, nil)
	b := binary.LittleEndian.AppendUint32(out.Bytes(), crc32.ChecksumIEEE(plain))
	return binary.LittleEndian.AppendUint32(b, uint32(len(plain)))
}

// What decodes to nothing takes stored bytes all the same: of those too a part has few, and
// no span is without plain bytes.
func TestStoredBytesWithoutContentEndAPart(t *testing.T) {
	plain := mixed(34, 6<<20)
	part := plain[:1600<<10] // of somewhat more than one part's stored bytes
	empty := bytes.Repeat(gz(t, nil, 6), 1<<14)
	for name, c := range map[string]struct{ stored, plain []byte }{
		"some empty blocks":          {emptyBlocks(t, 300<<10, part, plain[len(part):]), plain},
		"many empty blocks":          {emptyBlocks(t, 8<<20, part, plain[len(part):]), plain},
		"many empty members":         {bytes.Join([][]byte{gz(t, part, 6), empty, gz(t, plain[len(part):], 6)}, nil), plain},
		"zeros behind the last one":  {append(gz(t, part, 6), make([]byte, 8<<20)...), part},
		"zeros behind an empty part": {append(append(gz(t, part, 6), empty...), make([]byte, 8<<20)...), part},
	} {
		t.Run(name, func(t *testing.T) {
			src := storedLayer(t, mtGzip, c.stored, c.plain)
			f, err := src.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			shared := newSharedWork(1, 3)
			defer shared.close()
			ix, err := buildBlobIndex(t.Context(), f, src, passOptions{shared: shared})
			if err != nil {
				t.Fatal(err)
			}
			if len(shared.parts) == 0 {
				t.Error("no part was decoded ahead")
			}
			for _, p := range shared.parts {
				if n := cap(p.buf); n > 2*aheadPlain {
					t.Errorf("a part holds %d stored bytes", n)
				}
			}
			var enc bytes.Buffer
			if err := ix.encode(&enc); err != nil {
				t.Fatal(err)
			}
			if ix, err = decodeBlobIndex(enc.Bytes()); err != nil {
				t.Fatal(err)
			}
			readBackwards(t, src, ix, c.plain)
		})
	}
}

// decoys is a gzip member in which so many beginnings of blocks lie in the content of blocks
// that are stored as they are, where the first part is looked for; bit is where the block
// behind these begins.
func decoys(t *testing.T, n int) (stored, plain []byte, bit int64) {
	t.Helper()
	deflated := func(p []byte) []byte {
		var b bytes.Buffer
		w, err := flate.NewWriter(&b, 6)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	decoy := deflated(mixed(35, 20<<10))[:200]
	out := bytes.NewBuffer([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"))
	r := rand.New(rand.NewPCG(9, 10))
	keep := func(size int) {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if size > 2*len(decoy) {
			copy(b, decoy)
		}
		out.WriteByte(0)
		out.Write(binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, uint16(size)), ^uint16(size)))
		out.Write(b)
		plain = append(plain, b...)
	}
	for out.Len() < aheadStored {
		keep(100)
	}
	for range n {
		keep(2000)
	}
	bit = int64(out.Len()) * 8
	text := mixed(36, 3<<20)
	plain = append(plain, text...)
	out.Write(deflated(text))
	out.Write([]byte{1, 0, 0, 0xff, 0xff})
	stored = binary.LittleEndian.AppendUint32(out.Bytes(), crc32.ChecksumIEEE(plain))
	return binary.LittleEndian.AppendUint32(stored, uint32(len(plain))), plain, bit
}

// What looks like a block is tried a few times, not as often as a hostile layer has it.
func TestFewBlocksAreTriedForAPart(t *testing.T) {
	for _, n := range []int{aheadTries - 1, aheadTries, 5 * aheadTries} {
		stored, plain, bit := decoys(t, n)
		src := storedLayer(t, mtGzip, stored, plain)
		f, err := src.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		p := (&sharedWork{}).takePart()
		p.target = aheadStored
		p.decode(f, src.Size)
		if want := n < aheadTries; (p.start == bit) != want || (p.start == -1) == want {
			t.Errorf("%d decoys: the part begins at bit %d; there is a block at %d", n, p.start, bit)
		}
		ix, err := indexWith(t, src, 3)
		if err != nil {
			t.Fatal(err)
		}
		readBackwards(t, src, ix, plain)
	}
}
