package build

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/umoci-mount/umoci-mount/cas"
)

// maxSpec bounds a spec, in bytes.
const maxSpec = 4 << 20

// Read reads a spec. vars are what ${{NAME}} stands for. Errors are *PosError, of
// ErrSpec where the file could be read.
func Read(file string, vars map[string]string) (*Spec, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if len(data) > maxSpec {
		return nil, bad(Pos{File: file}, "longer than %d MiB", maxSpec>>20)
	}
	dir, err := filepath.Abs(filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	return parse(file, dir, data, vars)
}

// parse is Read of what is read already.
func parse(file, dir string, data []byte, vars map[string]string) (*Spec, error) {
	d := &decoder{file: file, vars: vars, used: map[string]bool{}}
	spec := &Spec{File: file, Dir: dir}
	dec := yaml.NewDecoder(strings.NewReader(string(data)))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, bad(Pos{File: file}, "no targets: want NAME: with base and what to do below it")
		}
		return nil, yamlError(file, err)
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		if err != nil {
			return nil, yamlError(file, err)
		}
		return nil, bad(d.pos(&more), "a second document: want one")
	}
	if err := d.targets(doc.Content[0], spec); err != nil {
		return nil, err
	}
	for name := range vars {
		if !d.used[name] {
			return nil, bad(Pos{File: file}, "nothing has ${{%s}}, which is set", name)
		}
	}
	return spec, nil
}

