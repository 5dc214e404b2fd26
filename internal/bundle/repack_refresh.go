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
)

// refresh makes path what the next repack compares with. The mount and its changes
// stay as they are. umoci.json decides, and is replaced in one step: a crash before
// it leaves a manifest too many, one after it too. shown may be nil.
func (v *View) refresh(ctx context.Context, path *cas.Path, tag string, shown *shownTree) error {
	was, now := digestOf(v.meta.From.Walk), path.Descriptor().Digest
	if shown != nil {
		if err := v.writeShown(ctx, path, shown); err != nil {
			return err
		}
	}
	if v.State.Layout != v.Layout.Path() {
		v.State.Layout = v.Layout.Path()
		if err := keepFor(ctx, v.Layout, v.dir.path, v.State.Manifest); err != nil {
			return err
		}
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
	if shown == nil || was == now {
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

// writeShown makes the manifest of a path's image, of what the bundle showed.
func (v *View) writeShown(ctx context.Context, path *cas.Path, shown *shownTree) error {
	t, err := shown.manifest(ctx)
	if err != nil {
		return err
	}
	top, name := v.dir.top, mtreeName(path.Descriptor().Digest)
	temp := name + ".new"
	if err := top.remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write manifest: %w", err)
	}
	if err := top.writeMtree(temp, t); err != nil {
		return errors.Join(err, top.remove(temp))
	}
	if err := top.rename(temp, name); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return top.fd.Sync()
}
