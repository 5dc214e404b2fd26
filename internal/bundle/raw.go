package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

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
// path is an image's, which must not be taken for a bundle. One that a stranger may have
// put there, as anybody can in a sticky directory, is none.
func Locate(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	beside := rawBundle(abs)
	if _, strange := strangerOf(beside, abs); !strange && fileExists(filepath.Join(beside, stateDir)) {
		return beside
	}
	return path
}

// strangerOf is the owner of what is beside a mountpoint, and whether that is neither
// the caller, nor root, nor the mountpoint's owner. Where there is nothing nobody is.
func strangerOf(beside, point string) (uid uint32, strange bool) {
	var st unix.Stat_t
	if err := unix.Lstat(beside, &st); err != nil {
		return 0, false
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR { // a symlink may be anybody's, and lead anywhere
		return st.Uid, true
	}
	if st.Uid == uint32(os.Geteuid()) || st.Uid == 0 {
		return st.Uid, false
	}
	owner, known := pointOwner(point)
	return st.Uid, !known || owner != st.Uid
}

// pointOwner is whose a mountpoint is: who has mounted there, since what the mount shows
// is the image's word, or the directory's owner.
func pointOwner(point string) (uid uint32, known bool) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(point))
	if err != nil {
		return 0, false
	}
	e, err := mountAt(filepath.Join(dir, filepath.Base(point)))
	if err != nil {
		return 0, false
	}
	if e != nil {
		id, err := strconv.ParseUint(e.User, 10, 32)
		return uint32(id), err == nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(point, &st); err != nil {
		return 0, false
	}
	return st.Uid, st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// rawName is the name of the mountpoint beside a bundle; "" where it is in it.
func (d *dir) rawName() string {
	name, ok := strings.CutPrefix(d.top.readlink(rootfsName), "../")
	if !ok || rawBundle(filepath.Join(filepath.Dir(d.path), name)) != d.path {
		return ""
	}
	return name
}

// pointAt is the mountpoint, which need not be there, as a name in an open directory,
// which stays the bundle's.
func (d *dir) pointAt() (at folder, name string) {
	if name = d.rawName(); name != "" {
		return d.parent, name
	}
	return d.top, rootfsName
}

// point is the mountpoint's path as the mount table has it.
func (d *dir) point() string {
	if name := d.rawName(); name != "" {
		return filepath.Join(filepath.Dir(d.path), name)
	}
	return d.file(rootfsName)
}

// openPoint opens what is at the mountpoint, without asking it anything.
func (d *dir) openPoint() (*os.File, error) {
	at, name := d.pointAt()
	return at.open(name, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// bundleAt is the bundle whose mount is at a point of the mount table; nil for none.
func bundleAt(point string) *dir {
	for _, path := range []string{rawBundle(point), filepath.Dir(point)} {
		if !fileExists(filepath.Join(path, stateDir)) {
			continue
		}
		if d, err := lookDir(path); err == nil {
			if d.point() == point {
				return d
			}
			_ = d.close() // it was read at most
		}
	}
	return nil
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
	if uid, strange := strangerOf(opt.Bundle, abs); strange {
		return opt, fmt.Errorf("%s %w, and is user %d's, not the mountpoint's owner's: %w", opt.Bundle, ErrExists, uid, fs.ErrPermission)
	}
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
	d := m.dir
	if m.opt.rawRootfs == "" {
		if err := d.top.mkdir(rootfsName, 0o755); err != nil {
			return fmt.Errorf("create bundle: %w", err)
		}
		return nil
	}
	name := filepath.Base(m.opt.rawRootfs)
	m.madeRootfs = !d.parent.exists(name)
	if err := d.parent.mkdir(name, 0o755); err != nil {
		m.madeRootfs = false
		return fmt.Errorf("create mountpoint: %w", err)
	}
	err := unix.Symlinkat("../"+name, int(d.top.fd.Fd()), rootfsName)
	if errors.Is(err, unix.EEXIST) && d.rawName() == name {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("create bundle: %w", d.top.fail("symlink", rootfsName, err))
	}
	return nil
}

// undoRootfs removes a mountpoint that makeRootfs has made.
func (m *mounting) undoRootfs() error {
	d := m.dir
	remove := d.top.rmdir
	if m.opt.rawRootfs != "" {
		remove = d.top.remove
	}
	errs := []error{remove(rootfsName)}
	if m.madeRootfs {
		errs = append(errs, d.parent.rmdir(filepath.Base(m.opt.rawRootfs)))
	}
	for i, err := range errs {
		if errors.Is(err, fs.ErrNotExist) {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}
