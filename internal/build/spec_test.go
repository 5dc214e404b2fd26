package build

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/umoci-mount/umoci-mount/docs"
)

func mustParse(t *testing.T, text string, vars map[string]string) *Spec {
	t.Helper()
	s, err := parse("spec.yaml", t.TempDir(), []byte(text), vars)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTheSchemaHasTheKeysThatAreRead(t *testing.T) {
	var schema struct {
		Definitions struct {
			Target struct{ Properties map[string]any }
			Copy   struct {
				AnyOf []struct{ Properties map[string]any } `json:"anyOf"`
			}
		}
	}
	if err := json.Unmarshal(docs.BuildSchema, &schema); err != nil {
		t.Fatal(err)
	}
	want := slices.Sorted(maps.Keys(targetKeys))
	if got := slices.Sorted(maps.Keys(schema.Definitions.Target.Properties)); !slices.Equal(got, want) {
		t.Errorf("targets: the schema has\n%q, read are\n%q", got, want)
	}
	slices.Sort(copyKeys)
	if got := slices.Sorted(maps.Keys(schema.Definitions.Copy.AnyOf[1].Properties)); !slices.Equal(got, copyKeys) {
		t.Errorf("copy: the schema has %q, read are %q", got, copyKeys)
	}
}

// Each key of a target is read into a field of its own.
func TestEachKeyHasItsField(t *testing.T) {
	fields := map[string]bool{}
	for _, typ := range []reflect.Type{reflect.TypeFor[Target](), reflect.TypeFor[Config]()} {
		for i := range typ.NumField() {
			fields[strings.ToLower(typ.Field(i).Name)] = true
		}
	}
	for key := range targetKeys {
		if !fields[key] {
			t.Errorf("%s has no field", key)
		}
		delete(fields, key)
	}
	for _, own := range []string{"name", "pos", "config"} {
		delete(fields, own)
	}
	if len(fields) > 0 {
		t.Errorf("no key is read into %v", fields)
	}
}

func TestAStringAndAListOfItAreTheSame(t *testing.T) {
	one := mustParse(t, "a: {run: x y, copy: p q, expand: e, install: i, pre: b, post: c, cmd: k l, env: A=1, volumes: /v, ports: 80}", nil).Targets[0]
	two := mustParse(t, "a: {run: [x y], copy: [p q], expand: [e], install: [i], pre: [b], post: [c], cmd: [k, l], env: {A: 1}, volumes: [/v], ports: [80]}", nil).Targets[0]
	if got, want := describe(two), describe(one); got != want {
		t.Errorf("lists are\n%s, strings\n%s", got, want)
	}
}

// describe is a target without places.
func describe(t *Target) string {
	values := func(list []Text) (out []string) {
		for _, x := range list {
			out = append(out, x.Value)
		}
		return out
	}
	var copies []string
	for _, c := range t.Copy {
		copies = append(copies, c.String())
	}
	return fmt.Sprintf("%q %q %q %q %q %q %s", values(t.Run), copies, values(t.Expand), values(t.Install), values(t.Pre), values(t.Post), t.Config.String())
}

func TestVariablesStandForWhatIsSet(t *testing.T) {
	vars := map[string]string{"v": "1.2", "n": "name with blanks"}
	s := mustParse(t, "a:\n  run: |\n    echo $v ${v} ${{v}} ${{ n }} ${{ d:default value }} ${{e:}}|\n", vars)
	if got, want := s.Targets[0].Run[0].Value, "echo $v ${v} 1.2 name with blanks default value  |\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAliasesAreValues(t *testing.T) {
	s := mustParse(t, "a: {run: &r [x, y]}\nb: {base: a, run: *r}\nc: &c {run: z}\nd: *c\n", nil)
	if got := s.Targets[1].Run[1].Value + s.Targets[3].Run[0].Value; got != "yz" {
		t.Errorf("got %q", got)
	}
}

func TestRunIsAScriptWhereAFileIsThere(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"script", "sub dir"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for text, want := range map[string]string{
		"script": "script", "./script": "script", "script\n": "script", "script arg": "", "true": "", "/bin/true": "", "sub dir": "",
		"echo x > y": "", ".": "",
	} {
		got, err := scriptFile(dir, Text{Value: text})
		if want != "" {
			want = filepath.Join(dir, want)
		}
		if err != nil || got != want {
			t.Errorf("%q is %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestTargetsComeAfterWhatTheyNeed(t *testing.T) {
	s := mustParse(t, `a: {base: d, run: x}
b: {base: empty, run: x}
c: {base: a, run: x}
d: {base: tag, copy: {from: b, source: x, dest: y}}
e: {run: x}
`, nil)
	for want, names := range map[string][]string{"b d a c e": nil, "b d a": {"a"}, "b e": {"e", "b"}} {
		p, err := newPlan(s, names)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, k := range p.tasks {
			got = append(got, k.Name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: got %q, want %s", names, got, want)
		}
	}
}

func TestTagNumbersAreTheNextThatAreFree(t *testing.T) {
	now := time.Date(2026, 11, 21, 13, 5, 9, 0, time.UTC)
	for _, c := range []struct {
		format string
		taken  []string
		want   string
	}{
		{DefaultTagFormat, nil, "x-2026-11-21_1"},
		{DefaultTagFormat, []string{"x-2026-11-21_1", "x-2026-11-21_3"}, "x-2026-11-21_2"},
		{"{name}.{n}", []string{"x.1", "x.2"}, "x.3"},
		{"{name}-{date}-{time}", []string{"x-2026-11-21-130509"}, "x-2026-11-21-130509"},
		{"last", nil, "last"},
	} {
		got, err := buildTag(c.format, "x", now, func(tag string) bool { return slices.Contains(c.taken, tag) })
		if err != nil || got != c.want {
			t.Errorf("%s: got %q, %v, want %q", c.format, got, err, c.want)
		}
	}
	for _, bad := range []string{"{name", "{x}", "{name} {n}", "-{n}"} {
		if CheckTagFormat(bad) == nil {
			t.Errorf("format %q is taken", bad)
		}
	}
}

func TestLinesAreWrittenWholeWithTheirTarget(t *testing.T) {
	var out strings.Builder
	r := NewReport(&out, false)
	w := r.output("a")
	for _, part := range []string{"one\ntw", "o\r\n", "\n", "three"} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Errorf("write: %d, %v", n, err)
		}
	}
	w.flush()
	if want := "a | one\na | two\na | \na | three\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

func TestATerminalShowsWhatIsBeingDone(t *testing.T) {
	var out strings.Builder
	r := NewReport(&out, true)
	r.begin(2)
	r.step("a", "run 1", "x")
	r.stepDone("a", "run 1", time.Second)
	r.cached("b")
	r.end()
	want := "a: run 1: x\n[0/2] a: run 1\r\x1b[Ka: run 1: done in 1s\n[0/2] a: run 1\r\x1b[Kb: cached\n[1/2] a: run 1\r\x1b[K"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
}

// Whatever a spec is: no panic, and an error has a place in it.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"a: {run: x}", "a:\n  copy:\n  - x y\n  - {from: b, source: x, dest: y, mode: 0755}\nb: {expand: http://h/x#sha256=1}", "a: &a [*a]",
		"a: {run: ${{x:y}}}", "? [a]\n: b", "a: {entrypoint: 'x \"y z\" $(a)'}", "<<: {a: b}", "--- !!map {a: !!str {run: b}}",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parse("f", "/nowhere", []byte(text), nil)
		if err == nil {
			_, err = newPlan(s, nil)
		}
		var pos *PosError
		if err != nil && !errors.As(err, &pos) {
			t.Errorf("%v has no place", err)
		}
	})
}
