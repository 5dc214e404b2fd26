package bundle

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// memTree is a tree in memory: paths to inodes.
type memTree struct {
	nodes map[string]*memNode
	next  layer.Ino
}

type memNode struct {
	object
	data string
}

func newMemTree() *memTree {
	t := &memTree{nodes: map[string]*memNode{}}
	t.put(".", unix.S_IFDIR|0o755, "")
	return t
}

// put makes or replaces what is at a path.
func (t *memTree) put(p string, mode uint32, data string) *memNode {
	t.remove(p)
	t.next++
	n := &memNode{data: data}
	n.attr = layer.Attr{Ino: t.next, Mode: mode, Mtime: layer.Timespec{Sec: 100}}
	if mode&unix.S_IFMT == unix.S_IFLNK {
		n.target = data
	}
	n.attr.Size = int64(len(data))
	t.nodes[p] = n
	return n
}

func (t *memTree) link(from, to string) {
	n := t.nodes[from]
	t.remove(to)
	t.nodes[to] = n
}

// remove takes away a path and all below.
func (t *memTree) remove(p string) {
	maps.DeleteFunc(t.nodes, func(q string, _ *memNode) bool { return q == p || strings.HasPrefix(q, p+"/") })
}

func (t *memTree) rename(from, to string) {
	moved := map[string]*memNode{}
	for p, n := range t.nodes {
		if p == from || strings.HasPrefix(p, from+"/") {
			moved[to+strings.TrimPrefix(p, from)] = n
		}
	}
	t.remove(from)
	t.remove(to)
	maps.Copy(t.nodes, moved)
}

func (t *memTree) clone() *memTree {
	c := &memTree{nodes: map[string]*memNode{}, next: t.next}
	copies := map[*memNode]*memNode{}
	for p, n := range t.nodes {
		if copies[n] == nil {
			m := *n
			m.xattrs = maps.Clone(n.xattrs)
			copies[n] = &m
		}
		c.nodes[p] = copies[n]
	}
	return c
}

func (t *memTree) nlink(p string, n *memNode) uint32 {
	count := uint32(0)
	for q, m := range t.nodes {
		switch {
		case n.isDir() && q != "." && path.Dir(q) == p && m.isDir():
			count++
		case !n.isDir() && m == n:
			count++
		}
	}
	if n.isDir() {
		count += 2
	}
	return count
}

func (t *memTree) stat(p string) (layer.Attr, error) {
	n := t.nodes[p]
	if n == nil {
		return layer.Attr{}, fs.ErrNotExist
	}
	a := n.attr
	a.Nlink = t.nlink(p, n)
	return a, nil
}

func (t *memTree) byIno(ino layer.Ino) (string, *memNode) {
	for p, n := range t.nodes {
		if n.attr.Ino == ino {
			return p, n
		}
	}
	return "", nil
}

func (t *memTree) list(dir layer.Ino) ([]string, error) {
	at, _ := t.byIno(dir)
	var out []string
	for p := range t.nodes {
		if p != "." && path.Dir(p) == at {
			out = append(out, path.Base(p))
		}
	}
	slices.Sort(out)
	return out, nil
}

func (t *memTree) readlink(ino layer.Ino) (string, error) {
	_, n := t.byIno(ino)
	return n.target, nil
}

func (t *memTree) xattrs(ino layer.Ino) (map[string]string, error) {
	_, n := t.byIno(ino)
	return n.xattrs, nil
}

type memContent struct{ *bytes.Reader }

func (memContent) Close() error { return nil }

func (t *memTree) open(ino layer.Ino) (content, error) {
	_, n := t.byIno(ino)
	return memContent{bytes.NewReader([]byte(n.data))}, nil
}

func (t *memTree) names(ino layer.Ino) ([]string, error) {
	var out []string
	for p, n := range t.nodes {
		if n.attr.Ino == ino {
			out = append(out, p)
		}
	}
	return out, nil
}

// apply is what an extractor makes of a layer on top of the tree.
func (t *memTree) apply(view *memTree, plan []planned) error {
	for _, e := range plan {
		if e.whiteout {
			if t.nodes[e.path] == nil {
				return fmt.Errorf("whiteout of %q, which is not there", e.path)
			}
			t.remove(e.path)
		}
	}
	for _, e := range plan {
		if e.whiteout {
			continue
		}
		if dir := t.nodes[path.Dir(e.path)]; dir == nil || !dir.isDir() {
			return fmt.Errorf("%q has no directory", e.path)
		}
		if e.link != "" {
			if t.nodes[e.link] == nil {
				return fmt.Errorf("%q is a link to %q, which is not there", e.path, e.link)
			}
			t.link(e.link, e.path)
			continue
		}
		old := t.nodes[e.path]
		_, from := view.byIno(e.now.attr.Ino)
		if old != nil && old.isDir() && from.isDir() {
			ino := old.attr.Ino
			*old = *from
			old.attr.Ino = ino
			continue
		}
		t.remove(e.path)
		n := *from
		t.next += 1000 // apart from the view's
		n.attr.Ino = t.next
		t.nodes[e.path] = &n
	}
	return nil
}

