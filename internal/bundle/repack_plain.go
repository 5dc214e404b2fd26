package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/layer"
)

// isPlain reports whether a bundle was made by stock umoci: it has umoci.json, an
// unpacked rootfs and an mtree manifest, and nothing of ours.
func isPlain(bundle string) (_ bool, err error) {
	d, err := lookDir(bundle)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	_, err = d.readState()
	switch {
	case err == nil:
		return false, nil
	case !errors.Is(err, ErrNotBundle) || d.hasState(), !d.top.exists(umociName):
		return false, err
	}
	return true, nil
}

// repackPlain is Repack of a bundle that stock umoci unpacked. The whole rootfs is
// compared with the manifest, by go-mtree alone, as umoci does.
func repackPlain(ctx context.Context, opt RepackOptions) (res *RepackResult, err error) {
	d, err := lockPlain(opt.Bundle)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	meta, err := d.readUmoci()
	if err != nil {
		return nil, err
	}
	l, err := cas.Open(opt.Layout)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	img, err := l.Image(ctx, &cas.Path{Walk: meta.From.Walk})
	if err != nil {
		return nil, otherLayout(err)
	}
	root, err := d.plainTree(&meta.MapOptions)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.close()) }()
	pairs, err := d.checkManifest(mtreeName(digestOf(meta.From.Walk)), root, opt.Log)
	if err != nil {
		return nil, err
	}
	plan, err := plainPlan(pairs, maskList(opt, img))
	if err != nil {
		return nil, err
	}
	w := &layerWriting{opt: opt, layout: l, image: img, view: root}
	if res, err = w.write(ctx, plan); err != nil {
		return nil, err
	}
	if opt.RefreshBundle {
		err = d.refreshPlain(meta, w.path, opt.Tag)
	}
	return res, err
}

// lockPlain keeps two commands of ours off one bundle.
func lockPlain(bundle string) (*dir, error) {
	d, err := lookDir(bundle)
	if err != nil {
		return nil, err
	}
	top, err := d.top.folder(".")
	if err == nil {
		err = d.lockBy(top.fd)
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// plainTree is the unpacked tree.
func (d *dir) plainTree(maps *mapOptions) (*dirTree, error) {
	root, err := d.top.folder(rootfsName)
	if err != nil {
		return nil, fmt.Errorf("open root file system: %w", err)
	}
	t, err := newDirTree(root.path(""), maps)
	if err == nil {
		t.dir = d.file(rootfsName)
	}
	return t, errors.Join(err, root.close())
}

// plainPlan is the entries of a layer. A manifest says nothing of which names are
// one inode, so all that differ in their number of links are written.
func plainPlan(pairs []*pathPair, m masks) ([]planned, error) {
	var out []planned
	for _, p := range pairs {
		if m.match(p.path) {
			continue
		}
		if p.kind != changeDeleted && layer.IsWhiteoutName(filepath.Base(p.path)) {
			return nil, fmt.Errorf("%q: %w", p.path, layer.ErrReservedName)
		}
		out = append(out, planned{path: p.path, whiteout: p.kind == changeDeleted, now: p.now})
	}
	slices.SortFunc(out, func(a, b planned) int { return layer.ComparePaths(a.path, b.path) })
	link(out)
	return out, nil
}

// refreshPlain makes the new image what the bundle says it was made from.
func (d *dir) refreshPlain(meta *umociMeta, path *cas.Path, tag string) error {
	old, fresh := mtreeName(digestOf(meta.From.Walk)), mtreeName(path.Descriptor().Digest)
	if old == fresh {
		return nil
	}
	if err := d.writeWalk(fresh); err != nil {
		return err
	}
	meta.From.Walk = taggedWalk(path.Walk, tag)
	if err := d.writeUmoci(meta); err != nil {
		return err
	}
	if err := d.top.remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old manifest: %w", err)
	}
	return nil
}
