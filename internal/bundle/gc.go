package bundle

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/layer"
)

// BuildCacheName is the file of a layout in which builds remember the results of steps.
// It holds their manifests: removed, it lets gc take them. It does not begin with
// ".umoci-": stock umoci's gc removes what does.
const BuildCacheName = ".build-umoci-mount.json"

// BuildDir is the directory in the cache's where builds work, and keep what they know.
const BuildDir = layer.BuildDir

// GCOptions of GC.
type GCOptions struct {
	Layout string
	Force  bool          // also what bundles and other commands need
	Wait   time.Duration // for other commands
	Log    *slog.Logger
}

// GC removes the blobs of a layout that neither a reference nor a bundle needs.
func GC(ctx context.Context, opt GCOptions) (res cas.GCResult, err error) {
	l, err := cas.Open(opt.Layout)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	res, err = l.GC(ctx, cas.GCOptions{Force: opt.Force, Wait: opt.Wait, Needs: func(h cas.Hold) ([]ispec.Descriptor, error) {
		needs := bundleNeeds(l, h)
		opt.Log.Debug("a bundle needs blobs", "bundle", h.Owner, "manifests", len(needs))
		return needs, nil
	}})
	opt.Log.Info("collected garbage", "blobs", res.Blobs, "bytes", res.Bytes, "interrupted commands", res.Temps)
	return res, err
}

// bundleNeeds are the manifests that a bundle needs in a layout: what is mounted, and
// what a repack compares with. None: the bundle is gone, or was made from another
// layout since. One that cannot be looked into needs what it said it would.
func bundleNeeds(l *cas.Layout, h cas.Hold) []ispec.Descriptor {
	if filepath.Base(h.Owner) == BuildCacheName {
		if gone(h.Owner) {
			return nil
		}
		return h.Manifests
	}
	meta, state, err := readBoth(h.Owner)
	if meta == nil {
		if gone(filepath.Join(h.Owner, umociName)) {
			return nil
		}
		return h.Manifests
	}
	needs := meta.From.Walk
	switch {
	case err == nil && elsewhere(state.Layout, l.Path()):
		return nil
	case err == nil:
		needs = append(needs, state.Manifest)
	case !gone(filepath.Join(h.Owner, stateDir, stateName)):
		needs = append(needs, h.Manifests...)
	}
	return needs
}

// readBoth reads umoci.json and state.json of a bundle. A nil one could not be read.
func readBoth(bundle string) (meta *umociMeta, state *State, err error) {
	d, err := lookDir(bundle)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if meta, err = d.readUmoci(); err != nil {
		return nil, nil, err
	}
	if state, err = d.readState(); err != nil {
		state = nil
	}
	return meta, state, err
}

// gone reports whether nothing is at a path for certain.
func gone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

// elsewhere reports whether a path leads to another layout, and not to nothing: a
// layout that was moved is still the bundle's.
func elsewhere(path, layout string) bool {
	a, err := os.Stat(path)
	if err != nil {
		return false
	}
	b, err := os.Stat(layout)
	return err == nil && !os.SameFile(a, b)
}

// keepFor keeps from gc what a bundle needs that nobody serves, for as long as it is there.
func keepFor(ctx context.Context, l *cas.Layout, bundle string, manifests ...ispec.Descriptor) error {
	release, err := holdFor(ctx, l, bundle, manifests...)
	if err != nil {
		return err
	}
	return release()
}

// holdFor records in a layout what a bundle needs of it.
func holdFor(ctx context.Context, l *cas.Layout, bundle string, manifests ...ispec.Descriptor) (release func() error, err error) {
	real, err := filepath.EvalSymlinks(bundle)
	if err != nil {
		return nil, err
	}
	hold := cas.Hold{Owner: real}
	for _, m := range manifests {
		hold.Manifests = append(hold.Manifests, ispec.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size})
	}
	return l.Hold(ctx, hold)
}
