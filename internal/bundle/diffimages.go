package bundle

import (
	"context"
	"errors"
	"log/slog"

	"github.com/umoci-mount/umoci-mount/layer"
)

// DiffImages lists what differs between two images, sorted by path: what a layer
// would hold that makes b of a. Content that lies in a layer of both is not read.
func DiffImages(ctx context.Context, a, b ImageOptions) (out []Change, err error) {
	was, err := OpenImage(ctx, a)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, was.Close()) }()
	now, err := OpenImage(ctx, b)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, now.Close()) }()
	c := comparison{base: imageTree{was.Image}, view: imageTree{now.Image}, log: a.Log}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.same = func(n, w layer.Ino) (bool, error) { return sameBytes(now, was, n, w) }
	w := newTreeWalk(c.base, c.view)
	if err := w.everything(ctx, "."); err != nil {
		return nil, err
	}
	pairs, err := c.run(ctx, w.paths())
	if err != nil {
		return nil, err
	}
	for p := range changed(pairs) {
		out = append(out, newChange(p))
	}
	return out, nil
}

// sameBytes reports whether two files have their bytes at the same place of the same
// plain stream.
func sameBytes(im, other *Image, ino, otherIno layer.Ino) (bool, error) {
	a, err := im.Extents(ino)
	if err != nil {
		return false, err
	}
	b, err := other.Extents(otherIno)
	if err != nil || len(a) != len(b) || len(a) == 0 {
		return false, err
	}
	for i := range a {
		same := a[i].Off == b[i].Off && a[i].Size == b[i].Size && a[i].Pos == b[i].Pos &&
			im.diffID(a[i].Layer) == other.diffID(b[i].Layer)
		if !same {
			return false, nil
		}
	}
	return true, nil
}
