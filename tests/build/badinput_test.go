package build

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// Each spec begins with a target that would leave a file if anything ran.
func TestBadSpecsAreRefusedWithTheirPlaceBeforeAnythingRuns(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/file.txt" {
			fmt.Fprint(out, "text")
			return
		}
		http.NotFound(out, r)
	}))
	defer server.Close()
	w := newWorld(t, map[string]string{"text": "no package", "file.sh": "exit 0\n", "empty.tar": strings.Repeat("\x00", 1024), "dir/x": ""})
	const first = "first: {pre: touch ran}\n"
	for _, c := range []struct {
		name, spec, want string
		code             int
		args             []string
	}{
		{name: "an unknown key", spec: "a:\n  base: empty\n  rnu: true", want: `spec.yaml:4:3: target a: unknown key "rnu" (did you mean run?)`},
		{name: "a mapping where a string is wanted", spec: "a:\n  run: {x: y}", want: "spec.yaml:3:8: run is a mapping"},
		{name: "a list where a string is wanted", spec: "a:\n  base: [b]\n  run: x", want: "spec.yaml:3:9: base is a list: want a string"},
		{name: "a list in a list", spec: "a:\n  run: [[x]]", want: "spec.yaml:3:9: an item of run is a list"},
		{name: "an empty value", spec: "a:\n  run:", want: "spec.yaml:3:7: run is empty"},
		{name: "an empty list", spec: "a:\n  run: []", want: "spec.yaml:3:8: run is an empty list"},
		{name: "a target that is a string", spec: "a: b", want: "spec.yaml:2:4: target a is a value: want a mapping"},
		{name: "a target that does nothing", spec: "a: {base: empty}", want: "spec.yaml:2:1: target a does nothing"},
		{name: "two targets of a name", spec: "a: {run: x}\na: {run: y}", want: `spec.yaml:3:1: a spec has "a" twice: first in line 2`},
		{name: "a key twice", spec: "a:\n  run: x\n  run: y", want: `spec.yaml:4:3: target a has "run" twice: first in line 3`},
		{name: "a name that is no tag", spec: "a b: {run: x}", want: `spec.yaml:2:1: target "a b"`},
		{name: "the base's name as a target", spec: "empty: {run: x}", want: `spec.yaml:2:1: target "empty"`},
		{name: "a merge key", spec: "a: &a {run: x}\nb:\n  <<: *a", want: "spec.yaml:4:3: merge keys"},
		{name: "no YAML", spec: "a: {run: x\n", want: "spec.yaml:4:1: not YAML: did not find expected ',' or '}', while parsing a flow mapping from line 2"},
		{name: "a tab", spec: "a:\n\trun: x", want: "spec.yaml:3:1: not YAML: found character that cannot start any token"},
		{name: "a second document", spec: "a: {run: x}\n---\nb: {run: y}", want: "spec.yaml:3:1: a second document"},
		{name: "layers of another kind", spec: "a: {run: x, layers: one}", want: `spec.yaml:2:21: layers is "one": want target or step`},
		{name: "a copy of one word", spec: "a:\n  copy:\n  - x y\n  - x", want: `spec.yaml:5:5: copy "x": want "SOURCE DEST"`},
		{name: "a copy without dest", spec: "a: {copy: {source: x}}", want: "spec.yaml:2:11: copy: want source and dest"},
		{name: "an unknown key of copy", spec: "a: {copy: {source: x, dest: y, form: z}}", want: `spec.yaml:2:32: copy: unknown key "form"`},
		{name: "a mode that is no mode", spec: "a: {copy: {source: x, dest: y, mode: rw}}", want: `spec.yaml:2:38: mode "rw"`},
		{name: "an entrypoint with shell in it", spec: "a: {entrypoint: a && b}", want: "spec.yaml:2:17: entrypoint"},
		{name: "an open quote", spec: "a: {entrypoint: 'a \"b'}", want: "spec.yaml:2:17: entrypoint"},
		{name: "a variable without a value", spec: "a: {env: [NAME]}", want: `spec.yaml:2:11: env: "NAME": want NAME=VALUE`},
		{name: "a variable that is not set", spec: "a:\n  run: echo ${{what}}", want: "spec.yaml:3:8: ${{what}} is not set: set it with --set what=VALUE"},
		{name: "a variable that nothing has", spec: "a: {run: x}", args: []string{"--set", "x=y"}, want: "spec.yaml: nothing has ${{x}}"},
		{name: "an empty spec", spec: "", want: ""},
		{name: "a cycle", spec: "a:\n  base: c\n  run: x\nb: {base: a, run: x}\nc: {base: b, run: x}", want: "spec.yaml:3:9: targets need each other: a -> c -> b -> a"},
		{name: "a target of itself", spec: "a: {base: a, run: x}", want: "spec.yaml:2:11: targets need each other: a -> a"},
		{name: "a cycle by a copy", spec: "a: {copy: {from: b, source: x, dest: x}}\nb: {base: a, run: x}", want: "targets need each other: a -> b -> a"},
		{name: "an unknown base", spec: "a: {base: nowhere, run: x}", want: "spec.yaml:2:11: base nowhere is no target here, and no tag in oci", code: imagetest.CodeNotFound},
		{name: "an unknown source of a copy", spec: "a: {copy: {from: nowhere, source: x, dest: y}}", want: "spec.yaml:2:18: copy from nowhere is no target", code: imagetest.CodeNotFound},
		{name: "an unknown target", spec: "a: {run: x}", args: []string{"--target", "b"}, want: "--target b: spec.yaml has no such target", code: 1},
		{name: "a file to copy that is missing", spec: "a:\n  copy:\n  - text x\n  - missing x", want: "spec.yaml:5:5: copy: stat ", code: imagetest.CodeNotFound},
		{name: "an archive that is missing", spec: "a: {expand: missing.tar}", want: "spec.yaml:2:13: expand: stat ", code: imagetest.CodeNotFound},
		{name: "an archive that is none", spec: "a: {expand: text}", want: "is no tar archive"},
		{name: "an archive without entries", spec: "a: {expand: empty.tar}", want: "is no tar archive"},
		{name: "a directory as an archive", spec: "a: {expand: dir}", want: "dir is no file"},
		{name: "a package that is missing", spec: "a: {install: [missing.deb]}", want: "spec.yaml:2:15: install: stat ", code: imagetest.CodeNotFound},
		{name: "a package that is none", spec: "a: {install: text}", want: "text is no .deb or .rpm package"},
		{name: "a script that is missing", spec: "a: {run: ./missing.sh}", want: "spec.yaml:2:10: run: stat ", code: imagetest.CodeNotFound},
		{name: "a URL that is not there", spec: "a: {expand: " + server.URL + "/none.tar}", want: "spec.yaml:2:13: expand: get " + server.URL + "/none.tar: the server says 404"},
		{name: "a dead URL", spec: "a: {install: http://127.0.0.1:1/x.deb}", want: "spec.yaml:2:14: install: ", code: 1},
		{name: "a URL of another kind", spec: "a: {install: ftp://host/x.deb}", want: "want a path, or a URL of http, https or file"},
		{name: "a download of another digest", spec: "a: {expand: " + server.URL + "/file.txt#sha256=" + strings.Repeat("0", 64) + "}", want: "has the sha256 982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1, not 000"},
		{name: "a download that is no archive", spec: "a: {expand: " + server.URL + "/file.txt}", want: "is no tar archive"},
		{name: "a digest that is none", spec: "a: {expand: 'http://host/x#sha256=1'}", want: "want #sha256= and 64 hexadecimal digits"},
	} {
		spec := first + c.spec
		if c.name == "an empty spec" {
			spec, c.want = "# nothing\n", "spec.yaml: no targets"
		}
		if c.code == 0 {
			c.code = imagetest.CodeSpec
		}
		w.write("spec.yaml", spec+"\n")
		r := w.run(append(append([]string{"build"}, c.args...), "spec.yaml")...)
		if r.Code != c.code || !strings.Contains(r.Stderr, c.want) || strings.Count(r.Stderr, "\n") != 1 {
			t.Errorf("%s: exit %d, want %d, with\n%swant\n%s", c.name, r.Code, c.code, r.Stderr, c.want)
		}
		if _, err := os.Lstat(w.path("ran")); err == nil {
			t.Errorf("%s: something ran", c.name)
			os.Remove(w.path("ran"))
		}
		if d := w.run(append(append([]string{"build", "--dry-run"}, c.args...), "spec.yaml")...); d.Code == 0 && !strings.Contains(c.spec, "://") {
			t.Errorf("%s: a dry run finds nothing:\n%s", c.name, d.Stdout)
		}
	}
	if tags := w.tags(); len(tags) > 0 {
		t.Errorf("tags %q are set", tags)
	}
}

