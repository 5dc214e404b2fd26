package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// refresh makes path what the next repack compares with. The mount and its changes
// stay as they are. umoci.json decides, and is replaced in one step: a crash before
// it leaves a manifest too many, one after it too.
func (v *View) refresh(ctx context.Context, path *cas.Path, tag string) error {
	was, now := digestOf(v.meta.From.Walk), path.Descriptor().Digest
	renew, err := v.refreshMtree(ctx, path, was)
	if err != nil {
		return err
	}
	if v.State.Layout != v.Layout.Path() {
		v.State.Layout = v.Layout.Path()
		if err := v.dir.writeState(v.State); err != nil {
			return err
		}
	}
	v.meta.From.Walk = path.Walk
	if tag != "" {
		v.meta.From.Walk = taggedWalk(path.Walk, tag)
	}
	if err := v.dir.writeUmoci(v.meta); err != nil {
		return err
	}
	if !renew || was == now {
		return nil
	}
	if err := v.dir.top.remove(mtreeName(was)); err != nil {
		return fmt.Errorf("remove old manifest: %w", err)
	}
	return nil
}

// digestOf is the manifest's digest at the end of a walk.
func digestOf(walk []ispec.Descriptor) digest.Digest { return walk[len(walk)-1].Digest }

// taggedWalk is a walk that begins at a tag's entry of index.json.
func taggedWalk(walk []ispec.Descriptor, tag string) []ispec.Descriptor {
	walk = slices.Clone(walk)
	annotations := maps.Clone(walk[0].Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[ispec.AnnotationRefName] = tag
	walk[0].Annotations = annotations
	return walk
}

// refreshMtree writes the new image's manifest where the bundle has one of the
// image before, and reports whether it has.
func (v *View) refreshMtree(ctx context.Context, path *cas.Path, was digest.Digest) (have bool, err error) {
	top := v.dir.top
	_, err = top.stat(mtreeName(was))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a manifest: %w", err)
	}
	img, err := v.Layout.Image(ctx, path)
	if err != nil {
		return false, err
	}
	im, err := v.image(ctx, stateLayers(img))
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	var opt overlay.Options
	v.State.Options.show(&opt)
	shown, err := overlay.New(im, nil, opt)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, shown.Close()) }()
	name := mtreeName(path.Descriptor().Digest)
	temp := name + ".new"
	if err := top.remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("write manifest: %w", err)
	}
	if err := top.writeMtree(ctx, temp, newMtreeTree(shown, im)); err != nil {
		return false, errors.Join(err, top.remove(temp))
	}
	if err := top.rename(temp, name); err != nil {
		return false, fmt.Errorf("write manifest: %w", err)
	}
	return true, top.fd.Sync()
}
