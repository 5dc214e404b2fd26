package cas

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// GCOptions says what else than the references must stay.
type GCOptions struct {
	Roots []ispec.Descriptor // manifests that somebody needs
	Force bool               // do not mind who uses, needs or writes blobs

	// Needs says which manifests the owner of a Hold needs now, beside those it said
	// it would; none: nothing any more, if its process has ended. Nil: all holds count.
	Needs func(Hold) ([]ispec.Descriptor, error)
	// Wait is how long to wait for others that use or write blobs; 0: not at all.
	Wait time.Duration
}

// GCResult is what GC removed.
type GCResult struct {
	Blobs  int
	Bytes  int64    // their sizes
	Temps  int      // directories of writers that were killed
	Linked []string // directories of blobs that are symbolic links: nothing was removed there
}

// GC removes every blob that no entry of index.json leads to, and what interrupted
// writers left. Nested indexes, configs, layers and subjects are followed; a referrer
// is an entry of index.json itself, so it stays, and what it refers to with it. A
// document that cannot be read as what it is said to be stops GC before anything is
// removed; one that is missing does not, since layouts may be sparse.
//
// ErrBusy, unless forced, while others hold a Pin or are writing blobs, umoci among
// them, for longer than opt.Wait. What was removed before an error is in the result.
func (l *Layout) GC(ctx context.Context, opt GCOptions) (res GCResult, err error) {
	deadline := time.Now().Add(opt.Wait)
	if !opt.Force {
		unlock, lerr := l.lockUntil(ctx, deadline, opt.Wait > 0)
		if lerr != nil {
			return res, lerr
		}
		defer func() { err = errors.Join(err, unlock()) }()
	}
	release, err := l.lock(ctx, lockIndex, unix.F_WRLCK, false)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, release()) }()
	stale, err := l.staleTemps(ctx, deadline, opt.Force)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, closeAll(stale)) }()
	m := marker{l: l, work: opt.Roots, keep: map[digest.Digest]bool{}, followed: map[digest.Digest]bool{}}
	var holds []holding
	if !opt.Force {
		var release func() error
		holds, release, err = l.holdings()
		defer func() { err = errors.Join(err, release()) }()
		if err != nil {
			return res, err
		}
		roots, err := l.heldRoots(holds, opt.Needs)
		if err != nil {
			return res, err
		}
		m.work = slices.Concat(m.work, roots)
	}
	ix, err := l.Index(ctx)
	if err != nil {
		return res, err
	}
	for _, e := range ix.Entries {
		m.work = append(m.work, e.Descriptor)
	}
	if err := m.mark(ctx); err != nil {
		return res, err
	}
	if err := l.sweep(ctx, m.keep, &res); err != nil {
		return res, err
	}
	if err := l.dropStale(holds); err != nil {
		return res, err
	}
	res.Temps = len(stale)
	return res, l.removeTemps(stale)
}

// lockUntil takes the lock on blobs, and reports ErrBusy where others keep it.
func (l *Layout) lockUntil(ctx context.Context, deadline time.Time, wait bool) (func() error, error) {
	if !wait {
		return l.lock(ctx, lockBlobs, unix.F_WRLCK, true)
	}
	limited, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	release, err := l.lock(limited, lockBlobs, unix.F_WRLCK, false)
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("%s: other commands use its blobs: %w", l.path, ErrBusy)
	}
	return release, err
}

