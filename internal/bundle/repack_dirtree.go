package bundle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// dirTree is the tree below a directory of the host, with owners in the image's
// ids. It remembers by which path it saw an inode.
type dirTree struct {
	root *os.Root
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
	return &dirTree{root: root, maps: maps, inos: map[devIno]layer.Ino{}}, nil
}

func (t *dirTree) close() error { return t.root.Close() }

func (t *dirTree) stat(p string) (layer.Attr, error) {
	info, err := t.root.Lstat(p)
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

// rootlessXattr holds the owner of a file in a bundle that a plain user unpacked
// (rootlesscontainers/proto): a message of varints, 1 the user, 2 the group.
const rootlessXattr = "user.rootlesscontainers"

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
	return parseRootless([]byte(x[rootlessXattr]))
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
	return 0, fmt.Errorf("owner %d is outside the bundle's id mapping", id)
}

var errRootless = errors.New("malformed " + rootlessXattr)

// parseRootless reads an owner; no message is the image's root.
func parseRootless(b []byte) (uid, gid uint32, err error) {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return 0, 0, errRootless
		}
		value, m := binary.Uvarint(b[n:])
		if m <= 0 || value > math.MaxUint32 {
			return 0, 0, errRootless
		}
		b = b[n+m:]
		if value == math.MaxUint32 {
			value = 0 // "as it is"
		}
		switch tag { // number<<3 | 0, a varint
		case 1 << 3:
			uid = uint32(value)
		case 2 << 3:
			gid = uint32(value)
		default:
			return 0, 0, errRootless
		}
	}
	return uid, gid, nil
}

func (t *dirTree) list(dir layer.Ino) ([]string, error) {
	f, err := t.root.Open(t.path(dir))
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, errors.Join(err, f.Close())
}

// path is one by which stat saw the inode.
func (t *dirTree) path(ino layer.Ino) string { return t.seen[ino-1] }

func (t *dirTree) readlink(ino layer.Ino) (string, error) { return t.root.Readlink(t.path(ino)) }

func (t *dirTree) xattrs(ino layer.Ino) (map[string]string, error) {
	x, err := t.allXattrs(t.path(ino))
	if t.maps.Rootless {
		delete(x, rootlessXattr)
	}
	return x, err
}

// allXattrs are those of a path, reached through its directory's descriptor.
func (t *dirTree) allXattrs(p string) (_ map[string]string, err error) {
	dir, err := t.root.Open(path.Dir(p))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	return pathXattrs("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + path.Base(p))
}

func (t *dirTree) open(ino layer.Ino) (content, error) {
	return t.root.OpenFile(t.path(ino), os.O_RDONLY|unix.O_NONBLOCK, 0)
}

func (t *dirTree) version(ino layer.Ino) (fileVersion, error) {
	info, err := t.root.Lstat(t.path(ino))
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
