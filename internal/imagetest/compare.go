package imagetest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// CompareOptions say what of two trees may differ.
type CompareOptions struct {
	Seconds    bool                   // times are compared to the second
	DirNlink   bool                   // compare the link counts of directories too
	NoSockets  bool                   // sockets of the wanted tree are missing in the other: no layer can hold them
	IgnoreTime func(path string) bool // paths whose mtime is nobody's promise; may be nil
}

// Difference is one path that is not the same in two trees.
type Difference struct {
	Path string
	Kind byte     // 'A': only in the second, 'D': only in the first, 'C': in both
	What []string // of 'C': "mode 0644 became 0755"
}

func (d Difference) String() string {
	switch d.Kind {
	case 'A':
		return d.Path + ": is there, but should not be"
	case 'D':
		return d.Path + ": is missing"
	}
	return d.Path + ": " + strings.Join(d.What, ", ")
}

// Compare lists how got differs from want, sorted by path.
func Compare(want, got Tree, opt CompareOptions) []Difference {
	paths := slices.Sorted(maps.Keys(want))
	for p := range got {
		if want[p] == nil {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	var out []Difference
	for _, p := range paths {
		w, g := want[p], got[p]
		if w != nil && opt.NoSockets && w.Type() == unix.S_IFSOCK {
			w = nil
		}
		switch {
		case w == nil && g == nil:
		case w == nil:
			out = append(out, Difference{Path: p, Kind: 'A'})
		case g == nil:
			out = append(out, Difference{Path: p, Kind: 'D'})
		default:
			if what := w.differs(g, opt); len(what) > 0 {
				out = append(out, Difference{Path: p, Kind: 'C', What: what})
			}
		}
	}
	return out
}

// differs says what of e is another in g.
func (e *Entry) differs(g *Entry, opt CompareOptions) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if e.Mode != g.Mode {
		add("mode %#o, want %#o", g.Mode, e.Mode)
	}
	if e.UID != g.UID || e.GID != g.GID {
		add("owner %d:%d, want %d:%d", g.UID, g.GID, e.UID, e.GID)
	}
	if e.Size != g.Size {
		add("size %d, want %d", g.Size, e.Size)
	}
	if e.Target != g.Target {
		add("target %q, want %q", g.Target, e.Target)
	}
	if e.Rdev != g.Rdev {
		add("device %d,%d, want %d,%d", unix.Major(g.Rdev), unix.Minor(g.Rdev), unix.Major(e.Rdev), unix.Minor(e.Rdev))
	}
	if e.Sum != g.Sum {
		add("content %.12s…, want %.12s…", g.Sum, e.Sum)
	}
	if e.Nlink != g.Nlink && (e.Type() != unix.S_IFDIR || opt.DirNlink) {
		add("nlink %d, want %d", g.Nlink, e.Nlink)
	}
	if e.Group != g.Group {
		add("hard link of %q, want %q", g.Group, e.Group)
	}
	out = append(out, diffXattrs(e.Xattrs, g.Xattrs)...)
	wt, gt := e.Mtime, g.Mtime
	if opt.Seconds {
		wt, gt = time.Unix(wt.Unix(), 0), time.Unix(gt.Unix(), 0)
	}
	if !wt.Equal(gt) && (opt.IgnoreTime == nil || !opt.IgnoreTime(e.Path)) {
		const layout = "2006-01-02T15:04:05.999999999Z07:00"
		add("mtime %s, want %s", gt.UTC().Format(layout), wt.UTC().Format(layout))
	}
	return out
}

func diffXattrs(want, got map[string]string) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if v, ok := got[name]; !ok {
			out = append(out, fmt.Sprintf("attribute %s missing", name))
		} else if v != want[name] {
			out = append(out, fmt.Sprintf("attribute %s %q, want %q", name, v, want[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[name]; !ok {
			out = append(out, fmt.Sprintf("attribute %s too many", name))
		}
	}
	return out
}

// SameTree fails the test with the first differences where there are any.
func SameTree(t testing.TB, what string, want, got Tree, opt CompareOptions) {
	t.Helper()
	diffs := Compare(want, got, opt)
	if len(diffs) == 0 {
		return
	}
	const shown = 25
	var b strings.Builder
	for _, d := range diffs[:min(len(diffs), shown)] {
		fmt.Fprintf(&b, "\n  %s", d)
	}
	if len(diffs) > shown {
		fmt.Fprintf(&b, "\n  … and %d more", len(diffs)-shown)
	}
	t.Errorf("%s: %d of %d entries differ:%s", what, len(diffs), len(want), b.String())
}

// MustReadTree is ReadTree for tests.
func MustReadTree(t testing.TB, root string) Tree {
	t.Helper()
	tree, err := ReadTree(root)
	if err != nil {
		t.Fatalf("read tree: %v", err)
	}
	return tree
}

// MaskClock gives a tree that another program extracted since start what ours has in place
// of what that took from the time of day and its umask: the times of directories in which
// it made or removed something late, and all of a directory that no entry describes.
func (t Tree) MaskClock(ours Tree, start time.Time) {
	for p, e := range t {
		o := ours[p]
		if o == nil || e.Type() != unix.S_IFDIR || o.Type() != unix.S_IFDIR || e.Mtime.Unix() < start.Unix() || e.Mtime.After(time.Now()) {
			continue
		}
		e.Mtime = o.Mtime
		if o.Mode == unix.S_IFDIR|0o755 && o.UID == 0 && o.GID == 0 && o.Mtime.Unix() == 0 && len(o.Xattrs) == 0 {
			nlink := e.Nlink
			*e = *o
			e.Nlink = nlink
		}
	}
}
