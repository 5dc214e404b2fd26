package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// MountOptions of Mount.
type MountOptions struct {
	Bundle   string
	Layout   string // path of the image layout; "" resumes what the bundle was made from
	Tag      string
	Platform *ispec.Platform
	From     *cas.Path // the image itself, for a first mount; nil: Tag's

	Fresh      bool     // throw away the changes of an earlier mount
	Mtree      bool     // write the full mtree manifest too
	Foreground bool     // serve in this process until the mount ends
	Live       func()   // called in the foreground when the tree is live; may be nil
	NoServe    bool     // make the bundle, and mount nothing
	Lifeline   *os.File // see Resume; nil: the daemon lives by itself
	State      StateOptions
	Rootless   bool // umoci's --rootless: config.json for a plain user's container

	Progress layer.Progress
	Log      *slog.Logger

	rawRootfs string // see RawMount; "": in the bundle
}

// MountResult says what was mounted.
type MountResult struct {
	Rootfs  string
	Image   ispec.Descriptor
	Resumed bool
}

// Mount mounts an image as the bundle's rootfs, making the bundle where there is
// none. A bundle with changes goes on with them. When it fails, what was not there
// before is not there after.
func Mount(ctx context.Context, opt MountOptions) (res *MountResult, err error) {
	m := &mounting{opt: opt}
	if err := m.makeDir(); err != nil {
		return nil, err
	}
	d := m.dir
	defer func() {
		if m.to != d {
			err = errors.Join(err, m.to.close())
		}
		switch {
		case err != nil && m.made:
			err = errors.Join(err, m.undo())
		case err != nil && m.was != nil:
			err = errors.Join(err, d.inner.replace(stateName, m.was, stateMode))
		case err != nil && m.to != d:
			err = errors.Join(err, d.inner.removeAll(freshName))
		}
		err = errors.Join(err, d.close())
	}()
	if err := m.checkFree(ctx); err != nil {
		return nil, err
	}
	if !opt.NoServe {
		if err := m.checkMeans(); err != nil {
			return nil, err
		}
	}
	defer func() { err = errors.Join(err, m.lower.Close()) }()
	if err := m.openImage(ctx); err != nil {
		return nil, err
	}
	if err := m.prepare(ctx); err != nil {
		return nil, err
	}
	res = &MountResult{Rootfs: d.point(), Image: m.state.Manifest, Resumed: m.resume}
	if opt.NoServe {
		if m.to != d {
			if err := d.publish(m.to); err != nil {
				return res, err
			}
		}
		return res, keepFor(ctx, m.lower.layout, d.path, m.state.Manifest)
	}
	if opt.Foreground {
		return res, m.serveHere(ctx)
	}
	if err := startDaemon(ctx, d, m.to != d, opt.Lifeline); err != nil {
		return res, errors.Join(err, d.detachStale(opt.Log)) // where it was killed
	}
	m.openOnce()
	return res, nil
}

// mounting is one Mount under way.
type mounting struct {
	opt    MountOptions
	dir    *dir
	to     *dir // where all is made but the mountpoint: dir, or the stage of --fresh
	state  *State
	was    []byte // state.json of a bundle that is gone on with, for a failure to put back
	resume bool
	made   bool        // there was no bundle: undo removes what a failure leaves
	wrote  []string    // names that undo removes beside the rest
	before os.FileInfo // of the bundle's directory; nil: it was not there
	parent string      // topmost directory above the bundle that was not there; "" for none

	madeRootfs bool // the mountpoint was not there, and is not in the bundle

	lower lowerTree
	image *cas.Image
	path  *cas.Path
}

// checkFree sees that nothing is mounted, and takes away what a mount has left that was
// killed, or whose daemon was.
func (m *mounting) checkFree(ctx context.Context) error {
	switch served, err := m.dir.isServed(); {
	case err != nil:
		return err
	case served && !m.dir.isAboutToEnd(ctx):
		return m.dir.alreadyMounted()
	}
	if err := m.dir.detachStale(m.opt.Log); err != nil {
		return err
	}
	m.dir.warnOfStray(m.opt.Log)
	return m.dir.inner.removeAll(freshName) // a --fresh was killed
}