// staleTemps are the temporary directories of dead writers, locked. Those of live ones
// are waited for: they are stock umoci's, which knows no other lock.
func (l *Layout) staleTemps(ctx context.Context, deadline time.Time, force bool) ([]*os.File, error) {
	for wait := lockWaitMin; ; wait = min(2*wait, lockWaitMax) {
		stale, busy, err := l.lockTemps()
		if err != nil || busy == "" || force {
			return stale, err
		}
		if err := closeAll(stale); err != nil {
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%s/%s is being written to: %w", l.path, busy, ErrBusy)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// marker collects what is reachable.
type marker struct {
	l        *Layout
	work     []ispec.Descriptor     // still to be looked at
	keep     map[digest.Digest]bool // blobs that stay
	followed map[digest.Digest]bool // documents whose descriptors are in work or keep
}

// artifactManifest is of image-spec v1.1.0-rc2, which some registries' tools wrote.
const artifactManifest = "application/vnd.oci.artifact.manifest.v1+json"

// mark follows work. Layers are kept without being read. One digest can be there
// with several media types, of which one is to be followed.
func (m *marker) mark(ctx context.Context) error {
	for len(m.work) > 0 {
		d := m.work[len(m.work)-1]
		m.work = m.work[:len(m.work)-1]
		m.keep[d.Digest] = true
		document := isIndexType(d.MediaType) || isManifestType(d.MediaType) || d.MediaType == artifactManifest
		if !document || m.followed[d.Digest] {
			continue
		}
		m.followed[d.Digest] = true
		data, err := m.l.ReadBlob(ctx, d)
		if errors.Is(err, ErrBlobNotFound) {
			continue // the rest of a sparse index is elsewhere
		}
		if err != nil {
			return fmt.Errorf("mark: %w", err)
		}
		if err := m.follow(data); err != nil {
			return fmt.Errorf("mark %s: %w", d.Digest, err)
		}
	}
	return nil
}

// follow adds the descriptors of a document of any type.
func (m *marker) follow(data []byte) error {
	o, err := parseObject(data)
	if err != nil {
		return err
	}
	lists := []string{"manifests", "layers", "blobs"}
	single := []string{"config", "subject"}
	if err := o.exact(append(lists, single...)...); err != nil {
		return err
	}
	for _, key := range lists {
		var list []ispec.Descriptor
		if err := o.get(key, &list); err != nil {
			return err
		}
		m.work = append(m.work, list...)
	}
	for _, key := range single {
		var d *ispec.Descriptor
		if err := o.get(key, &d); err != nil {
			return err
		}
		if d != nil {
			m.work = append(m.work, *d)
		}
	}
	return nil
}

// sweep removes the blobs that do not stay. What has no digest for a name, or is no
// file, is no blob. In a directory that is a symbolic link other layouts' are too.
func (l *Layout) sweep(ctx context.Context, keep map[digest.Digest]bool, res *GCResult) error {
	for _, d := range l.linked {
		res.Linked = append(res.Linked, d.name)
		if d.name == ispec.ImageBlobsDir {
			return nil
		}
	}
	algorithms, err := fs.ReadDir(l.root.FS(), ispec.ImageBlobsDir)
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	for _, alg := range algorithms {
		if !alg.IsDir() {
			continue
		}
		blobs, err := fs.ReadDir(l.root.FS(), path.Join(ispec.ImageBlobsDir, alg.Name()))
		if err != nil {
			return fmt.Errorf("list blobs: %w", err)
		}
		for _, b := range blobs {
			d := digest.NewDigestFromEncoded(digest.Algorithm(alg.Name()), b.Name())
			if d.Validate() != nil || keep[d] || b.IsDir() {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := l.removeBlob(path.Join(ispec.ImageBlobsDir, alg.Name(), b.Name()), res); err != nil {
				return fmt.Errorf("remove blob %s: %w", d, err)
			}
		}
	}
	return nil
}

// removeBlob removes a blob and counts it, unless somebody else was faster.
func (l *Layout) removeBlob(name string, res *GCResult) error {
	info, err := l.root.Lstat(name)
	if err == nil {
		if err := l.step("remove"); err != nil {
			return err
		}
		err = l.root.Remove(name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	res.Blobs++
	res.Bytes += info.Size()
	return nil
}

// lockTemps locks the temporary directories, ours and umoci's, that no process
// holds, and names one that a process other than this Layout does. Those of other
// users, which may not be opened, are neither.
func (l *Layout) lockTemps() (stale []*os.File, busy string, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(stale))
			stale = nil
		}
	}()
	entries, err := fs.ReadDir(l.root.FS(), ".")
	if err != nil {
		return nil, "", fmt.Errorf("list layout: %w", err)
	}
	l.mu.Lock()
	own := ""
	if l.temp != nil {
		own = l.temp.name
	}
	l.mu.Unlock()
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), tempPrefix) || e.Name() == own {
			continue
		}
		dir, err := l.root.Open(e.Name())
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return stale, "", fmt.Errorf("open temporary directory: %w", err)
		}
		switch err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			stale = append(stale, dir)
		case errors.Is(err, unix.EWOULDBLOCK):
			busy = e.Name()
			err = dir.Close()
			if err != nil {
				return stale, "", fmt.Errorf("close temporary directory: %w", err)
			}
		default:
			return append(stale, dir), "", fmt.Errorf("lock temporary directory %s: %w", e.Name(), err)
		}
	}
	return stale, busy, nil
}

func (l *Layout) removeTemps(dirs []*os.File) error {
	for _, dir := range dirs {
		if err := l.step("remove"); err != nil {
			return err
		}
		if err := l.root.RemoveAll(path.Base(dir.Name())); err != nil {
			return fmt.Errorf("remove temporary directory: %w", err)
		}
	}
	return nil
}

func closeAll(files []*os.File) error {
	var err error
	for _, f := range files {
		err = errors.Join(err, f.Close())
	}
	return err
}