func TestBadFlagsAreRefused(t *testing.T) {
	w := newWorld(t, map[string]string{"spec.yaml": "a: {copy: spec.yaml x}\n"})
	for _, args := range [][]string{
		{}, {"--tag-format", "{what}", "spec.yaml"}, {"--tag-format", "a b", "spec.yaml"}, {"--set", "x", "spec.yaml"},
		{"--jobs", "-1", "spec.yaml"}, {"--runtime", "docker", "spec.yaml"}, {"--compress", "xz", "spec.yaml"}, {"a", "b"},
	} {
		if r := w.run(append([]string{"build"}, args...)...); r.Code != imagetest.CodeUsage {
			t.Errorf("%q: exit %d, %s", args, r.Code, r.Stderr)
		}
	}
	if r := w.run("build", "none.yaml"); r.Code != imagetest.CodeNotFound {
		t.Errorf("a spec that is missing: exit %d, %s", r.Code, r.Stderr)
	}
	if err := os.Mkdir(w.path("oci"), 0o755); err != nil {
		t.Fatal(err)
	}
	if r := w.run("build", "spec.yaml"); r.Code != imagetest.CodeNotFound || !strings.Contains(r.Stderr, "not an OCI image layout") {
		t.Errorf("a layout that is none: exit %d, %s", r.Code, r.Stderr)
	}
}

func TestADryRunSaysWhatIsDoneAndDoesNothing(t *testing.T) {
	t.Parallel()
	imagetest.NeedRoot(t)
	w := fiveWorld(t)
	contains(t, "the first dry run", w.must("build", "--dry-run", "spec.yaml"),
		"oci is made\n", "root: from empty: everything is done", "  run 1: echo", "  pre: test -d", "  config: entrypoint")
	if _, err := os.Lstat(w.path("oci")); err == nil {
		t.Error("a dry run made the layout")
	}
	w.must("build", "--target", "program", "spec.yaml")
	before := w.sh("cat oci/index.json oci/.build-umoci-mount.json")
	contains(t, "the second dry run", w.must("build", "--dry-run", "spec.yaml"), "root: from empty: cached\n", "tools: from root: everything is done: its hooks run every time\n",
		"program: from tools: everything is done: tools is built before it\n")
	expect(t, "the layout", before, w.sh("cat oci/index.json oci/.build-umoci-mount.json"))
}

func TestTheSchemaIsPrinted(t *testing.T) {
	w := newWorld(t, nil)
	expect(t, "schema", readFile(t, "../../docs/build-schema.json"), w.must("build", "--schema"))
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