// isAboutToEnd waits a moment for the daemon of a mount that is gone: umount(8) does not.
func (d *dir) isAboutToEnd(ctx context.Context) bool {
	if e, err := mountAt(d.point()); err != nil || e != nil {
		return false
	}
	short, cancel := context.WithTimeout(ctx, copyWait)
	defer cancel()
	return d.waitEnd(short) == nil
}

// alreadyMounted says who serves the bundle where that is not to be seen here.
func (d *dir) alreadyMounted() error {
	if e, err := mountAt(d.point()); err == nil && e == nil {
		if st, conn, err := d.controlCall("status"); err == nil {
			return errors.Join(fmt.Errorf("%s: %w, by process %d, for programs that use it out of sight", d.path, ErrMounted, st.PID), conn.Close())
		}
	}
	return fmt.Errorf("%s: %w", d.path, ErrMounted)
}

// detachStale unmounts what a daemon that is no more left at the mountpoint.
func (d *dir) detachStale(log *slog.Logger) error {
	path := d.point()
	e, err := mountAt(path)
	if err != nil || e == nil {
		return err
	}
	log.Info("taking away the mount of a daemon that has ended", "path", path)
	if err := d.unmountPoint(path, true); err != nil {
		return fmt.Errorf("unmount %s, whose daemon has ended: %w", path, err)
	}
	return nil
}

// openImage finds the image, in the layout or in the bundle's state.
func (m *mounting) openImage(ctx context.Context) error {
	old, err := m.dir.readState()
	if err != nil && (!errors.Is(err, ErrNotBundle) || m.dir.hasState()) {
		return err
	}
	layoutPath, tag := m.opt.Layout, m.opt.Tag
	if layoutPath == "" && old == nil {
		return fmt.Errorf("no image named: %w", m.dir.notBundle())
	}
	layout, err := old.openLayout(layoutPath)
	if err != nil {
		return err
	}
	if err := m.lower.pin(ctx, layout); err != nil {
		return err
	}
	if layoutPath == "" {
		layoutPath, tag = old.Layout, old.Tag
	}
	m.resume = old != nil && !m.opt.Fresh
	if old != nil && m.opt.Fresh {
		stage, err := m.dir.makeStage()
		if err != nil {
			return err
		}
		m.to = stage
	}
	if m.resume {
		return m.resumeState(ctx, old, layoutPath, tag)
	}
	return m.newState(ctx, layoutPath, tag)
}

func fileExists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// resumeState takes what is mounted from the bundle. An image named with it must
// be the one the changes belong to, or one repacked from them.
func (m *mounting) resumeState(ctx context.Context, old *State, layoutPath, tag string) error {
	m.state = old
	if m.opt.Layout != "" {
		path, err := m.lower.layout.Resolve(ctx, tag, cas.ResolveOptions{Platform: m.opt.Platform})
		if err != nil {
			return err
		}
		meta, err := m.dir.readUmoci()
		if err != nil {
			return err
		}
		d := path.Descriptor().Digest
		if d != old.Manifest.Digest && d != meta.From.Walk[len(meta.From.Walk)-1].Digest {
			return fmt.Errorf("%w: %s holds changes to %s, not to %s:%s (--fresh throws them away)",
				ErrOtherImage, m.dir.path, old.Manifest.Digest, layoutPath, tag)
		}
		old.Layout = m.lower.layout.Path()
	}
	keep := old.Options
	old.Options = m.opt.State
	old.Options.KeepDirlinks, old.Options.Rootless = keep.KeepDirlinks, keep.Rootless
	if !old.Options.mapped() && old.Options.IDs == IDsDefault {
		old.Options.UIDMap, old.Options.GIDMap = keep.UIDMap, keep.GIDMap
		old.Options.IDs, old.Options.Squash = keep.IDs, keep.Squash || old.Options.Squash
	}
	return nil
}