// describe writes a tree as lines; inodes are named by their first path. Sockets
// are not in it.
func (t *memTree) describe() string {
	paths := slices.SortedFunc(maps.Keys(t.nodes), layer.ComparePaths)
	first := map[*memNode]string{}
	var b strings.Builder
	for _, p := range paths {
		n := t.nodes[p]
		if n.typ() == unix.S_IFSOCK {
			continue
		}
		if first[n] == "" {
			first[n] = p
		}
		fmt.Fprintf(&b, "%s =%s %o %d:%d %d %q %q %v\n", p, first[n], n.attr.Mode, n.attr.UID, n.attr.GID,
			n.attr.Mtime.Sec, n.data, n.target, n.xattrs)
	}
	return b.String()
}

// compareTrees runs comparison and planner on two trees.
func compareTrees(t *testing.T, base, view *memTree, m masks, paths ...string) ([]*pathPair, []planned, error) {
	t.Helper()
	w := newTreeWalk(base, view)
	if len(paths) == 0 {
		if err := w.everything(context.Background(), "."); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range paths {
		w.seen[p] = struct{}{}
	}
	c := comparison{base: base, view: view, log: slog.New(slog.DiscardHandler)}
	pairs, err := c.run(context.Background(), w.paths())
	if err != nil {
		return nil, nil, err
	}
	p := planner{base: base, view: view, pairs: pairs, viewNames: view.names, baseNames: base.names, masks: m}
	plan, err := p.plan()
	return pairs, plan, err
}

func planLines(plan []planned) []string {
	var out []string
	for _, e := range plan {
		switch {
		case e.whiteout:
			out = append(out, "- "+e.path)
		case e.link != "":
			out = append(out, "+ "+e.path+" = "+e.link)
		default:
			out = append(out, "+ "+e.path)
		}
	}
	return out
}

// randomTree makes a small tree with few names, so that edits meet.
func randomTree(r *rand.Rand) *memTree {
	t := newMemTree()
	for range 4 + r.IntN(12) {
		randomEdit(r, t)
	}
	return t
}

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// randomPath is a path in a directory that exists; it may be taken.
func randomPath(r *rand.Rand, t *memTree) string {
	var dirs []string
	for p, n := range t.nodes {
		if n.isDir() && strings.Count(p, "/") < 2 {
			dirs = append(dirs, p)
		}
	}
	slices.Sort(dirs)
	return path.Join(pick(r, dirs), pick(r, []string{"a", "b", "a-b", "c"}))
}

func randomExisting(r *rand.Rand, t *memTree) string {
	return pick(r, slices.Sorted(maps.Keys(t.nodes)))
}

func randomEdit(r *rand.Rand, t *memTree) {
	files := []uint32{unix.S_IFREG | 0o644, unix.S_IFREG | 0o600, unix.S_IFLNK | 0o777, unix.S_IFIFO | 0o600, unix.S_IFSOCK | 0o600}
	switch p := randomPath(r, t); r.IntN(11) {
	case 0, 1, 2:
		mode, data := pick(r, files), pick(r, []string{"x", "y"})
		if typ := mode & unix.S_IFMT; typ != unix.S_IFREG && typ != unix.S_IFLNK {
			data = ""
		}
		t.put(p, mode, data).attr.Mtime.Sec = 100 + r.Int64N(2)
	case 3, 4:
		if t.nodes[p] == nil {
			t.put(p, unix.S_IFDIR|0o755, "")
		}
	case 5:
		if q := randomExisting(r, t); !t.nodes[q].isDir() && (t.nodes[p] == nil || !t.nodes[p].isDir()) {
			t.link(q, p)
		}
	case 6:
		if q := randomExisting(r, t); q != "." && q != p && !strings.HasPrefix(p, q+"/") && !strings.HasPrefix(q, p+"/") {
			t.rename(q, p)
		}
	case 7:
		if q := randomExisting(r, t); q != "." {
			t.remove(q)
		}
	case 8:
		t.nodes[randomExisting(r, t)].attr.UID = uint32(r.IntN(2))
	case 9: // a copy takes the place of the original
		if q := randomExisting(r, t); !t.nodes[q].isDir() {
			n := *t.nodes[q]
			t.next++
			n.attr.Ino = t.next
			t.nodes[q] = &n
		}
	case 10:
		n := t.nodes[randomExisting(r, t)]
		n.xattrs = pick(r, []map[string]string{nil, {"user.a": "1"}, {"user.a": "2"}})
	}
}
