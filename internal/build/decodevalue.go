package build

import (
	"strings"

	"github.com/mattn/go-shellwords"
	"go.yaml.in/yaml/v4"
)

// text is a value; numbers and so on are taken as they are written.
func (d *decoder) text(n *yaml.Node, what string) (Text, error) {
	v := real(n)
	if v.Kind != yaml.ScalarNode {
		return Text{}, bad(d.pos(n), "%s is %s: want a string", what, d.kind(v))
	}
	if v.Tag == "!!null" || strings.TrimSpace(v.Value) == "" {
		return Text{}, bad(d.pos(n), "%s is empty", what)
	}
	s, err := d.expandVars(v.Value, d.pos(n))
	return Text{s, d.pos(n)}, err
}

func (d *decoder) optional(n *yaml.Node, what string) (*string, error) {
	if v := real(n); v.Kind == yaml.ScalarNode && v.Tag == "!!str" && v.Value == "" {
		return new(string), nil // takes away what the base has
	}
	t, err := d.text(n, what)
	return &t.Value, err
}

// texts is a string or a list of them.
func (d *decoder) texts(n *yaml.Node, what string) ([]Text, error) {
	v := real(n)
	if v.Kind != yaml.SequenceNode {
		if v.Kind == yaml.MappingNode {
			return nil, bad(d.pos(n), "%s is a mapping: want a string or a list of strings", what)
		}
		t, err := d.text(n, what)
		return []Text{t}, err
	}
	var out []Text
	for _, item := range v.Content {
		t, err := d.text(item, "an item of "+what)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	if len(out) == 0 {
		return nil, bad(d.pos(n), "%s is an empty list", what)
	}
	return out, nil
}

// values is texts without places.
func (d *decoder) values(n *yaml.Node, what string) ([]string, error) {
	list, err := d.texts(n, what)
	var out []string
	for _, t := range list {
		out = append(out, t.Value)
	}
	return out, err
}

// words is a command line: a list as it is, a string split as a shell does.
func (d *decoder) words(n *yaml.Node, what string) ([]string, error) {
	if real(n).Kind == yaml.SequenceNode {
		return d.values(n, what)
	}
	t, err := d.text(n, what)
	if err != nil {
		return nil, err
	}
	return splitWords(t, what)
}

func splitWords(t Text, what string) ([]string, error) {
	p := shellwords.NewParser()
	words, err := p.Parse(t.Value)
	if err != nil {
		return nil, bad(t.Pos, "%s: %v", what, err)
	}
	if p.Position >= 0 {
		return nil, bad(t.Pos, "%s: %q has a meaning for a shell only: quote it, or use a list [/bin/sh, -c, ...]", what, t.Value[p.Position:])
	}
	return words, nil
}

// assignments is a mapping of names to values, or a string or list of NAME=VALUE.
func (d *decoder) assignments(n *yaml.Node, what string) ([]string, error) {
	var out []string
	if real(n).Kind != yaml.MappingNode {
		list, err := d.texts(n, what)
		if err != nil {
			return nil, err
		}
		for _, t := range list {
			if name, _, ok := strings.Cut(t.Value, "="); !ok || name == "" {
				return nil, bad(t.Pos, "%s: %q: want NAME=VALUE", what, t.Value)
			}
			out = append(out, t.Value)
		}
		return out, nil
	}
	err := d.pairs(n, what, func(key Text, value *yaml.Node) error {
		if key.Value == "" || strings.Contains(key.Value, "=") {
			return bad(key.Pos, "%s: %q is no name", what, key.Value)
		}
		v, err := d.optional(value, what+" "+key.Value)
		if err == nil {
			out = append(out, key.Value+"="+*v)
		}
		return err
	})
	return out, err
}
