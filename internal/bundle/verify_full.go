package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// fullCheck compares every path of the two trees and fails if that finds anything
// else than pairs say. Where the tree is mounted with the image's own ids, go-mtree
// reads it through the mount; else it is read in this process.
func (d *diffing) fullCheck(ctx context.Context, pairs []*pathPair) error {
	o := &d.view.State.Options
	var all map[string]changeKind
	var err error
	walked := d.view.Mounted() && !o.squashed() && !o.mapped() && !o.Rootless
	if walked {
		all, err = d.walkedChanges(ctx)
	} else {
		all, err = d.readChanges(ctx)
	}
	if err != nil {
		return fmt.Errorf("full check: %w", err)
	}
	found := map[string]changeKind{}
	for p := range changed(pairs) {
		if walked && p.unseen() {
			continue
		}
		found[p.path] = p.kind
	}
	if maps.Equal(all, found) {
		return nil
	}
	return fmt.Errorf("full check: %w: %s", errDisagree, describeDifference(all, found))
}

// readChanges compares every path in this process.
func (d *diffing) readChanges(ctx context.Context) (map[string]changeKind, error) {
	w := newTreeWalk(d.comparison.base, d.comparison.view)
	if err := w.everything(ctx, "."); err != nil {
		return nil, err
	}
	pairs, err := d.comparison.run(ctx, w.paths())
	if err != nil {
		return nil, err
	}
	out := map[string]changeKind{}
	for p := range changed(pairs) {
		out[p.path] = p.kind
	}
	return out, nil
}

// walkedChanges compares the base image with a walk of the mount.
func (d *diffing) walkedChanges(ctx context.Context) (map[string]changeKind, error) {
	w := newTreeWalk(d.comparison.base, d.comparison.base)
	if err := w.everything(ctx, "."); err != nil {
		return nil, err
	}
	sums := newMtreeTree(d.base)
	if err := sums.hashContent(ctx, allInodes(d.base)); err != nil {
		return nil, fmt.Errorf("base image: %w", err)
	}
	var base []*pathPair
	for c := range w.paths() {
		o, err := find(d.comparison.base, c.path)
		if err != nil {
			return nil, fmt.Errorf("base image: %w", err)
		}
		base = append(base, &pathPair{path: c.path, old: o, oldSum: sums.digests[o.attr.Ino]})
	}
	walk, err := walkMount(d.view.dir.point())
	if err != nil {
		return nil, err
	}
	return d.comparison.walkedChanges(base, walk)
}

// unseen reports whether go-mtree cannot find the change: of other types than
// files and directories it compares neither extended attributes nor device
// numbers.
func (p *pathPair) unseen() bool {
	if p.kind != changeModified || p.now.isDir() || p.now.typ() == unix.S_IFREG {
		return false
	}
	a, b := *p.old, *p.now
	a.xattrs, b.xattrs = nil, nil
	a.attr.Rdev, b.attr.Rdev = 0, 0
	return equalButContent(&a, &b)
}

// describeDifference names some paths that only one of two lists of changes has.
func describeDifference(all, found map[string]changeKind) string {
	var list []string
	for p, k := range all {
		if found[p] != k {
			list = append(list, fmt.Sprintf("%s %q is not in the record", k, p))
		}
	}
	for p, k := range found {
		if all[p] != k {
			list = append(list, fmt.Sprintf("%s %q is in the record alone", k, p))
		}
	}
	slices.Sort(list)
	const most = 5
	if len(list) > most {
		list = append(list[:most], fmt.Sprintf("and %d more", len(list)-most))
	}
	return strings.Join(list, ", ")
}

// pathXattrs are the extended attributes of what is at a host path, with no
// symlink followed.
func pathXattrs(name string) (map[string]string, error) {
	fail := func(err error) error { return &os.PathError{Op: "read extended attributes", Path: name, Err: err} }
	list, err := growXattr(func(buf []byte) (int, error) { return unix.Llistxattr(name, buf) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fail(err)
	}
	var out map[string]string
	for key := range bytes.SplitSeq(bytes.TrimSuffix(list, []byte{0}), []byte{0}) {
		if len(key) == 0 {
			continue
		}
		value, err := growXattr(func(buf []byte) (int, error) { return unix.Lgetxattr(name, string(key), buf) })
		if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return nil, fail(err)
		}
		out = addXattr(out, string(key), string(value))
	}
	return out, nil
}

// growXattr is growBuffer for system calls.
func growXattr(get func(buf []byte) (int, error)) ([]byte, error) {
	for {
		n, err := get(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		buf := make([]byte, n)
		if n, err = get(buf); !errors.Is(err, unix.ERANGE) {
			return buf[:max(n, 0)], err
		}
	}
}
