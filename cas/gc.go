package cas

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// GCOptions says what else than the references must stay.
type GCOptions struct {
	Roots []ispec.Descriptor // manifests that bundles were made from
	Force bool               // do not mind who uses blobs
}

// GCResult is what GC removed.
type GCResult struct {
	Blobs int
	Bytes int64
}

// GC removes every blob that no reference leads to, and what interrupted writers
// left. Nested indexes, subjects and configs are followed; a blob that cannot be
// parsed keeps only itself. ErrBusy while others hold a Pin.
func (l *Layout) GC(ctx context.Context, opt GCOptions) (res GCResult, err error) {
	if !opt.Force {
		release, err := l.lock(lockBlobs, unix.F_WRLCK, true)
		if err != nil {
			return res, err
		}
		defer func() { err = errors.Join(err, release()) }()
	}
	release, err := l.lock(lockIndex, unix.F_WRLCK, false)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, release()) }()
	ix, err := l.Index(ctx)
	if err != nil {
		return res, err
	}
	m := marker{l: l, keep: map[digest.Digest]bool{}}
	for _, e := range ix.Entries {
		if err := m.mark(ctx, e.Descriptor); err != nil {
			return res, err
		}
	}
	for _, d := range opt.Roots {
		if err := m.mark(ctx, d); err != nil {
			return res, err
		}
	}
	if res, err = l.sweep(ctx, m.keep); err != nil {
		return res, err
	}
	return res, l.removeStaleTemp()
}

// marker collects what is reachable.
type marker struct {
	l    *Layout
	keep map[digest.Digest]bool
}

// mark follows a descriptor. Layers are kept without being read.
func (m *marker) mark(ctx context.Context, d ispec.Descriptor) error {
	if m.keep[d.Digest] {
		return nil
	}
	m.keep[d.Digest] = true
	if !isIndexType(d.MediaType) && !isManifestType(d.MediaType) {
		return nil
	}
	data, err := m.l.ReadBlob(ctx, d)
	if errors.Is(err, ErrBlobNotFound) {
		return nil // a sparse index: the rest is elsewhere
	}
	if err != nil {
		return fmt.Errorf("mark: %w", err)
	}
	var doc struct {
		Manifests []ispec.Descriptor `json:"manifests"`
		Config    *ispec.Descriptor  `json:"config"`
		Layers    []ispec.Descriptor `json:"layers"`
		Blobs     []ispec.Descriptor `json:"blobs"`
		Subject   *ispec.Descriptor  `json:"subject"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return fmt.Errorf("mark %s: %w: %v", d.Digest, ErrMalformed, err)
	}
	next := append(append(doc.Manifests, doc.Layers...), doc.Blobs...)
	for _, one := range []*ispec.Descriptor{doc.Config, doc.Subject} {
		if one != nil {
			next = append(next, *one)
		}
	}
	for _, n := range next {
		if err := m.mark(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (l *Layout) sweep(ctx context.Context, keep map[digest.Digest]bool) (res GCResult, err error) {
	algorithms, err := fs.ReadDir(l.root.FS(), "blobs")
	if err != nil {
		return res, fmt.Errorf("list blobs: %w", err)
	}
	for _, alg := range algorithms {
		blobs, err := fs.ReadDir(l.root.FS(), path.Join("blobs", alg.Name()))
		if err != nil {
			return res, fmt.Errorf("list blobs: %w", err)
		}
		for _, b := range blobs {
			d := digest.NewDigestFromEncoded(digest.Algorithm(alg.Name()), b.Name())
			if d.Validate() != nil || keep[d] {
				continue
			}
			if err := ctx.Err(); err != nil {
				return res, err
			}
			if err := l.step("remove"); err != nil {
				return res, err
			}
			info, err := b.Info()
			if err != nil {
				return res, fmt.Errorf("look at blob: %w", err)
			}
			if err := l.root.Remove(path.Join("blobs", alg.Name(), b.Name())); err != nil {
				return res, fmt.Errorf("remove blob: %w", err)
			}
			res.Blobs++
			res.Bytes += info.Size()
		}
	}
	return res, nil
}

// removeStaleTemp removes temporary directories, ours and umoci's, that no process
// holds.
func (l *Layout) removeStaleTemp() error {
	entries, err := fs.ReadDir(l.root.FS(), ".")
	if err != nil {
		return fmt.Errorf("list layout: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), ".umoci-") {
			continue
		}
		dir, err := l.root.Open(e.Name())
		if err != nil {
			return fmt.Errorf("open %s: %w", e.Name(), err)
		}
		if unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = l.root.RemoveAll(e.Name())
		}
		if err := errors.Join(err, dir.Close()); err != nil {
			return fmt.Errorf("remove %s: %w", e.Name(), err)
		}
	}
	return nil
}
