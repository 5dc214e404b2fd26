package bundle

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	mtree "github.com/vbatts/go-mtree"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// errDisagree says that go-mtree's comparison and the record of changes say
// different things: one of them is wrong, and no layer is written.
var errDisagree = errors.New("the record of changes and the comparison of the trees disagree")

// mtreeKeywords are those that umoci compares.
var mtreeKeywords = mtree.ToKeywords(mtreeKeywordNames)

// decide compares the two sides of each pair and sets its kind.
func decide(pairs []*pathPair) error {
	old, now := &mtree.DirectoryHierarchy{}, &mtree.DirectoryHierarchy{}
	byPath := make(map[string]*pathPair, len(pairs))
	for _, p := range pairs {
		byPath[p.path] = p
		if p.old != nil {
			old.Entries = append(old.Entries, mtreeEntry(p.path, p.old, p.oldSum))
		}
		if p.now != nil {
			now.Entries = append(now.Entries, mtreeEntry(p.path, p.now, p.nowSum))
		}
	}
	deltas, err := mtree.Compare(old, now, mtreeKeywords)
	if err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	for i := range deltas {
		p := byPath[deltas[i].Path()]
		if p == nil {
			return fmt.Errorf("%w: %q is not in the record", errDisagree, deltas[i].Path())
		}
		p.kind = kindOf(deltas[i].Type())
		p.linkOnly = p.kind == changeModified && onlyNlink(deltas[i].Diff())
	}
	for _, p := range pairs {
		if want := p.presence(); want != p.kind && !(want == changeModified && p.kind == changeNone) {
			return fmt.Errorf("%w: %q", errDisagree, p.path)
		}
	}
	return nil
}

// presence is what follows from which sides have the path; changeModified may
// turn out to be no change.
func (p *pathPair) presence() changeKind {
	switch {
	case p.old == nil:
		return changeAdded
	case p.now == nil:
		return changeDeleted
	}
	return changeModified
}

func kindOf(t mtree.DifferenceType) changeKind {
	switch t {
	case mtree.Extra:
		return changeAdded
	case mtree.Missing:
		return changeDeleted
	case mtree.Modified:
		return changeModified
	case mtree.Same, mtree.ErrorDifference:
	}
	return changeNone
}

func onlyNlink(keys []mtree.KeyDelta) bool {
	for _, k := range keys {
		if k.Name() != "nlink" {
			return false
		}
	}
	return true
}

// mtreeEntry is an object as an entry with a full path. sum may be "".
func mtreeEntry(path string, o *object, sum string) mtree.Entry {
	return mtree.Entry{Name: visEncode(path), Type: mtree.FullType, Keywords: mtreeKeys(o, sum)}
}

// walkMount lists a mounted tree with go-mtree. Extended attributes are read
// here: go-mtree loses all of a file's where one is longer than 1024 bytes.
func walkMount(root string) (*mtree.DirectoryHierarchy, error) {
	keywords := slices.DeleteFunc(slices.Clone(mtreeKeywords), func(k mtree.Keyword) bool { return k == "xattr" })
	dh, err := mtree.Walk(root, nil, keywords, nil)
	if err != nil {
		return nil, fmt.Errorf("walk %s: %w", root, err)
	}
	for i := range dh.Entries {
		e := &dh.Entries[i]
		if e.Type != mtree.RelativeType || !seenXattrs(*e) {
			continue
		}
		name, err := e.Path()
		if err != nil {
			return nil, fmt.Errorf("walk %s: %w", root, err)
		}
		xattrs, err := pathXattrs(filepath.Join(root, name))
		if err != nil {
			return nil, err
		}
		for name, value := range xattrs {
			e.Keywords = append(e.Keywords, xattrKey(name, value))
		}
	}
	return dh, nil
}

// seenXattrs reports whether go-mtree compares the extended attributes of an
// entry's type.
func seenXattrs(e mtree.Entry) bool {
	t := valueOf(e, "type")
	return t == "file" || t == "dir"
}

