package cas

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// holdsDir does not begin with ".umoci-": stock umoci's gc removes what does.
const holdsDir = ".holds-umoci-mount"

// Hold says who needs which manifests, with all that they lead to, even where no
// reference leads to them.
type Hold struct {
	Owner     string             `json:"owner"` // a bundle's absolute path
	Manifests []ispec.Descriptor `json:"manifests"`
}

// holdName is the file of an owner's record.
func holdName(owner string) string {
	return path.Join(holdsDir, digest.SHA256.FromString(owner).Encoded()[:32]+".json")
}

// Hold records a hold, in place of an older one of the same owner, and locks it until
// release is called. GC keeps what a locked hold needs; about one that is not locked
// any more it asks GCOptions.Needs. Hold a Pin while calling it.
//
// Where the caller may not write to the layout, a Pin is held in its place, which
// makes GC wait.
func (l *Layout) Hold(ctx context.Context, h Hold) (release func() error, err error) {
	f, err := l.writeHold(ctx, h)
	switch {
	case err == nil:
		return f.Close, nil
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return l.Pin(ctx)
	}
	return nil, fmt.Errorf("record who needs %s: %w", l.path, err)
}

func (l *Layout) writeHold(ctx context.Context, h Hold) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	name := holdName(h.Owner)
	h.Owner = PathText(h.Owner)
	data, err := marshal(h)
	if err != nil {
		return nil, err
	}
	data = append(data, '\n')
	if have, err := l.readFile(name); err != nil || !bytes.Equal(have, data) {
		if err := l.makeHoldsDir(); err != nil {
			return nil, err
		}
		if err := l.replaceFile(name, data); err != nil {
			return nil, err
		}
		// A hold lives long, and its process need not write anything else: a temporary
		// directory that is in use would keep GC off.
		if err := l.dropTemp(); err != nil {
			return nil, err
		}
	}
	f, err := l.openFile(name)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
	}
	return f, nil
}

// makeHoldsDir makes the directory of records: writable by whom the layout's is.
func (l *Layout) makeHoldsDir() error {
	if _, err := l.root.Stat(holdsDir); err == nil {
		return nil
	}
	if err := l.ensureDir(holdsDir); err != nil {
		return err
	}
	dir, err := l.root.Open(holdsDir)
	if err != nil {
		return err
	}
	l.chownLikeLayout(dir)
	if info, err := l.root.Stat("."); err == nil {
		_ = dir.Chmod(info.Mode().Perm() & 0o777) // as with the owner
	}
	return dir.Close()
}

// dropTemp ends the temporary directory before the Layout is closed.
func (l *Layout) dropTemp() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.temp == nil {
		return nil
	}
	err := l.temp.remove()
	l.temp = nil
	return err
}

// holding is what GC finds recorded.
type holding struct {
	name  string // of the file
	hold  Hold
	live  bool  // its process holds the lock
	err   error // why the record cannot be read
	stale bool  // nobody needs it any more
}

// holdings reads the records. Those that are not locked stay locked until release is
// called, so that nobody takes one up that is to be removed.
func (l *Layout) holdings() (list []holding, release func() error, err error) {
	var files []*os.File
	release = func() error { return closeAll(files) }
	entries, err := fs.ReadDir(l.root.FS(), holdsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, release, nil
	}
	if err != nil {
		return nil, release, fmt.Errorf("list who needs blobs: %w", err)
	}
	for _, e := range entries {
		name := path.Join(holdsDir, e.Name())
		h := holding{name: name}
		f, err := l.openFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return list, release, fmt.Errorf("read who needs blobs: %w", err)
		}
		files = append(files, f)
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case errors.Is(err, unix.EWOULDBLOCK):
			h.live = true
		case err != nil:
			return list, release, fmt.Errorf("lock %s: %w", name, err)
		}
		data, err := l.readFile(name)
		if err == nil {
			err = json.Unmarshal(data, &h.hold)
		}
		h.hold.Owner, h.err = ParsePathText(h.hold.Owner), err
		list = append(list, h)
	}
	return list, release, nil
}

// heldRoots are the manifests that holds need, and the records that are stale.
func (l *Layout) heldRoots(list []holding, needs func(Hold) ([]ispec.Descriptor, error)) (roots []ispec.Descriptor, err error) {
	for i := range list {
		h := &list[i]
		if h.err != nil {
			if h.live {
				return nil, fmt.Errorf("%s/%s, which is in use, cannot be read: %w: %w", l.path, h.name, ErrBusy, h.err)
			}
			h.stale = true
			continue
		}
		keep := h.hold.Manifests
		if needs != nil {
			more, err := needs(h.hold)
			if err != nil {
				return nil, fmt.Errorf("ask what %s needs: %w", h.hold.Owner, err)
			}
			if h.stale = len(more) == 0 && !h.live; h.stale {
				keep = nil
			}
			roots = append(roots, more...)
		}
		roots = append(roots, keep...)
	}
	return roots, nil
}

// dropStale removes the records that nobody needs.
func (l *Layout) dropStale(list []holding) error {
	for _, h := range list {
		if !h.stale {
			continue
		}
		if err := l.step("remove"); err != nil {
			return err
		}
		if err := l.root.Remove(h.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", h.name, err)
		}
	}
	return nil
}