// yamlError gives the parser's error its place.
func yamlError(file string, err error) error {
	pos := Pos{File: file}
	var load *yaml.LoadError
	if !errors.As(err, &load) {
		return bad(pos, "not YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	pos.Line, pos.Col = load.Mark.Line, load.Mark.Column
	if load.ContextMsg == "" {
		return bad(pos, "not YAML: %s", load.Message)
	}
	return bad(pos, "not YAML: %s, %s from line %d", load.Message, load.ContextMsg, load.ContextMark.Line)
}

// decoder turns nodes into a spec.
type decoder struct {
	file string
	vars map[string]string
	used map[string]bool // variables
}

func (d *decoder) pos(n *yaml.Node) Pos { return Pos{d.file, n.Line, n.Column} }

// maxAliases bounds aliases of aliases.
const maxAliases = 100

// real is what an alias stands for.
func real(n *yaml.Node) *yaml.Node {
	for range maxAliases {
		if n.Kind != yaml.AliasNode {
			break
		}
		n = n.Alias
	}
	return n
}

var kindNames = map[yaml.Kind]string{
	yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list", yaml.ScalarNode: "a value",
}

// pairs calls fn for each key of a mapping; those that "<<" merges come first, and
// give way.
func (d *decoder) pairs(n *yaml.Node, what string, fn func(key Text, value *yaml.Node) error) error {
	m := real(n)
	if m.Kind != yaml.MappingNode {
		return bad(d.pos(n), "%s is %s: want a mapping", what, d.kind(m))
	}
	seen := map[string]Pos{}
	for i := 0; i+1 < len(m.Content); i += 2 {
		k := m.Content[i]
		if k.Kind != yaml.ScalarNode || k.Tag == "!!null" {
			return bad(d.pos(k), "a key of %s is %s: want a name", what, d.kind(k))
		}
		if k.Tag == "!!merge" {
			return bad(d.pos(k), "merge keys (<<) are not supported: use an alias for each value")
		}
		if was, have := seen[k.Value]; have {
			return bad(d.pos(k), "%s has %q twice: first in line %d", what, k.Value, was.Line)
		}
		seen[k.Value] = d.pos(k)
		if err := fn(Text{k.Value, d.pos(k)}, m.Content[i+1]); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) kind(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return "empty"
	}
	return kindNames[n.Kind]
}

func (d *decoder) targets(n *yaml.Node, spec *Spec) error {
	err := d.pairs(n, "a spec", func(key Text, value *yaml.Node) error {
		if err := cas.CheckTag(key.Value); err != nil {
			return bad(key.Pos, "target %q: %v", key.Value, err)
		}
		if key.Value == Empty {
			return bad(key.Pos, "target %q: the name means the base without files", key.Value)
		}
		t := &Target{Name: key.Value, Pos: key.Pos, Layers: LayersTarget, Base: Text{Empty, key.Pos}}
		spec.Targets = append(spec.Targets, t)
		return d.target(value, t)
	})
	if err == nil && len(spec.Targets) == 0 {
		err = bad(d.pos(n), "no targets: want NAME: with base and what to do below it")
	}
	return err
}

// targetKeys are what a target may have, and how it is read. The schema has the same.
var targetKeys = map[string]func(d *decoder, n *yaml.Node, t *Target) error{
	"base":   func(d *decoder, n *yaml.Node, t *Target) (err error) { t.Base, err = d.text(n, "base"); return err },
	"layers": (*decoder).layers,
	"pre":    func(d *decoder, n *yaml.Node, t *Target) (err error) { t.Pre, err = d.texts(n, "pre"); return err },
	"post":   func(d *decoder, n *yaml.Node, t *Target) (err error) { t.Post, err = d.texts(n, "post"); return err },
	"copy":   (*decoder).copies,
	"install": func(d *decoder, n *yaml.Node, t *Target) (err error) {
		t.Install, err = d.texts(n, "install")
		return err
	},
	"expand": func(d *decoder, n *yaml.Node, t *Target) (err error) {
		t.Expand, err = d.texts(n, "expand")
		return err
	},
	"run": func(d *decoder, n *yaml.Node, t *Target) (err error) { t.Run, err = d.texts(n, "run"); return err },

	"entrypoint": func(d *decoder, n *yaml.Node, t *Target) (err error) {
		t.Config.Entrypoint, err = d.words(n, "entrypoint")
		return err
	},
	"cmd": func(d *decoder, n *yaml.Node, t *Target) (err error) {
		t.Config.Cmd, err = d.words(n, "cmd")
		return err
	},
	"env": func(d *decoder, n *yaml.Node, t *Target) (err error) {
		t.Config.Env, err = d.assignments(n, "env")
		return err
	},
	"labels": func(d *decoder, n *yaml.Node, t *Target) (err error) {
		t.Config.Labels, err = d.assignments(n, "labels")
		return err
	},
	"annotations": func(d *decoder, n *yaml.Node, t *Target) (err error) {
		t.Config.Annotations, err = d.assignments(n, "annotations")
		return err
	},
	"volumes": func(d *decoder, n *yaml.Node, t *Target) (err error) {
		t.Config.Volumes, err = d.values(n, "volumes")
		return err
	},
	"ports": func(d *decoder, n *yaml.Node, t *Target) (err error) {
		t.Config.Ports, err = d.values(n, "ports")
		return err
	},
	"workdir": func(d *decoder, n *yaml.Node, t *Target) (err error) {
		t.Config.Workdir, err = d.optional(n, "workdir")
		return err
	},
	"user": func(d *decoder, n *yaml.Node, t *Target) (err error) {
		t.Config.User, err = d.optional(n, "user")
		return err
	},
	"author": func(d *decoder, n *yaml.Node, t *Target) (err error) {
		t.Config.Author, err = d.optional(n, "author")
		return err
	},
}

// configKeys are those that change no files.
var configKeys = []string{"entrypoint", "cmd", "env", "labels", "annotations", "volumes", "ports", "workdir", "user", "author"}

func (d *decoder) target(n *yaml.Node, t *Target) error {
	err := d.pairs(n, "target "+t.Name, func(key Text, value *yaml.Node) error {
		read := targetKeys[key.Value]
		if read == nil {
			return bad(key.Pos, "target %s: unknown key %q%s", t.Name, key.Value, nearKey(key.Value))
		}
		if t.Config.isZero() && slices.Contains(configKeys, key.Value) {
			t.Config.Pos = key.Pos
		}
		return read(d, value, t)
	})
	if err != nil {
		return err
	}
	if len(t.Pre)+len(t.Post)+len(t.Copy)+len(t.Install)+len(t.Expand)+len(t.Run) == 0 && t.Config.isZero() {
		return bad(t.Pos, "target %s does nothing: want one of %s, or something for the config", t.Name, "copy, install, expand, run")
	}
	return nil
}

// nearKey names a key that was perhaps meant.
func nearKey(key string) string {
	best, far := "", 6
	for name := range targetKeys {
		n := 2 * editDistance(key, name)
		if key != "" && key[0] == name[0] {
			n-- // typing errors are seldom in the first letter
		}
		if n < far || n == far && name < best {
			best, far = name, n
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s?)", best)
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

func (d *decoder) layers(n *yaml.Node, t *Target) error {
	v, err := d.text(n, "layers")
	if err != nil {
		return err
	}
	if v.Value != LayersTarget && v.Value != LayersStep {
		return bad(v.Pos, "layers is %q: want %s or %s", v.Value, LayersTarget, LayersStep)
	}
	t.Layers = v.Value
	return nil
}
