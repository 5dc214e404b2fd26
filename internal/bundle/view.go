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

	lower lowerTree // of which Layout and Base are
	meta  *umociMeta
	dir   *dir
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
	if err := v.lower.openState(ctx, v.State, layout, log); err != nil {
		return otherLayout(err)
	}
	v.Layout, v.Base = v.lower.layout, v.lower.Image
	if err := v.freeze(); err != nil {
		return err
	}
	if err := v.dir.makeUpper(); err != nil { // after umount --discard there is none
		return err
	}
	v.FS, err = v.dir.openOverlay(v.Base, &v.State.Options, true, log)
	return err
}

// otherLayout says of a blob that is missing what that means for a repack: the base image
// is somewhere else.
func otherLayout(err error) error {
	if errors.Is(err, cas.ErrBlobNotFound) {
		return fmt.Errorf("%w: %w", ErrOtherLayout, err)
	}
	return err
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
	errs = append(errs, v.lower.Close())
	if v.dir != nil {
		errs = append(errs, v.dir.close())
	}
	return errors.Join(errs...)
}
