package extract

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// copyBytes is how much of a file is read and written at a time.
const copyBytes = 256 << 10

// writer is a goroutine that makes inodes.
type writer struct {
	x    *extraction
	dirs *dirCache
	buf  []byte
	hash hash.Hash // nil: no digests are asked for
}

// makeNodes makes all that is no directory, each under its first name.
func (x *extraction) makeNodes(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	work := make(chan batch)
	group.Go(func() error {
		defer close(work)
		for _, b := range x.batches {
			select {
			case work <- b:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	workers := min(x.opt.Workers, max(len(x.batches), 1))
	for range workers {
		group.Go(func() (err error) {
			w := &writer{x: x, dirs: newDirCache(x.im.Tree, x.root, workerDirs, workers), buf: make([]byte, copyBytes)}
			if x.opt.Record {
				w.hash = sha256.New()
			}
			defer func() { err = errors.Join(err, w.dirs.close()) }()
			for b := range work {
				for _, ino := range b {
					if err := w.node(ctx, ino); err != nil {
						return x.fail(ino, err)
					}
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// node makes one inode.
func (w *writer) node(ctx context.Context, ino layer.Ino) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	a, err := w.x.im.Attr(ino)
	if err != nil {
		return err
	}
	parent, name, err := firstName(w.x.im.Tree, ino)
	if err != nil {
		return err
	}
	dir, err := w.dirs.get(parent)
	if err != nil {
		return err
	}
	at := place{parent, dir, name}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return w.file(ctx, ino, at)
	case unix.S_IFLNK:
		return w.symlink(ino, at)
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO:
		return w.special(ctx, ino, &a, at)
	}
	return fmt.Errorf("type %#o: %w", a.Mode&unix.S_IFMT, layer.ErrCorrupt)
}

// place is where an inode is made.
type place struct {
	parent layer.Ino
	dir    int // descriptor of parent
	name   string
}

// create makes something at a place; what may be in the way is removed.
func (w *writer) create(at place, op string, fn func() error) error {
	if err := w.x.step(); err != nil {
		return err
	}
	err := fn()
	if err != nil && errors.Is(err, unix.EEXIST) && w.x.mayReplace(at.parent) {
		if err = removeAt(at.dir, at.name); err == nil {
			err = fn()
		}
	}
	if err != nil {
		return &os.PathError{Op: op, Path: at.name, Err: err}
	}
	w.x.noteMade(at.parent, at.name)
	return nil
}

// file makes a regular file.
func (w *writer) file(ctx context.Context, ino layer.Ino, at place) (err error) {
	var fd int
	err = w.create(at, "create", func() (err error) {
		fd, err = openat(at.dir, at.name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := w.content(ctx, ino, fd); err != nil {
		return err
	}
	return w.finish(ino, fd, !w.x.fresh)
}

// content copies a file's bytes. What no extent covers stays a hole.
func (w *writer) content(ctx context.Context, ino layer.Ino, fd int) error {
	if w.hash != nil {
		w.hash.Reset()
		defer func() { w.hash.Sum(w.x.objects[ino-1].Sum[:0]) }()
	}
	f, err := w.x.im.Open(ino)
	if err != nil {
		return err
	}
	if f.Size() == 0 {
		return nil
	}
	extents, err := w.x.im.Extents(ino)
	if err != nil {
		return err
	}
	if len(extents) != 1 || extents[0].Size != f.Size() {
		// First, so that a length which the file system cannot have fails at once.
		if err := unix.Ftruncate(fd, f.Size()); err != nil {
			return os.NewSyscallError("ftruncate", err)
		}
	}
	at := int64(0)
	for _, e := range extents {
		if err := w.hole(ctx, e.Off-at); err != nil {
			return err
		}
		if err := w.data(ctx, f, fd, e.Off, e.Off+e.Size); err != nil {
			return err
		}
		at = e.Off + e.Size
	}
	return w.hole(ctx, f.Size()-at)
}

// data copies the bytes from off to end.
func (w *writer) data(ctx context.Context, f layer.File, fd int, off, end int64) error {
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := w.buf[:min(int64(len(w.buf)), end-off)]
		n, err := f.ReadAt(p, off)
		if n < len(p) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if w.hash != nil {
			_, _ = w.hash.Write(p) // never fails: see hash.Hash
		}
		for len(p) > 0 {
			n, err := unix.Pwrite(fd, p, off)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return os.NewSyscallError("write", err)
			}
			n = max(n, 0)
			p = p[n:]
			off += int64(n)
		}
	}
	return nil
}

var zeros [64 << 10]byte

// hole adds n zeros to the digest.
func (w *writer) hole(ctx context.Context, n int64) error {
	if w.hash == nil {
		return nil
	}
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := min(n, int64(len(zeros)))
		_, _ = w.hash.Write(zeros[:part]) // never fails: see hash.Hash
		n -= part
	}
	return nil
}

// symlink makes a symbolic link.
func (w *writer) symlink(ino layer.Ino, at place) error {
	target, err := w.x.im.Readlink(ino)
	if err != nil {
		return err
	}
	if err := w.create(at, "symlink", func() error { return unix.Symlinkat(target, at.dir, at.name) }); err != nil {
		return err
	}
	return w.finishNamed(ino, at)
}

// special makes a fifo or a device; an empty file where that is not permitted.
func (w *writer) special(ctx context.Context, ino layer.Ino, a *layer.Attr, at place) error {
	typ := a.Mode & unix.S_IFMT
	denied := typ != unix.S_IFIFO && w.x.opt.Rootless
	if !denied {
		err := w.create(at, "mknod", func() error { return unix.Mknodat(at.dir, at.name, typ|0o600, int(a.Rdev)) })
		denied = typ != unix.S_IFIFO && w.x.userNS && errors.Is(err, unix.EPERM)
		if err != nil && !denied {
			return err
		}
	}
	if !denied {
		return w.finishNamed(ino, at)
	}
	w.x.mu.Lock()
	w.x.losses.devices++
	w.x.mu.Unlock()
	return w.stand(ctx, ino, at)
}

// stand makes an empty file in place of a device.
func (w *writer) stand(ctx context.Context, ino layer.Ino, at place) (err error) {
	var fd int
	err = w.create(at, "create", func() (err error) {
		fd, err = openat(at.dir, at.name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	if w.hash != nil {
		w.hash.Reset()
		w.hash.Sum(w.x.objects[ino-1].Sum[:0])
	}
	return errors.Join(w.finish(ino, fd, !w.x.fresh), unix.Close(fd), ctx.Err())
}

// finishNamed is finish for what cannot be opened.
func (w *writer) finishNamed(ino layer.Ino, at place) (err error) {
	fd, err := openat(at.dir, at.name, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	return w.finishPath(ino, fd, at)
}
