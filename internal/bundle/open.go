package bundle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// View is a bundle's tree read in this process, mounted or not, in the image's own
// ids. While it is open the mount's writers wait.
type View struct {
	Dir    string // the bundle's absolute path
	State  *State
	From   []ispec.Descriptor // path to the manifest that a repack compares with
	Layout *cas.Layout
	Base   *layer.Image // what the mount's lower tree is
	FS     *overlay.FS

	meta  *umociMeta
	dir   *dir
	cache *openCache
	unpin func() error
	hold  net.Conn // the freeze of a live mount; nil: not mounted
}

// OpenView opens a bundle to be read, and locks it. layout, where not empty, is
// the layout to read the base image from.
func OpenView(ctx context.Context, bundle, layout string, log *slog.Logger) (*View, error) {
	v := &View{}
	if err := v.open(ctx, bundle, layout, log); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

func (v *View) open(ctx context.Context, bundle, layout string, log *slog.Logger) (err error) {
	if v.dir, err = openDir(bundle); err != nil {
		return err
	}
	v.Dir = v.dir.path
	if v.State, err = v.dir.readState(); err != nil {
		return err
	}
	if v.meta, err = v.dir.readUmoci(); err != nil {
		return err
	}
	v.From = v.meta.From.Walk
	if layout == "" {
		v.Layout, err = v.State.openLayout()
	} else {
		v.Layout, err = cas.Open(layout)
	}
	if err != nil {
		return err
	}
	if v.unpin, err = v.Layout.Pin(ctx); err != nil {
		return err
	}
	if v.cache, err = newCache(v.State.Options.CacheDir, log); err != nil {
		return err
	}
	if v.Base, err = v.image(ctx, v.State.Layers); err != nil {
		return err
	}
	if err := v.freeze(); err != nil {
		return err
	}
	if err := v.dir.makeUpper(); err != nil { // after umount --discard there is none
		return err
	}
	v.FS, err = v.dir.openOverlay(v.Base, &v.State.Options, true, log)
	return err
}

// image opens the merged tree of some layers of the layout.
func (v *View) image(ctx context.Context, layers []StateLayer) (*layer.Image, error) {
	im, err := v.cache.Open(ctx, sources(ctx, v.Layout, layers), indexOptions(&v.State.Options, nil))
	if errors.Is(err, cas.ErrBlobNotFound) {
		return nil, fmt.Errorf("%w: %w", ErrOtherLayout, err)
	}
	return im, err
}

// freeze holds the writers of a live mount.
func (v *View) freeze() error {
	mounted, err := v.dir.isMounted()
	if err != nil || !mounted {
		return err
	}
	_, v.hold, err = v.dir.controlCall("freeze")
	return err
}

// Mounted reports whether the bundle is mounted.
func (v *View) Mounted() bool { return v.hold != nil }

// Thaw lets the writers of a live mount go on before the view is closed.
func (v *View) Thaw() error {
	if v.hold == nil {
		return nil
	}
	err := v.hold.Close()
	v.hold = nil
	return err
}

// Close releases all of it.
func (v *View) Close() error {
	var errs []error
	errs = append(errs, v.Thaw())
	if v.FS != nil {
		errs = append(errs, v.FS.Close())
	}
	if v.Base != nil {
		errs = append(errs, v.Base.Close())
	}
	if v.cache != nil {
		errs = append(errs, v.cache.close())
	}
	if v.unpin != nil {
		errs = append(errs, v.unpin())
	}
	if v.Layout != nil {
		errs = append(errs, v.Layout.Close())
	}
	if v.dir != nil {
		errs = append(errs, v.dir.close())
	}
	return errors.Join(errs...)
}
