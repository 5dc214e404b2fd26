package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A root file system that is mounted by itself, without a bundle around it, has its
// state, upper and so on in a directory beside it:
//
//	DIR/NAME                 the mountpoint
//	DIR/.NAME.umoci-mount/   as a bundle, but for config.json; rootfs is a symlink to ../NAME
//
// It is beside and not in it, since what is in it is the image's.

// rawBundle is the bundle of a mountpoint.
func rawBundle(rootfs string) string {
	return filepath.Join(filepath.Dir(rootfs), "."+filepath.Base(rootfs)+".umoci-mount")
}

// Locate is the bundle that a path given by a user means: the one beside it if it is
// such a mountpoint, else the path itself. The one beside comes first: what is at the
// path is an image's, which must not be taken for a bundle.
func Locate(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	if beside := rawBundle(abs); fileExists(filepath.Join(beside, stateDir)) {
		return beside
	}
	return path
}

// rootfsOf is the path of a bundle's mountpoint as the mount table has it, which
// need not be there.
func rootfsOf(bundle string) string {
	if real, err := filepath.EvalSymlinks(bundle); err == nil {
		bundle = real
	}
	point := filepath.Join(bundle, rootfsName)
	if target, err := os.Readlink(point); err == nil {
		if filepath.IsAbs(target) {
			return filepath.Clean(target)
		}
		return filepath.Join(bundle, target)
	}
	return point
}

// bundleAt is the bundle whose mount is at a point of the mount table; "" for none.
func bundleAt(point string) string {
	for _, dir := range []string{rawBundle(point), filepath.Dir(point)} {
		if fileExists(filepath.Join(dir, stateDir)) && rootfsOf(dir) == point {
			return dir
		}
	}
	return ""
}

// isRaw reports whether a bundle is of a mountpoint beside it.
func isRaw(bundle string) bool {
	info, err := os.Lstat(filepath.Join(bundle, rootfsName))
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}

// RawMount turns options for a bundle into those for a mount at a directory alone:
// opt.Bundle is that directory. It is made by Mount where it is missing; one with
// something in it is ErrExists, unless it is mounted or was.
func RawMount(opt MountOptions) (MountOptions, error) {
	abs, err := filepath.Abs(opt.Bundle)
	if err != nil {
		return opt, fmt.Errorf("mount: %w", err)
	}
	opt.Bundle, opt.rawRootfs = rawBundle(abs), abs
	if fileExists(filepath.Join(opt.Bundle, stateDir, stateName)) {
		return opt, nil
	}
	entries, err := os.ReadDir(abs)
	switch {
	case err == nil && len(entries) > 0:
		return opt, fmt.Errorf("%s %w, and is not empty (--extract writes into it)", abs, ErrExists)
	case errors.Is(err, unix.ENOTDIR):
		return opt, fmt.Errorf("%s %w, and is no directory", abs, ErrExists)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return opt, fmt.Errorf("mount: %w", err)
	}
	return opt, nil
}

// makeRootfs makes the mountpoint.
func (m *mounting) makeRootfs() error {
	if m.opt.rawRootfs == "" {
		if err := os.MkdirAll(m.dir.file(rootfsName), 0o755); err != nil {
			return fmt.Errorf("create bundle: %w", err)
		}
		return nil
	}
	err := os.Mkdir(m.opt.rawRootfs, 0o755)
	switch {
	case err == nil:
		m.madeRootfs = true
	case !errors.Is(err, fs.ErrExist):
		return fmt.Errorf("create mountpoint: %w", err)
	}
	err = os.Symlink(filepath.Join("..", filepath.Base(m.opt.rawRootfs)), m.dir.file(rootfsName))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create bundle: %w", err)
	}
	return nil
}

// undoRootfs removes a mountpoint that makeRootfs has made.
func (m *mounting) undoRootfs() error {
	var errs []error
	for _, name := range []string{m.dir.file(rootfsName), m.opt.rawRootfs} {
		if name == m.opt.rawRootfs && !m.madeRootfs {
			continue
		}
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
