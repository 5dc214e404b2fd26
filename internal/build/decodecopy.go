package build

import (
	"strconv"

	"go.yaml.in/yaml/v4"
)

// copies reads "SOURCE DEST", a mapping, or a list of these.
func (d *decoder) copies(n *yaml.Node, t *Target) error {
	items := []*yaml.Node{n}
	if v := real(n); v.Kind == yaml.SequenceNode {
		if items = v.Content; len(items) == 0 {
			return bad(d.pos(n), "copy is an empty list")
		}
	}
	for _, item := range items {
		c, err := d.copyItem(item)
		if err != nil {
			return err
		}
		t.Copy = append(t.Copy, c)
	}
	return nil
}

func (d *decoder) copyItem(n *yaml.Node) (CopyItem, error) {
	if real(n).Kind == yaml.MappingNode {
		return d.copyMapping(n)
	}
	t, err := d.text(n, "copy")
	if err != nil {
		return CopyItem{}, err
	}
	words, err := splitWords(t, "copy")
	if err != nil {
		return CopyItem{}, err
	}
	if len(words) != 2 {
		return CopyItem{}, bad(t.Pos, "copy %q: want \"SOURCE DEST\"; quote a name with blanks", t.Value)
	}
	return CopyItem{Pos: t.Pos, Source: words[0], Dest: words[1]}, nil
}

// copyKeys are the keys of an item of copy. The schema has the same.
var copyKeys = []string{"from", "source", "dest", "owner", "mode"}

func (d *decoder) copyMapping(n *yaml.Node) (CopyItem, error) {
	c := CopyItem{Pos: d.pos(n)}
	err := d.pairs(n, "an item of copy", func(key Text, value *yaml.Node) error {
		v, err := d.text(value, key.Value)
		if err != nil {
			return err
		}
		switch key.Value {
		case "from":
			c.From = v
		case "source":
			c.Source = v.Value
		case "dest":
			c.Dest = v.Value
		case "owner":
			c.Owner = v.Value
		case "mode":
			mode, err := strconv.ParseUint(v.Value, 8, 32)
			if err != nil || mode > 0o7777 {
				return bad(v.Pos, "mode %q: want octal permissions, as \"0755\"", v.Value)
			}
			m := uint32(mode)
			c.Mode = &m
		default:
			return bad(key.Pos, "copy: unknown key %q: want from, source, dest, owner or mode", key.Value)
		}
		return nil
	})
	if err == nil && (c.Source == "" || c.Dest == "") {
		err = bad(c.Pos, "copy: want source and dest")
	}
	return c, err
}