// newState resolves the image and describes its layers.
func (m *mounting) newState(ctx context.Context, layoutPath, tag string) (err error) {
	if m.path = m.opt.From; m.path == nil {
		if m.path, err = m.lower.layout.Resolve(ctx, tag, cas.ResolveOptions{Platform: m.opt.Platform}); err != nil {
			return err
		}
	}
	if m.image, err = m.lower.layout.Image(ctx, m.path); err != nil {
		return fmt.Errorf("%s:%s: %w", layoutPath, tag, err)
	}
	m.state = &State{
		Layout: m.lower.layout.Path(), Tag: tag, Manifest: m.path.Descriptor(), Options: m.opt.State,
		Layers: stateLayers(m.image),
	}
	m.state.Manifest.Data = nil
	m.state.Options.Rootless = !OwnsIDs()
	return nil
}

// prepare indexes the layers and writes the bundle.
func (m *mounting) prepare(ctx context.Context) error {
	o := &m.state.Options
	if err := m.lower.merge(ctx, m.state.Layers, o.CacheDir, indexOptions(o, m.opt.Progress), m.opt.Log); err != nil {
		return err
	}
	if err := o.checkMapped(m.lower.Image); err != nil {
		return err
	}
	if !m.resume {
		if err := m.writeConfig(); err != nil {
			return err
		}
	}
	if err := m.makeRootfs(); err != nil {
		return err
	}
	if err := m.to.makeUpper(); err != nil {
		return err
	}
	if m.opt.Mtree && !m.resume {
		if err := m.writeMtree(ctx); err != nil {
			return err
		}
	}
	if m.resume {
		var err error
		if m.was, _, err = m.dir.inner.read(stateName); err != nil {
			return err
		}
	}
	return m.to.writeState(m.state)
}

// writeConfig writes config.json and umoci.json for a new bundle, or for one whose changes
// are thrown away.
func (m *mounting) writeConfig() error {
	o := &m.state.Options
	meta := &umociMeta{From: walkPath{m.path.Walk}, MapOptions: mapOptions{
		UIDMappings: idMappings(o.UIDMap), GIDMappings: idMappings(o.GIDMap), Rootless: o.squashed(),
	}}
	container := meta.MapOptions
	if m.opt.Rootless {
		container.fillRootless()
	}
	if o.squashed() {
		meta.MapOptions = container
		meta.MapOptions.Rootless = true
	}
	if m.opt.rawRootfs == "" {
		config, err := runtimeConfig(runtimeInput{
			image: m.image.Config, rootfs: rootfsName, rootless: m.opt.Rootless,
			uids: container.UIDMappings, gids: container.GIDMappings,
			passwd: func(name string) (io.ReadCloser, error) { return openInImage(m.lower.Image, name) },
		})
		if err == nil {
			err = m.to.top.replace(configName, config, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return m.to.writeUmoci(meta)
}

// fillRootless adds the one id that a plain user's container can have, where no maps
// were given: its root is the user.
func (o *mapOptions) fillRootless() {
	if len(o.UIDMappings) == 0 {
		o.UIDMappings = []idMapping{{HostID: uint32(os.Geteuid()), Size: 1}}
	}
	if len(o.GIDMappings) == 0 {
		o.GIDMappings = []idMapping{{HostID: uint32(os.Getegid()), Size: 1}}
	}
}

func idMappings(ranges []overlay.IDRange) []idMapping {
	var out []idMapping
	for _, r := range ranges {
		out = append(out, idMapping{ContainerID: r.Image, HostID: r.Host, Size: r.Size})
	}
	return out
}

// serveHere is --foreground. The bundle is free for other commands meanwhile, as it
// is while a daemon serves it.
func (m *mounting) serveHere(ctx context.Context) error {
	if err := unix.Flock(int(m.dir.lock.Fd()), unix.LOCK_UN); err != nil {
		return fmt.Errorf("unlock bundle: %w", err)
	}
	unlimitFileSize(0)
	// What a mount that was live has recorded stays, however it ends.
	return serve(ctx, m.dir, serveOptions{log: m.opt.Log, fresh: m.to != m.dir, ready: func() {
		m.made, m.was = false, nil
		if m.opt.Live != nil {
			m.opt.Live()
		}
	}})
}
