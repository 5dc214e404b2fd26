package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

// workdir is where one build has its mounts and containers, locked (flock(2)) for the
// build's life:
//
//	kept        there: --keep-failed left a mount here
//	targets/    a bundle for each target that needs one
//	state/      of OCI runtimes, by their names
//	scratch/    what steps see of the host
type workdir struct {
	path string
	lock *os.File
}

const (
	keptName    = "kept"
	targetsName = "targets"
	stateName   = "state"
	scratchName = "scratch"
)

// newWorkdir makes a directory below base, after it has ended what killed builds left.
func newWorkdir(ctx context.Context, base string, log *slog.Logger) (_ *workdir, err error) {
	if err := os.MkdirAll(base, 0o700); err != nil {
		return nil, fmt.Errorf("make a work directory: %w", err)
	}
	// A directory that is new is not locked yet: nobody may look for leftovers now.
	all, err := os.Open(base)
	if err == nil {
		defer func() { err = errors.Join(err, all.Close()) }()
		err = waitLock(ctx, all)
	}
	if err != nil {
		return nil, fmt.Errorf("make a work directory: %w", err)
	}
	if err := sweep(ctx, base, log); err != nil {
		return nil, err
	}
	path, err := os.MkdirTemp(base, "")
	if err != nil {
		return nil, fmt.Errorf("make a work directory: %w", err)
	}
	w := &workdir{path: path}
	if w.lock, err = lockDir(path); err != nil {
		return nil, fmt.Errorf("make a work directory: %w", err)
	}
	for _, name := range []string{targetsName, stateName, scratchName} {
		if err := os.Mkdir(filepath.Join(path, name), 0o700); err != nil {
			return nil, errors.Join(fmt.Errorf("make a work directory: %w", err), w.remove(ctx))
		}
	}
	return w, nil
}

// lockWait is how long who waits for a lock does before asking again: flock(2) would not
// end with a context.
const lockWait = 10 * time.Millisecond

// waitLock locks a directory, which others let go of in time; it waits until ctx ends.
func waitLock(ctx context.Context, dir *os.File) error {
	for {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(lockWait):
		}
	}
}

// lockDir locks a work directory; nil without an error: somebody has. The lock is the
// directory's own: a file in it would be made anew while its build removes it.
func lockDir(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		cerr := f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, cerr
		}
		return nil, errors.Join(err, cerr)
	}
	return f, nil
}

// sweep ends and removes what builds left that were killed.
func sweep(ctx context.Context, base string, log *slog.Logger) error {
	entries, err := os.ReadDir(base)
	if err != nil {
		return fmt.Errorf("look for killed builds: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(base, e.Name())
		lock, err := lockDir(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && lock == nil {
			continue
		}
		if err != nil {
			return fmt.Errorf("look for killed builds: %w", err)
		}
		w := &workdir{path, lock}
		if w.kept() {
			if err := lock.Close(); err != nil {
				return err
			}
			continue
		}
		log.Info("ending what a killed build left", "path", path)
		if err := w.remove(ctx); err != nil {
			return err
		}
	}
	return nil
}

// kept reports whether somebody is to look into a failed target, and still can.
func (w *workdir) kept() bool {
	if _, err := os.Lstat(filepath.Join(w.path, keptName)); err != nil {
		return false
	}
	mounts, err := bundle.MountsBelow(w.path)
	return err != nil || len(mounts) > 0
}

// keep leaves the directory to be looked into.
func (w *workdir) keep() error {
	return os.WriteFile(filepath.Join(w.path, keptName), nil, 0o600)
}

// remove ends containers and mounts and removes the directory. What is mounted and
// cannot be unmounted keeps it from that: it may be a directory of the host.
func (w *workdir) remove(ctx context.Context) error {
	var errs []error
	for _, name := range runtimeNames {
		ids, err := os.ReadDir(filepath.Join(w.path, stateName, name))
		if err != nil {
			continue // it was not used
		}
		for _, id := range ids {
			if out, err := exec.CommandContext(ctx, name, "--root", filepath.Join(w.path, stateName, name), "delete", "--force", id.Name()).CombinedOutput(); err != nil {
				errs = append(errs, fmt.Errorf("%s delete: %w: %s", name, err, strings.TrimSpace(string(out))))
			}
		}
	}
	bundles, err := os.ReadDir(filepath.Join(w.path, targetsName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, b := range bundles {
		errs = append(errs, endBundle(ctx, filepath.Join(w.path, targetsName, b.Name())))
	}
	left, err := bundle.MountsBelow(w.path)
	if err != nil || len(left) > 0 {
		if err == nil {
			err = fmt.Errorf("%s is still mounted: unmount it, then remove %s", left[0], w.path)
		}
		return errors.Join(append(errs, err, w.lock.Close())...)
	}
	errs = append(errs, os.RemoveAll(w.path), w.lock.Close())
	return errors.Join(errs...)
}

// endBundle unmounts a bundle, with what hooks have mounted in it.
func endBundle(ctx context.Context, dir string) error {
	rootfs := filepath.Join(dir, "rootfs")
	inner, err := bundle.MountsBelow(rootfs)
	if err != nil {
		return err
	}
	for _, m := range inner {
		if m == rootfs {
			continue
		}
		if err := unix.Unmount(m, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s, which a hook has mounted: %w", m, err)
		}
	}
	err = bundle.Umount(ctx, dir, bundle.UmountOptions{Alone: true})
	if errors.Is(err, bundle.ErrBusy) {
		err = errors.Join(err, bundle.Umount(ctx, dir, bundle.UmountOptions{Lazy: true}))
	}
	if errors.Is(err, bundle.ErrNotMounted) || errors.Is(err, bundle.ErrNotBundle) || errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}