func valueOf(e mtree.Entry, key mtree.Keyword) string {
	for _, kv := range e.AllKeys() {
		if kv.Keyword() == key {
			return kv.Value()
		}
	}
	return ""
}

// walkedChanges compares a base tree, as pairs with digests, with a walk of the
// mount, and returns the changes, but for those that no layer can hold.
func (c *comparison) walkedChanges(base []*pathPair, walk *mtree.DirectoryHierarchy) (map[string]changeKind, error) {
	old := &mtree.DirectoryHierarchy{}
	for _, p := range base {
		e := mtreeEntry(p.path, p.old, p.oldSum)
		e.Keywords = slices.DeleteFunc(e.Keywords, func(kv mtree.KeyVal) bool { return unseen(p.old, kv) })
		old.Entries = append(old.Entries, e)
	}
	deltas, err := mtree.Compare(old, walk, mtreeKeywords)
	if err != nil {
		return nil, fmt.Errorf("compare: %w", err)
	}
	out := map[string]changeKind{}
	for i := range deltas {
		kind, err := c.walkedKind(&deltas[i])
		if err != nil {
			return nil, err
		}
		if kind != changeNone {
			out[deltas[i].Path()] = kind
		}
	}
	return out, nil
}

// walkedKind is what a delta of a walk means for a layer.
func (c *comparison) walkedKind(d *mtree.InodeDelta) (changeKind, error) {
	kind := kindOf(d.Type())
	if now := d.New(); now != nil && valueOf(*now, "type") == "socket" {
		if kind == changeAdded {
			return changeNone, nil
		}
		kind = changeDeleted
	}
	switch kind {
	case changeDeleted:
		if topmost, err := c.topmost(d.Path()); err != nil || !topmost {
			return changeNone, err
		}
	case changeModified:
		if c.noChange(d) {
			return changeNone, nil
		}
	case changeNone, changeAdded:
	}
	return kind, nil
}

// noChange reports whether nothing differs but the number of links of a file, and
// a time that the layer's epoch makes equal, or stock umoci's rounding.
func (c *comparison) noChange(d *mtree.InodeDelta) bool {
	dir := valueOf(*d.New(), "type") == "dir"
	for _, k := range d.Diff() {
		switch {
		case k.Name() == "nlink" && !dir:
		case k.Name() == "tar_time" && k.Old() != nil && k.New() != nil && c.clampsTo(*k.New(), *k.Old()):
		case k.Name() == "tar_time" && c.pathRoundsUp(d.Path()):
		default:
			return false
		}
	}
	return true
}

// pathRoundsUp is roundsUp of a path: manifests have whole seconds.
func (c *comparison) pathRoundsUp(path string) bool {
	was, err := find(c.base, path)
	if err != nil || was == nil {
		return false
	}
	now, err := find(c.view, path)
	return err == nil && now != nil && roundsUp(now, was)
}

func (c *comparison) clampsTo(now, was string) bool {
	a, err1 := strconv.ParseInt(strings.TrimSuffix(now, ".000000000"), 10, 64)
	b, err2 := strconv.ParseInt(strings.TrimSuffix(was, ".000000000"), 10, 64)
	return err1 == nil && err2 == nil && layer.ClampTime(a, c.epoch).Unix() == b
}

// unseen reports whether go-mtree has no such value for an object.
func unseen(o *object, kv mtree.KeyVal) bool {
	switch o.typ() {
	case unix.S_IFREG, unix.S_IFDIR:
		return false
	case unix.S_IFLNK:
		return kv.Keyword().Prefix() == "xattr"
	}
	return kv.Keyword().Prefix() == "xattr" || kv.Keyword() == "link"
}

