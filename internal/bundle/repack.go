package bundle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/internal/imageconfig"
	"github.com/umoci-mount/umoci-mount/layer"
)

// RepackOptions of Repack.
type RepackOptions struct {
	Bundle string
	Layout string // path of the image layout, which has the bundle's base image
	Tag    string // what the new image is called there; an old one of that name loses it
	NoTag  bool   // tag nothing: the result's path leads to the image, for as long as there is a Pin

	History       imageconfig.History
	MaskPaths     []string // left out, with all below
	NoMaskVolumes bool     // do not leave out the image's volumes
	RefreshBundle bool     // the next repack compares with the new image
	Compress      string   // cas.CompressAuto and so on
	AllowEmpty    bool     // write a layer although nothing has changed
	FullCheck     bool     // compare the whole tree too, and fail if that finds anything else
	CacheDir      string   // for what is learnt of the new layer; "" is the bundle's, or CacheDir's

	Epoch *time.Time // SOURCE_DATE_EPOCH; nil: not set
	Log   *slog.Logger

	// fault, where set, is asked before each system call that changes the layout;
	// its error is returned in that call's place. For tests.
	fault func(step string) error
}

// RepackResult says what was made.
type RepackResult struct {
	Image   ispec.Descriptor // of the manifest
	Path    *cas.Path        // to it
	Layer   *cas.NewLayer    // nil: nothing had changed
	Entries int              // in the layer
}

