// Package commands runs the commands that umoci has, with umoci's flags, and compares
// what they make with what stock umoci makes of the same.
package commands

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

var env *imagetest.Env

func TestMain(m *testing.M) {
	os.Exit(imagetest.Main(m, func(e *imagetest.Env) { env = e }, 20*time.Minute))
}

// sh runs a script in a directory, with the program under test as $um and as umoci,
// and the stock one as $stock.
func sh(t *testing.T, dir, script string) imagetest.Result {
	t.Helper()
	return env.Command(t, []string{"um=" + env.Bin, "stock=/usr/bin/umoci"}, "sh", "-ec", "cd "+dir+"\n"+script)
}

func mustSh(t *testing.T, dir, script string) string {
	t.Helper()
	r := sh(t, dir, script)
	if r.Code != 0 {
		t.Fatalf("exit %d of\n%s\n%s%s", r.Code, script, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// newLayout makes a layout "img" with an empty image "a" in a new directory.
func newLayout(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	mustSh(t, dir, "$um init --layout img; $um new --image img:a")
	return dir
}

// stat is what stat --json says.
type stat struct {
	Manifest struct{ Blob map[string]any }
	Config   struct{ Blob map[string]any }
	History  []map[string]any
}

func statOf(t *testing.T, dir, tag string) stat {
	t.Helper()
	var s stat
	if err := json.Unmarshal([]byte(mustSh(t, dir, "$um stat --json --image img:"+tag)), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// sameJSON compares two documents by meaning.
func sameJSON(t *testing.T, what string, want, got any) {
	t.Helper()
	w, _ := json.MarshalIndent(want, "", " ")
	g, _ := json.MarshalIndent(got, "", " ")
	if string(w) != string(g) {
		t.Errorf("%s: got\n%s\nwant\n%s", what, g, w)
	}
}

func expect(t *testing.T, what, want, got string) {
	t.Helper()
	if want != got {
		t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
	}
}

func blobs(t *testing.T, dir string) int {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "img/blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// lines counts the lines of s that have all of words.
func lines(s string, words ...string) (n int) {
	for line := range strings.Lines(s) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			n++
		}
	}
	return n
}
