package extract

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// batch is what a goroutine makes in one go: inodes that are no directories.
type batch []layer.Ino

// How much is in a batch. Two neighbours may both need the span at their border, so
// one is large beside a span (up to 4 MiB where data compresses well, 0.5 MiB
// mostly); where files are small their number bounds it.
const (
	batchBytes = 8 << 20
	batchNodes = 512
)

// located is a file and where its content begins.
type located struct {
	ino   layer.Ino
	layer int
	pos   int64
	size  int64
}

// plan looks at every inode, and makes nothing.
func (x *extraction) plan(ctx context.Context) error {
	n := x.im.Len()
	if x.opt.Record {
		x.objects = make([]Object, n)
	}
	var files []located
	var others []layer.Ino
	x.entries = 1
	for i := range n {
		ino := layer.RootIno + layer.Ino(i)
		if i%4096 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		a, err := x.im.Attr(ino)
		if err != nil {
			return x.fail(ino, err)
		}
		if _, _, err := x.owner(&a); err != nil {
			return x.fail(ino, err)
		}
		if a.Mode&unix.S_IFMT == unix.S_IFDIR {
			if ino != layer.RootIno {
				x.dirs = append(x.dirs, ino)
				x.entries++
			}
			continue
		}
		x.entries += int(a.Nlink)
		if a.Nlink > 1 {
			x.linked = append(x.linked, ino)
		}
		if a.Mode&unix.S_IFMT != unix.S_IFREG || a.Size == 0 {
			others = append(others, ino)
			continue
		}
		f := located{ino: ino, size: a.Size}
		extents, err := x.im.Extents(ino)
		if err != nil {
			return x.fail(ino, err)
		}
		if len(extents) > 0 {
			f.layer, f.pos = extents[0].Layer, extents[0].Pos
		}
		files = append(files, f)
	}
	if a, err := x.im.Attr(layer.RootIno); err != nil || a.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("extract: the root is no directory: %w", layer.ErrCorrupt)
	}
	x.cut(files, others)
	return nil
}

// cut makes batches: files in the order of their content, then the rest.
func (x *extraction) cut(files []located, others []layer.Ino) {
	slices.SortFunc(files, func(a, b located) int {
		return cmp.Or(cmp.Compare(a.layer, b.layer), cmp.Compare(a.pos, b.pos), cmp.Compare(a.ino, b.ino))
	})
	var b batch
	var bytes int64
	for i, f := range files {
		if len(b) > 0 && (bytes+f.size > batchBytes || len(b) == batchNodes || f.layer != files[i-1].layer) {
			x.batches = append(x.batches, b)
			b, bytes = nil, 0
		}
		b = append(b, f.ino)
		bytes += f.size
	}
	if len(b) > 0 {
		x.batches = append(x.batches, b)
	}
	for part := range slices.Chunk(others, batchNodes) {
		x.batches = append(x.batches, part)
	}
}

// owner is whose an inode becomes on the disk.
func (x *extraction) owner(a *layer.Attr) (uid, gid uint32, err error) {
	if x.opt.Rootless {
		return x.euid, x.egid, nil
	}
	if uid, err = toHost(x.opt.UIDs, a.UID); err != nil {
		return 0, 0, fmt.Errorf("user %w", err)
	}
	if gid, err = toHost(x.opt.GIDs, a.GID); err != nil {
		return 0, 0, fmt.Errorf("group %w", err)
	}
	return uid, gid, nil
}
