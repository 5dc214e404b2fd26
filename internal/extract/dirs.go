package extract

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
	"github.com/umoci-mount/umoci-mount/layer"
)

// dirCache gives descriptors of directories of a tree that is being extracted, and
// keeps the ones used last. It is for one goroutine.
type dirCache struct {
	tree *layer.Tree
	root int // descriptor of the root; not closed
	max  int
	open []openDir
	tick uint64
}

type openDir struct {
	ino  layer.Ino
	fd   int
	used uint64
}

// How many directories a goroutine holds open. Layers are written directory by
// directory, so a few do; the goroutine that walks the tree up and down needs more
// where it is deep. It is fewer where the process may not have that many.
const (
	workerDirs = 32
	walkerDirs = 256
)

// newDirCache keeps up to most directories open, for one of several goroutines that do.
func newDirCache(tree *layer.Tree, root, most, goroutines int) *dirCache {
	return &dirCache{tree: tree, root: root, max: max(1, sys.DescriptorShare(most*goroutines)/goroutines)}
}

func (c *dirCache) close() error {
	var errs []error
	for _, d := range c.open {
		errs = append(errs, unix.Close(d.fd))
	}
	c.open = nil
	return errors.Join(errs...)
}

// get is a descriptor of a directory, valid until the next call. It is opened from
// the nearest one above that is open, name by name, and follows nothing.
func (c *dirCache) get(ino layer.Ino) (int, error) {
	type step struct {
		ino  layer.Ino
		name string
	}
	var down []step
	fd := -1
	for at := ino; fd < 0; {
		if at == layer.RootIno {
			fd = c.root
			break
		}
		if fd = c.cached(at); fd >= 0 {
			break
		}
		parent, name, err := firstName(c.tree, at)
		if err != nil {
			return -1, err
		}
		down = append(down, step{at, name})
		at = parent
	}
	for i := len(down) - 1; i >= 0; i-- {
		next, err := openat(fd, down[i].name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return -1, err
		}
		if err := c.keep(down[i].ino, next); err != nil {
			return -1, err
		}
		fd = next
	}
	return fd, nil
}

func (c *dirCache) cached(ino layer.Ino) int {
	for i := range c.open {
		if d := &c.open[i]; d.ino == ino {
			c.tick++
			d.used = c.tick
			return d.fd
		}
	}
	return -1
}

// keep takes a descriptor over, for which another one may have to go.
func (c *dirCache) keep(ino layer.Ino, fd int) error {
	c.tick++
	d := openDir{ino, fd, c.tick}
	if len(c.open) < c.max {
		c.open = append(c.open, d)
		return nil
	}
	oldest := 0
	for i := range c.open {
		if c.open[i].used < c.open[oldest].used {
			oldest = i
		}
	}
	err := unix.Close(c.open[oldest].fd)
	c.open[oldest] = d
	return err
}

// firstName is an inode's first name and the directory that it is in.
func firstName(tree *layer.Tree, ino layer.Ino) (layer.Ino, string, error) {
	for parent, name := range tree.Names(ino) {
		return parent, name, checkName(name)
	}
	return 0, "", layer.ErrCorrupt
}

// checkName refuses what is not one path component.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > unix.NAME_MAX || strings.ContainsAny(name, "/\x00") {
		return &os.PathError{Op: "extract", Path: name, Err: ErrName}
	}
	return nil
}

// openat is openat(2) that follows no symlink in name, which is one component.
func openat(dir int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOCTTY, mode)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return fd, nil
	}
}
