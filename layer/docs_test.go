package layer

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"os"
	"strings"
	"testing"
)

// exampleLayer is the layer of the documents' worked examples.
func exampleLayer(t testing.TB) []byte {
	return tarOf(t, tDir("d"), tReg("d/a", "hi").own(7, 8), tLink("d/b", "d/a"), tSym("l", "d/a"), tReg("x", "y").xattr("user.k", "v"), tWhite("", "gone"))
}

// hexLines is b as hexdump -C writes it, without the text column.
func hexLines(b []byte) []string {
	var out []string
	for line := range strings.Lines(hex.Dump(b)) {
		out = append(out, strings.TrimRight(line[:58], " "))
	}
	return out
}

// checkExample wants every line of a dump in a document, but for those of zeros
// alone, which it may leave out.
func checkExample(t *testing.T, path string, b []byte) {
	t.Helper()
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range hexLines(b) {
		row := b[i*16 : min(i*16+16, len(b))]
		if !bytes.Contains(doc, []byte(line)) && len(bytes.Trim(row, "\x00")) > 0 {
			t.Errorf("%s lacks\n%s", path, line)
		}
	}
}

func TestTheWorkedExamplesOfTheDocumentsHold(t *testing.T) {
	layer := exampleLayer(t)
	toc, err := ScanTOC(bytes.NewReader(layer))
	if err != nil {
		t.Fatal(err)
	}
	checkExample(t, "../docs/toc-format.md", toc)

	m, err := mergeLayers(false, layer)
	if err != nil {
		t.Fatal(err)
	}
	f, tree := encodeFile(t, m, 1)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	checkExample(t, "../docs/tree-format.md", tree)
}

// exampleBlob is a gzip layer whose bytes do not depend on a compressor: one member
// of four stored blocks of 50,000 zeros.
func exampleBlob() (stored, plain []byte) {
	plain = make([]byte, 4*50000)
	stored = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}
	for i := range 4 {
		final := byte(i / 3)
		stored = append(stored, final, 50000&255, 50000>>8, ^byte(50000&255), ^byte(50000>>8))
		stored = append(stored, plain[i*50000:][:50000]...)
	}
	stored = binary.LittleEndian.AppendUint32(stored, crc32.ChecksumIEEE(plain))
	return binary.LittleEndian.AppendUint32(stored, uint32(len(plain))), plain
}

func TestTheWorkedExampleOfBlobIndexesHolds(t *testing.T) {
	stored, plain := exampleBlob()
	in, err := indexSource(t, storedLayer(t, mtGzip, stored, plain))
	if err != nil {
		t.Fatal(err)
	}
	checkExample(t, "../docs/blob-index-format.md", in.raw)
}