// checkManifest compares a directory with its manifest, as umoci does, and returns
// what differs. Sockets are left out with a note.
func (d *dir) checkManifest(name string, root *dirTree, log *slog.Logger) (_ []*pathPair, err error) {
	f, err := d.top.file(name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open manifest: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	dh, err := mtree.ParseSpec(f)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", d.file(name), err)
	}
	deltas, err := mtree.Check(root.dir, dh, mtreeKeywords, nil)
	if err != nil {
		return nil, fmt.Errorf("compare %s with its manifest: %w", root.dir, err)
	}
	c := comparison{view: root, log: log}
	var out []*pathPair
	for i := range deltas {
		p := &pathPair{path: deltas[i].Path(), kind: kindOf(deltas[i].Type())}
		if p.now, err = find(root, p.path); err != nil {
			return nil, err
		}
		if p.now != nil && p.now.typ() == unix.S_IFSOCK {
			log.Warn(socketNote, "path", p.path)
			if p.now = nil; p.kind == changeAdded {
				continue
			}
			p.kind = changeDeleted
		}
		if p.kind == changeDeleted {
			if topmost, err := c.topmost(p.path); err != nil {
				return nil, err
			} else if !topmost {
				continue
			}
		}
		if (p.now == nil) != (p.kind == changeDeleted) {
			return nil, fmt.Errorf("%q: %w", p.path, ErrChanging)
		}
		out = append(out, p)
	}
	return out, nil
}

// writeWalk writes the manifest of the unpacked tree, as umoci does.
func (d *dir) writeWalk(name string) error {
	root := d.file(rootfsName)
	dh, err := mtree.Walk(root, nil, mtreeKeywords, nil)
	if err != nil {
		return fmt.Errorf("walk %s: %w", root, err)
	}
	var b bytes.Buffer
	if _, err := dh.WriteTo(&b); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return d.top.replace(name, b.Bytes(), 0o644)
}

// mtreeKeys are the values of the ten keywords. Two things go beyond go-mtree's
// own: extended attributes of every type, and of any length.
func mtreeKeys(o *object, sum string) []mtree.KeyVal {
	a, typ := &o.attr, o.typ()
	mode := a.Mode & 0o7777
	size := int64(0)
	switch typ {
	case unix.S_IFREG:
		size = a.Size
	case unix.S_IFDIR:
		size = layer.DirSize
	case unix.S_IFLNK:
		size, mode = int64(len(o.target)), 0o777
	}
	keys := []mtree.KeyVal{
		keyVal("size", "%d", size),
		keyVal("type", "%s", mtreeTypes[typ]),
		keyVal("uid", "%d", a.UID),
		keyVal("gid", "%d", a.GID),
		keyVal("mode", "%#o", mode),
		keyVal("nlink", "%d", a.Nlink),
		keyVal("tar_time", "%d.000000000", a.Mtime.Sec),
	}
	switch typ {
	case unix.S_IFLNK:
		keys = append(keys, keyVal("link", "%s", visEncode(o.target)))
	case unix.S_IFCHR, unix.S_IFBLK:
		// umoci has no keyword for it: a device node made anew with another
		// number in the same second would be missed.
		keys = append(keys, keyVal("link", "%d:%d", unix.Major(a.Rdev), unix.Minor(a.Rdev)))
	}
	if sum != "" {
		keys = append(keys, keyVal("sha256digest", "%s", sum))
	}
	for name, value := range o.xattrs {
		keys = append(keys, xattrKey(name, value))
	}
	return keys
}

func keyVal(name, format string, args ...any) mtree.KeyVal {
	return mtree.KeyVal(name + "=" + fmt.Sprintf(format, args...))
}

// xattrKey is an extended attribute as a keyword. A "=" in its name would end the
// keyword.
func xattrKey(name, value string) mtree.KeyVal {
	name = strings.ReplaceAll(visEncode(name), "=", `\075`)
	return mtree.KeyVal("xattr." + name + "=" + base64.StdEncoding.EncodeToString([]byte(value)))
}
