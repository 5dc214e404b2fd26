package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
	"github.com/umoci-mount/umoci-mount/layer"
)

// NameMax is the longest name in bytes, as on every Linux file system.
const NameMax = 255

// Options of a file system. The zero value shows the image's ids and logs
// nothing.
type Options struct {
	// ReadOnly reads the upper and refuses every change; work/ is not touched.
	ReadOnly bool
	// Log is told of what no caller sees: damage found, debris left. May be nil.
	Log *slog.Logger
	// IDs maps owners between image and host.
	IDs IDMap
	// Squash, where set, is shown as the owner of everything.
	Squash *Owner
	// Root, where set, is an owner of the host who acts as the image's root: what it
	// creates belongs to 0:0.
	Root *Owner
	// DirFDs is how many directory descriptors are kept; 0: as many as do no harm.
	DirFDs int
}

// FS is a union of a lower tree and an upper directory. It is safe for
// concurrent use. Close it after every handle.
type FS struct {
	lower    Lower
	upper    *Upper // nil: nothing of it exists
	readOnly bool
	log      *slog.Logger
	ids      IDMap
	squash   *Owner
	rootUser *Owner
	removed  func()         // see OnRemoval
	known    func(Ino) bool // see OnDoubt
	root     *node
	dirFDs   dirFDs
	table    table

	anchors    atomic.Int64 // nodes that have an anchor
	maxAnchors int64        // immutable; how many get one where there is another way

	freezeMu sync.RWMutex
	treeMu   sync.RWMutex

	movedMu    sync.Mutex
	movedFound bool // protected by movedMu: directories moved by an earlier mount are in the table
}

// OnRemoval has f called when the root is asked for after the upper directory was
// removed: by whoever removes all of the bundle, and is at its mountpoint now. It must
// come before the first request.
func (fs *FS) OnRemoval(f func()) { fs.removed = f }

// OnDoubt has f asked whether the kernel still knows an inode, where its references are not
// all counted and nothing else leads to the object. No lock is held, so f may wait. It must
// be set before the first request; without it the kernel knows what it has not forgotten.
func (fs *FS) OnDoubt(f func(Ino) bool) { fs.known = f }

// New joins a lower tree and an upper directory, of which it takes ownership;
// with no upper the view is read-only. What an earlier crash left behind is
// removed or completed.
func New(lower Lower, upper *Upper, opt Options) (*FS, error) {
	fs := &FS{
		lower: lower, upper: upper,
		readOnly: opt.ReadOnly || upper == nil,
		log:      opt.Log, ids: opt.IDs, squash: opt.Squash, rootUser: opt.Root,
	}
	if fs.log == nil {
		fs.log = slog.New(slog.DiscardHandler)
	}
	fs.dirFDs.max = opt.DirFDs
	if fs.dirFDs.max == 0 {
		fs.dirFDs.max = sys.DescriptorShare(1024)
	}
	fs.maxAnchors = int64(sys.DescriptorShare(1 << 16))
	fs.table.init()
	fs.root = newNode(layer.RootIno, unix.S_IFDIR, layer.RootIno)
	fs.root.pinned = true
	fs.table.nodes[fs.root.ino] = fs.root
	if upper == nil {
		return fs, nil
	}
	if err := fs.openRoot(); err != nil {
		return nil, err
	}
	return fs, nil
}

// openRoot gives the upper root the lower root's attributes, once.
func (fs *FS) openRoot() error {
	a := at{fs.upper.root, ""}
	_, err := fs.upper.getxattr(a, xattrRoot)
	initialised := err == nil
	if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	if fs.readOnly {
		return fs.adoptRoot(initialised)
	}
	if err := fs.finishPublishes(); err != nil {
		return fmt.Errorf("complete an interrupted copy-up: %w", err)
	}
	if err := fs.upper.cleanWork(); err != nil {
		return fmt.Errorf("clear the work directory: %w", err)
	}
	if err := fs.upper.probe(); err != nil {
		return err
	}
	if !initialised {
		src, err := fs.lowerSource(fs.root.ino)
		if err != nil {
			return err
		}
		if err := fs.upper.applyObject(a, src); err != nil {
			return fmt.Errorf("set up the upper directory: %w", err)
		}
		if err := fs.upper.setxattr(a, xattrRoot, []byte("1"), 0); err != nil {
			return err
		}
	}
	return fs.adoptRoot(true)
}

// adoptRoot marks the root as present in the upper. One that was never set up
// (a read-only view of a fresh upper) still shows the lower root.
func (fs *FS) adoptRoot(initialised bool) error {
	if !initialised {
		return nil
	}
	m, err := fs.upper.meta(at{fs.upper.root, ""})
	if err != nil {
		return err
	}
	fs.root.over = m.override
	fs.root.upper.Store(true)
	return nil
}

// Close releases the upper and every descriptor. The lower tree is its owner's.
func (fs *FS) Close() error {
	fs.treeMu.Lock()
	defer fs.treeMu.Unlock()
	errs := []error{fs.closeNodes(), fs.dirFDs.close()}
	if fs.upper != nil {
		errs = append(errs, fs.upper.Close())
	}
	return errors.Join(errs...)
}

// Freeze waits for the changes under way and holds every later one until thaw is
// called. Reads go on. Writes that the kernel passes to the upper file by itself
// (passthrough) are not held.
func (fs *FS) Freeze() (thaw func()) {
	fs.freezeMu.Lock()
	return sync.OnceFunc(fs.freezeMu.Unlock)
}

// change enters an operation that alters the view; the caller must call changed.
func (fs *FS) change() error {
	if fs.readOnly {
		return ErrReadOnly
	}
	fs.freezeMu.RLock()
	return nil
}

func (fs *FS) changed() { fs.freezeMu.RUnlock() }

func checkName(name string) error {
	switch {
	case len(name) > NameMax:
		return ErrNameTooLong
	case name == "", name == ".", name == "..":
		return ErrInvalid
	}
	return nil
}

// Statfs describes the file system of the upper directory, whatever the inode.
func (fs *FS) Statfs(Ino) (Statfs, error) {
	if fs.upper == nil {
		return Statfs{Bsize: 4096, Frsize: 4096, NameLen: NameMax}, nil
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fs.upper.root, &st); err != nil {
		return Statfs{}, pathError("statfs", at{}, err)
	}
	frsize := st.Frsize
	if frsize == 0 {
		frsize = st.Bsize
	}
	return Statfs{
		Bsize: uint32(st.Bsize), Frsize: uint32(frsize), NameLen: NameMax,
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
	}, nil
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// lowerAttr is a lower inode as the view shows it while it has no upper object.
func (fs *FS) lowerAttr(a layer.Attr) Attr {
	out := Attr{
		Ino: a.Ino, Mode: a.Mode, Nlink: a.Nlink, UID: a.UID, GID: a.GID, Rdev: a.Rdev,
		Size: a.Size, Blksize: 4096, Atime: a.Mtime, Mtime: a.Mtime, Ctime: a.Mtime, Btime: a.Mtime,
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		out.Size, out.Blocks = layer.DirSize, layer.DirSize/512
	case unix.S_IFREG:
		out.Blocks = a.Blocks
	}
	return fs.shown(out)
}
