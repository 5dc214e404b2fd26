package tests

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/umoci-mount/umoci-mount/"

// mayImport are the project's own packages that a package may import, directories
// all: cmd → internal/bundle → fusefs → overlay → layer → internal/sys, cas beside
// them.
var mayImport = map[string][]string{
	"cmd/umoci-mount":      {"internal/build", "internal/userns", "docs", "internal/bundle", "internal/imageconfig", "fusefs", "overlay", "layer", "cas"},
	"internal/build":       {"internal/bundle", "internal/userns", "internal/imageconfig", "cas", "docs"},
	"docs":                 {},
	"internal/userns":      {"internal/bundle", "internal/notify", "internal/sys"},
	"internal/notify":      {"internal/sys"},
	"internal/bundle":      {"fusefs", "overlay", "layer", "cas", "internal/extract", "internal/imageconfig", "internal/sys"},
	"internal/extract":     {"layer", "internal/sys"},
	"internal/imageconfig": {"cas"},
	"fusefs":               {"overlay", "layer", "internal/sys"},
	"overlay":              {"layer", "internal/sys"},
	"layer":                {"layer/inflate", "layer/sha256x2", "internal/sys"},
	"layer/inflate":        {},
	"layer/sha256x2":       {},
	"cas":                  {"internal/sys"},
	"internal/sys":         {},
	"internal/bench":       {},
	"internal/imagetest":   {},
	"tests":                {"internal/imagetest"},
	"tests/repack":         {"internal/imagetest"},
	"tests/crash":          {"internal/imagetest"},
	"tests/imagecmds":      {"internal/imagetest"},
	"tests/commands":       {"internal/imagetest"},
	"tests/crosstools":     {"internal/imagetest"},
	"tests/matrix":         {"internal/imagetest"},
	"tests/stress":         {"internal/imagetest"},
	"tests/rootless":       {"internal/imagetest"},
	"tests/build":          {"internal/imagetest"},
}

// onlyIn are packages from elsewhere with the places that may import them, as
// directories or files.
var onlyIn = map[string][]string{
	"github.com/hanwen/go-fuse/":       {"fusefs"},
	"github.com/spf13/cobra":           {"cmd/umoci-mount"},
	"github.com/vbatts/go-mtree":       {"internal/bundle/verify.go", "internal/bundle/verify_full.go", "internal/bundle/validate.go"},
	"github.com/klauspost/":            {"layer", "internal/imagetest", "internal/build"},
	"github.com/moby/sys/user":         {"internal/bundle", "internal/userns"},
	"unsafe":                           {"internal/sys", "layer/tree.go", "layer/inflate/symbols.go"},
	"os/exec":                          {"internal/bundle", "internal/userns", "internal/build", "internal/bench", "fusefs", "internal/imagetest", "tests"},
	"net/http":                         {"tests/crosstools", "internal/build/fetch.go"},
	"go.yaml.in/yaml/":                 {"internal/build"},
	"github.com/sirupsen/logrus":       {},
	"github.com/rogpeppe/go-internal/": {"tests"},
}

// The sources are parsed here: a test that runs `go list` would be cached, and pass
// after a violation.
func TestImportsGoOneWay(t *testing.T) {
	eachSource(t, func(file, rel string) { checkImports(t, file, rel) })
}

// eachSource calls fn for each Go file of the project; rel is its name below the root.
func eachSource(t *testing.T, fn func(file, rel string)) {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	files, made := 0, map[string]bool{filepath.Join(root, "build"): true, filepath.Join(root, "bin"): true}
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() && name != root && (strings.HasPrefix(base, ".") || base == "testdata" || made[name]) {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(base, ".go") {
			return nil
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		files++
		fn(name, filepath.ToSlash(rel))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Errorf("%d files were looked at: the test does not find the sources", files)
	}
}

func checkImports(t *testing.T, file, rel string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		t.Error(err)
		return
	}
	isTest := strings.HasSuffix(rel, "_test.go")
	dir := rel[:max(strings.LastIndex(rel, "/"), 0)]
	own, known := mayImport[dir]
	if !known {
		t.Errorf("%s: package %s is not in the table of the import directions", rel, dir)
		return
	}
	for _, spec := range parsed.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Error(err)
			continue
		}
		if ours, ok := strings.CutPrefix(path, module); ok {
			switch {
			case slices.Contains(own, ours), isTest && (ours == "internal/imagetest" || ours == dir):
			default:
				t.Errorf("%s: package %s may not import %s", rel, dir, ours)
			}
			continue
		}
		for prefix, places := range onlyIn {
			if (path == prefix || strings.HasPrefix(path, prefix+"/") || strings.HasSuffix(prefix, "/") && strings.HasPrefix(path, prefix)) &&
				!isTest && !slices.ContainsFunc(places, func(p string) bool { return p == rel || p == dir || strings.HasPrefix(dir, p+"/") }) {
				t.Errorf("%s: only %v may import %s", rel, places, path)
			}
		}
	}
}
