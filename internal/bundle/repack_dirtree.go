package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// dirTree is the tree below a directory of the host, with owners in the image's
// ids. It remembers by which path it saw an inode.
type dirTree struct {
	root *os.Root
	dir  string // its path, for those who take no descriptor
	maps *mapOptions
	inos map[devIno]layer.Ino
	seen []string // paths, by inode number less one
}

// devIno is what tells inodes of a host apart.
type devIno struct{ dev, ino uint64 }

func newDirTree(dir string, maps *mapOptions) (*dirTree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open root file system: %w", err)
	}
	return &dirTree{root: root, dir: dir, maps: maps, inos: map[devIno]layer.Ino{}}, nil
}

func (t *dirTree) close() error { return t.root.Close() }

func (t *dirTree) stat(p string) (layer.Attr, error) {
	info, err := t.lstat(p)
	if errors.Is(err, unix.ENOTDIR) {
		return layer.Attr{}, fs.ErrNotExist
	}
	if err != nil {
		return layer.Attr{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return layer.Attr{}, fmt.Errorf("stat %q: %w", p, errors.ErrUnsupported)
	}
	id := devIno{st.Dev, st.Ino}
	if t.inos[id] == 0 {
		t.seen = append(t.seen, p)
		t.inos[id] = layer.Ino(len(t.seen))
	}
	a := layer.Attr{
		Ino: t.inos[id], Mode: st.Mode, Nlink: uint32(st.Nlink), Rdev: st.Rdev, Size: st.Size,
		Mtime: layer.Timespec{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)},
	}
	a.UID, a.GID, err = t.owner(p, st)
	return a, err
}

// owner is a file's owner in the image's ids.
func (t *dirTree) owner(p string, st *syscall.Stat_t) (uid, gid uint32, err error) {
	if !t.maps.Rootless {
		if uid, err = toContainer(t.maps.UIDMappings, st.Uid); err == nil {
			gid, err = toContainer(t.maps.GIDMappings, st.Gid)
		}
		if err != nil {
			return 0, 0, err
		}
		return uid, gid, nil
	}
	x, err := t.allXattrs(p)
	if err != nil {
		return 0, 0, err
	}
	return rootlessOwner(x[overlay.XattrRootless])
}

// toContainer is the image's id for one of the host.
func toContainer(mappings []idMapping, id uint32) (uint32, error) {
	if len(mappings) == 0 {
		return id, nil
	}
	for _, m := range mappings {
		if id >= m.HostID && id-m.HostID < m.Size {
			return m.ContainerID + (id - m.HostID), nil
		}
	}
	return 0, fmt.Errorf("%w: id %d of the host", ErrUnmapped, id)
}

// rootlessOwner is what umoci's rootless unpack has recorded; no message is the
// image's root, and so is an id "as it is", which belongs to the plain user.
func rootlessOwner(value string) (uid, gid uint32, err error) {
	o, err := overlay.ParseRootlessOwner([]byte(value))
	if o.UID == math.MaxUint32 {
		o.UID = 0
	}
	if o.GID == math.MaxUint32 {
		o.GID = 0
	}
	return o.UID, o.GID, err
}

func (t *dirTree) list(dir layer.Ino) ([]string, error) {
	var names []string
	err := t.opened(t.path(dir), func() error {
		f, err := t.root.Open(t.path(dir))
		if err != nil {
			return err
		}
		names, err = f.Readdirnames(-1)
		return errors.Join(err, f.Close())
	})
	slices.Sort(names)
	return names, err
}

// opened calls fn, which needs what is at a path. What a plain user has closed to
// himself is opened for that time in rootless mode.
func (t *dirTree) opened(p string, fn func() error) error {
	if !t.maps.Rootless {
		return fn()
	}
	return opened(filepath.Join(t.dir, p), fn)
}

func (t *dirTree) lstat(p string) (info fs.FileInfo, err error) {
	err = t.opened(p, func() (err error) {
		info, err = t.root.Lstat(p)
		return err
	})
	return info, err
}

// path is one by which stat saw the inode.
func (t *dirTree) path(ino layer.Ino) string { return t.seen[ino-1] }

func (t *dirTree) readlink(ino layer.Ino) (target string, err error) {
	err = t.opened(t.path(ino), func() (err error) {
		target, err = t.root.Readlink(t.path(ino))
		return err
	})
	return target, err
}

func (t *dirTree) xattrs(ino layer.Ino) (map[string]string, error) {
	x, err := t.allXattrs(t.path(ino))
	if t.maps.Rootless {
		delete(x, overlay.XattrRootless)
	}
	return x, err
}

// allXattrs are those of a path, reached through its directory's descriptor.
func (t *dirTree) allXattrs(p string) (x map[string]string, err error) {
	err = t.opened(p, func() (err error) {
		x, err = t.readXattrs(p)
		return err
	})
	return x, err
}

func (t *dirTree) readXattrs(p string) (_ map[string]string, err error) {
	dir, err := t.root.Open(path.Dir(p))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	return pathXattrs(sys.ProcPath(int(dir.Fd()), path.Base(p)))
}

func (t *dirTree) open(ino layer.Ino) (content, error) {
	var f *os.File
	err := t.opened(t.path(ino), func() (err error) {
		f, err = t.root.OpenFile(t.path(ino), os.O_RDONLY|unix.O_NONBLOCK, 0)
		return err
	})
	return f, err
}

func (t *dirTree) version(ino layer.Ino) (fileVersion, error) {
	info, err := t.lstat(t.path(ino))
	if err != nil {
		return fileVersion{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileVersion{}, fmt.Errorf("stat %q: %w", t.path(ino), errors.ErrUnsupported)
	}
	return fileVersion{
		size:  st.Size,
		mtime: layer.Timespec{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)},
		ctime: layer.Timespec{Sec: st.Ctim.Sec, Nsec: uint32(st.Ctim.Nsec)},
	}, nil
}
