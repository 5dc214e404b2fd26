package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/umoci-mount/umoci-mount/layer"
)

// planned is one entry of a layer to be.
type planned struct {
	path     string
	whiteout bool
	now      *object // nil for a whiteout
	link     string  // earlier entry of the same inode; "": the content is here
}

// planner turns a comparison into the entries of a layer. What it adds to the
// comparison is hard links: names of one inode of the view must be names of one
// inode where the layer is applied, and others must not.
type planner struct {
	base tree
	view tree
	// viewNames are names in the view of an inode that the mounted image has; those
	// among the pairs need not be in it.
	viewNames func(ino layer.Ino) ([]string, error)
	// baseNames are all names in the base image of one of its inodes.
	baseNames func(ino layer.Ino) ([]string, error)
	masks     masks

	pairs  []*pathPair
	byIno  map[layer.Ino][]string // names among the pairs of inodes with several
	byPath map[string]*pathPair
	emit   map[string]*object
}

// plan is the entries, sorted.
func (p *planner) plan() ([]planned, error) {
	p.byIno, p.byPath = map[layer.Ino][]string{}, map[string]*pathPair{}
	p.emit = map[string]*object{}
	var out []planned
	for _, pair := range p.pairs {
		p.byPath[pair.path] = pair
		if o := pair.now; o != nil && !o.isDir() && o.attr.Nlink > 1 {
			p.byIno[o.attr.Ino] = append(p.byIno[o.attr.Ino], pair.path)
		}
	}
	for pair := range changed(p.pairs) {
		masked, err := p.masked(pair)
		switch {
		case err != nil:
			return nil, err
		case masked:
		case pair.kind == changeDeleted:
			out = append(out, planned{path: pair.path, whiteout: true})
		default:
			p.emit[pair.path] = pair.now
		}
	}
	if err := p.wholeGroups(); err != nil {
		return nil, err
	}
	if err := p.joined(); err != nil {
		return nil, err
	}
	if err := p.parted(); err != nil {
		return nil, err
	}
	for name, o := range p.emit {
		if layer.IsWhiteoutName(path.Base(name)) {
			return nil, fmt.Errorf("%q: %w", name, layer.ErrReservedName)
		}
		out = append(out, planned{path: name, now: o})
	}
	slices.SortFunc(out, func(a, b planned) int { return layer.ComparePaths(a.path, b.path) })
	link(out)
	return out, nil
}

// masked reports whether a change is left out: that of a masked path, or of a directory
// in which nothing but the number of masked directories differs.
func (p *planner) masked(pair *pathPair) (bool, error) {
	if p.masks.match(pair.path) {
		return true, nil
	}
	if !pair.linkOnly || !pair.now.isDir() {
		return false, nil
	}
	if slices.Contains(p.masks, "/") { // it is the root, and all in it is masked
		return true, nil
	}
	was, err := p.unmaskedLinks(p.base, pair.path, pair.old)
	if err != nil {
		return false, fmt.Errorf("base image: %w", err)
	}
	now, err := p.unmaskedLinks(p.view, pair.path, pair.now)
	return was == now, err
}

// unmaskedLinks is a directory's number of links without those of masked directories
// in it.
func (p *planner) unmaskedLinks(t tree, dir string, o *object) (int, error) {
	n := int(o.attr.Nlink)
	for _, name := range p.masks.in(dir) {
		child, err := dirAt(t, name)
		if err != nil {
			return 0, fmt.Errorf("look at %q: %w", name, err)
		}
		if child != 0 {
			n--
		}
	}
	return n, nil
}

// link makes each further name of an inode a link to the first.
func link(entries []planned) {
	first := map[layer.Ino]string{}
	for i := range entries {
		o := entries[i].now
		if o == nil || o.isDir() || o.attr.Nlink < 2 {
			continue
		}
		if to, have := first[o.attr.Ino]; have {
			entries[i].link = to
		} else {
			first[o.attr.Ino] = entries[i].path
		}
	}
}

// group is all names of an inode of the view that may be in the layer.
func (p *planner) group(ino layer.Ino) ([]string, error) {
	names, err := p.viewNames(ino)
	if err != nil {
		return nil, err
	}
	names = slices.Concat(names, p.byIno[ino])
	slices.SortFunc(names, layer.ComparePaths)
	return slices.DeleteFunc(slices.Compact(names), p.masks.match), nil
}

// emitGroup puts every name of an inode into the layer.
func (p *planner) emitGroup(ino layer.Ino) error {
	names, err := p.group(ino)
	if err != nil {
		return err
	}
	for _, name := range names {
		if p.emit[name] != nil {
			continue
		}
		o := (*object)(nil)
		if pair := p.byPath[name]; pair != nil {
			o = pair.now
		} else if o, err = find(p.view, name); err != nil {
			return err
		}
		if o != nil && o.attr.Ino == ino {
			p.emit[name] = o
		}
	}
	return nil
}

// wholeGroups adds the other names of what is in the layer: applying an entry
// parts it from names that are not.
func (p *planner) wholeGroups() error {
	inos := map[layer.Ino]struct{}{}
	for _, o := range p.emit {
		if !o.isDir() && o.attr.Nlink > 1 {
			inos[o.attr.Ino] = struct{}{}
		}
	}
	for ino := range inos {
		if err := p.emitGroup(ino); err != nil {
			return err
		}
	}
	return nil
}

// joined adds inodes of the view whose names are names of several in the base,
// equal in all but that.
func (p *planner) joined() error {
	for ino := range p.byIno {
		names, err := p.group(ino)
		if err != nil {
			return err
		}
		var was layer.Ino
		for _, name := range names {
			if p.emit[name] != nil {
				break // the whole group is
			}
			a, err := p.base.stat(name)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("base image: look at %q: %w", name, err)
			}
			if err != nil || was != 0 && a.Ino != was {
				if err := p.emitGroup(ino); err != nil {
					return err
				}
				break
			}
			was = a.Ino
		}
	}
	return nil
}

// parted adds inodes of the view that are one in the base, but for the one with
// the first name, which can stay.
func (p *planner) parted() error {
	done := map[layer.Ino]bool{}
	for _, pair := range p.pairs {
		if pair.old == nil || pair.now == nil || pair.old.isDir() || pair.old.attr.Nlink < 2 || done[pair.old.attr.Ino] {
			continue
		}
		done[pair.old.attr.Ino] = true
		names, err := p.baseNames(pair.old.attr.Ino)
		if err != nil {
			return err
		}
		slices.SortFunc(names, layer.ComparePaths)
		if err := p.part(names); err != nil {
			return err
		}
	}
	return nil
}

// part is parted for the names of one inode of the base.
func (p *planner) part(names []string) error {
	var stays layer.Ino
	for _, name := range names {
		if p.emit[name] != nil || p.masks.match(name) {
			continue
		}
		now, err := p.inoAt(name)
		if err != nil {
			return err
		}
		switch {
		case now == 0:
		case stays == 0:
			stays = now
		case now != stays:
			o, err := find(p.view, name)
			if err != nil {
				return err
			}
			if o != nil {
				p.emit[name] = o
			}
			if err := p.emitGroup(now); err != nil {
				return err
			}
		}
	}
	return nil
}

// inoAt is the view's inode at a path; 0 where there is none.
func (p *planner) inoAt(name string) (layer.Ino, error) {
	if pair := p.byPath[name]; pair != nil {
		if pair.now == nil {
			return 0, nil
		}
		return pair.now.attr.Ino, nil
	}
	o, err := find(p.view, name)
	if err != nil || o == nil {
		return 0, err
	}
	return o.attr.Ino, nil
}
