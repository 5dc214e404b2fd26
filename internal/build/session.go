package build

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/internal/bundle"
	"github.com/umoci-mount/umoci-mount/internal/imageconfig"
)

// session is the mount that a target's steps work on, one after the other.
type session struct {
	dir     string // the bundle
	target  string // as its status names the image
	layout  string
	cache   string
	log     *slog.Logger
	mounted bool
	at      *cas.Path // the image with all that is in the mount
}

// unmountLimit is how long the end of a mount may take.
const unmountLimit = time.Minute

func (b *builder) newSession(target string) *session {
	dir := filepath.Join(b.work.path, targetsName, strings.ReplaceAll(target, "/", "%2F")) // no tag has a "%"
	return &session{dir: dir, target: target, layout: b.layout.Path(), cache: b.opt.CacheDir, log: b.opt.Log}
}

// rootfs is the mountpoint.
func (s *session) rootfs() string { return filepath.Join(s.dir, "rootfs") }

// spanCache is the memory of a mount for decoded content, in bytes.
const spanCache = 32 << 20

// open mounts an image, unless it is what is mounted.
func (s *session) open(ctx context.Context, from *cas.Path) error {
	if s.mounted {
		if s.at.Descriptor().Digest == from.Descriptor().Digest {
			return nil
		}
		if err := s.close(ctx); err != nil {
			return err
		}
	}
	if err := s.mount(ctx, s.layout, from); err != nil {
		return err
	}
	s.at = from
	return nil
}

// mount mounts a new bundle or, without a layout, the one that there is.
func (s *session) mount(ctx context.Context, layout string, from *cas.Path) error {
	_, err := bundle.Mount(ctx, bundle.MountOptions{
		Bundle: s.dir, Layout: layout, Tag: s.target, From: from, Rootless: os.Geteuid() != 0, Log: s.log,
		State: bundle.StateOptions{CacheDir: s.cache, SpanCache: spanCache, Volatile: true},
	})
	if err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	s.mounted = true
	return nil
}

// unmounted calls fn while the bundle is not mounted.
func (s *session) unmounted(ctx context.Context, fn func() error) error {
	if err := bundle.Umount(ctx, s.dir, bundle.UmountOptions{Alone: true}); err != nil {
		return err
	}
	s.mounted = false
	if err := fn(); err != nil {
		// The mount is wanted by who looks into a failure; else close takes the bundle away.
		return errors.Join(err, s.mount(context.WithoutCancel(ctx), "", nil))
	}
	return s.mount(ctx, "", nil)
}

// commit makes a layer of what changed since the last one.
func (s *session) commit(ctx context.Context, compress string, h imageconfig.History) (*cas.Path, error) {
	res, err := bundle.Repack(ctx, bundle.RepackOptions{
		Bundle: s.dir, Layout: s.layout, NoTag: true, NoMaskVolumes: true, RefreshBundle: true,
		History: h, Epoch: h.Epoch, Compress: compress, Log: s.log,
	})
	if err != nil {
		return nil, fmt.Errorf("repack: %w", err)
	}
	s.at = res.Path
	return res.Path, nil
}

// close unmounts, also where ctx has ended, and removes the bundle. What was not
// committed is gone.
func (s *session) close(ctx context.Context) error {
	if !s.mounted {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmountLimit)
	defer cancel()
	if err := endBundle(ctx, s.dir); err != nil {
		return err
	}
	s.mounted = false
	left, err := bundle.MountsBelow(s.dir)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%s is still mounted", left[0])
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(s.dir)
}

// hookMounts are what hooks have mounted in the root file system.
func (s *session) hookMounts() ([]string, error) {
	if !s.mounted {
		return nil, nil
	}
	list, err := bundle.MountsBelow(s.rootfs())
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return list[:len(list)-1], nil // the outermost is the mount itself
}