// Repack makes a new image of a bundle's base image and one layer of what changed
// since, and tags it. Where nothing changed there is no layer unless it is asked
// for, only an entry in the history. Until the tag is set nothing refers to what is
// written, so a failure or crash leaves the old tag and the bundle as they were.
func Repack(ctx context.Context, opt RepackOptions) (*RepackResult, error) {
	if !opt.NoTag {
		if err := cas.CheckTag(opt.Tag); err != nil {
			return nil, err
		}
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	plain, err := isPlain(opt.Bundle)
	if err != nil {
		return nil, err
	}
	if plain {
		return repackPlain(ctx, opt)
	}
	return repackView(ctx, opt)
}

// repackView is Repack of a bundle of ours.
func repackView(ctx context.Context, opt RepackOptions) (res *RepackResult, err error) {
	if err := flushBundle(opt.Bundle, opt.Log); err != nil {
		return nil, err
	}
	v, err := OpenView(ctx, opt.Bundle, opt.Layout, opt.Log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	v.Layout.Fault = opt.fault
	var shown *shownTree
	if opt.RefreshBundle {
		// First: what is written to meanwhile differs from the manifest then, and is not lost.
		if shown, err = v.look(ctx, opt.Log); err != nil {
			return nil, err
		}
	}
	d, err := newDiffing(ctx, v, opt.Log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	d.comparison.epoch = opt.Epoch
	pairs, err := d.changes(ctx)
	if err != nil {
		return nil, err
	}
	if opt.FullCheck {
		if err := d.fullCheck(ctx, pairs); err != nil {
			return nil, err
		}
	}
	p := d.planner(pairs)
	p.masks = maskList(opt, d.image)
	plan, err := p.plan()
	if err != nil {
		return nil, err
	}
	w := &layerWriting{opt: opt, layout: v.Layout, image: d.image, view: viewTree{v.FS}, held: v.stillFrozen}
	w.opt.CacheDir = cmp.Or(opt.CacheDir, v.State.Options.CacheDir)
	if res, err = w.write(ctx, plan); err != nil {
		return nil, err
	}
	if err := v.Thaw(); err != nil {
		return nil, fmt.Errorf("let the mount's writers go on: %w", err)
	}
	if opt.RefreshBundle {
		if err := v.refresh(ctx, w.path, opt.Tag, shown); err != nil {
			return nil, fmt.Errorf("%s has the new image, but refreshing the bundle failed: %w", opt.Tag, err)
		}
	}
	return res, nil
}

// flushBundle is flushMount of a bundle by its path. One that is not mounted must have
// nothing at the mountpoint.
func flushBundle(bundle string, log *slog.Logger) error {
	d, err := lookDir(bundle)
	if err != nil {
		return err
	}
	err = d.checkStray()
	if err == nil {
		err = d.flushMount(log)
	}
	return errors.Join(err, d.close())
}

// flushMount makes the kernel hand over what programs wrote through a shared
// mapping of a file of the mount. It comes before the freeze, which would hold it. The
// daemon is asked first: where it hangs, whoever touches the mount could but be killed.
func (d *dir) flushMount(log *slog.Logger) error {
	mounted, err := d.isMounted()
	if err != nil || !mounted {
		return err
	}
	_, conn, err := d.controlCall("status")
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if err != nil {
		return nil //nolint:nilerr // it ends, after it was handed everything
	}
	if err := conn.Close(); err != nil {
		return err
	}
	at, name := d.pointAt()
	root, err := at.folder(name)
	if errors.Is(err, fs.ErrPermission) {
		log.Info("another user's mount: what its programs wrote to mapped files may be missing", "bundle", d.path)
		return nil
	}
	if err != nil {
		return fmt.Errorf("flush the mount: %w", err)
	}
	if err := unix.Syncfs(int(root.fd.Fd())); err != nil {
		return errors.Join(fmt.Errorf("flush the mount: %w", err), root.close())
	}
	return root.close()
}

// errThawed says that a mount's writers could go on while the view was read.
var errThawed = errors.New("the mount's writers were held for too short a time: unmount the bundle first")

// stillFrozen reports errThawed where the daemon has let the writers go, as it does
// after maxFreeze.
func (v *View) stillFrozen() error {
	if v.hold == nil {
		return nil
	}
	if err := v.hold.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		return errors.Join(errThawed, err)
	}
	// The daemon says nothing more, and closes the connection when it lets go. But the end
	// of the line that was its answer may be unread: a decoder reads to the end of a value.
	_, err := io.Copy(io.Discard, v.hold)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return errThawed
	}
	return nil
}

// maskList is what is left out of a layer.
func maskList(opt RepackOptions, img *cas.Image) masks {
	var volumes []string
	if !opt.NoMaskVolumes {
		volumes = slices.Sorted(maps.Keys(img.Config.Config.Volumes))
	}
	return newMasks(opt.MaskPaths, volumes)
}

// layerWriting is the second half of a repack: from the plan to the tag.
type layerWriting struct {
	opt    RepackOptions
	layout *cas.Layout
	image  *cas.Image
	view   versionedTree
	held   func() error // the view was frozen all along; may be nil

	path *cas.Path // of the new image, once it is written
}

func (w *layerWriting) write(ctx context.Context, plan []planned) (res *RepackResult, err error) {
	unpin, err := w.layout.Pin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unpin()) }()
	res = &RepackResult{Entries: len(plan)}
	var change cas.Change
	if len(plan) > 0 || w.opt.AllowEmpty {
		if res.Layer, err = w.layer(ctx, plan); err != nil {
			return nil, err
		}
		change.Layers = []cas.NewLayer{*res.Layer}
	}
	if w.held != nil {
		if err := w.held(); err != nil {
			return nil, err
		}
	}
	change.History = w.opt.History.Entry("umoci repack", w.image.Config.Author, res.Layer == nil)
	if len(change.History) == 0 && res.Layer != nil {
		w.opt.Log.Warn("the new layer has no history entry: many tools cannot make sense of such an image")
	}
	w.path = w.image.Path
	if len(change.Layers)+len(change.History) > 0 {
		if w.path, err = w.layout.Commit(ctx, w.image, change); err != nil {
			return nil, fmt.Errorf("write image: %w", err)
		}
	}
	if !w.opt.NoTag {
		if err := w.layout.Tag(ctx, w.opt.Tag, w.path); err != nil {
			return nil, fmt.Errorf("tag image: %w", err)
		}
	}
	res.Image, res.Path = w.path.Descriptor(), w.path
	return res, nil
}

// layer writes the layer's blob. A file that is written to meanwhile spoils it;
// then it is written again, a few times.
func (w *layerWriting) layer(ctx context.Context, plan []planned) (l *cas.NewLayer, err error) {
	name, err := w.image.LayerCompression(w.opt.Compress)
	if err != nil {
		return nil, err
	}
	for range readAttempts {
		l, err = w.tryLayer(ctx, plan, name)
		if !errors.Is(err, ErrChanging) {
			return l, err
		}
	}
	return nil, fmt.Errorf("write layer: %w: stop what writes to it, or leave it out with --mask-path", err)
}

func (w *layerWriting) tryLayer(ctx context.Context, plan []planned, compress string) (*cas.NewLayer, error) {
	source := recordSource{view: w.view}
	stored, err := storeLayer(ctx, w.layout, compress, func(out io.Writer) ([]byte, error) {
		return layer.WriteDiff(out, source.records(ctx, plan), layer.DiffOptions{Epoch: w.opt.Epoch})
	})
	if err != nil {
		if source.spoilt {
			err = errors.Join(ErrChanging, err)
		}
		return nil, err
	}
	stored.remember(ctx, w.opt.CacheDir, w.opt.Log)
	return stored.layer(w.image, compress), nil
}
