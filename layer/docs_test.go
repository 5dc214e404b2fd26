package layer

import (
	"bytes"
	"encoding/hex"
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
