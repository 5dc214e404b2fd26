package imagetest

import (
	"bytes"
	"compress/gzip"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

//go:generate go test -run TestTheHostileCorpusIsWhatTheCodeBuilds -update .

var update = flag.Bool("update", false, "write the corpus")

// corpus has the tars of all attacks, NAME.LAYER.tar.gz, aimed at /outside.
const corpus = "testdata/hostile"

func TestTheHostileCorpusIsWhatTheCodeBuilds(t *testing.T) {
	if *update {
		if err := os.RemoveAll(corpus); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(corpus, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	want := 0
	for _, a := range Attacks() {
		for i, tar := range a.Layers(t, "/outside") {
			name := filepath.Join(corpus, fmt.Sprintf("%s.%d.tar.gz", strings.ReplaceAll(a.Name, " ", "-"), i))
			want++
			if *update {
				if err := os.WriteFile(name, packed(t, tar), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := unpacked(t, name); !bytes.Equal(got, tar) {
				t.Errorf("%s has %d bytes that are not those of %q: go generate ./internal/imagetest", name, len(got), a.Name)
			}
		}
	}
	if have, err := os.ReadDir(corpus); err != nil || len(have) != want {
		t.Errorf("%s has %d files, want %d (%v)", corpus, len(have), want, err)
	}
}

func packed(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unpacked(t *testing.T, name string) []byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
