package bundle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// socketNote is logged of each socket.
const socketNote = "a socket cannot be stored in a layer and is left out"

// changeKind is how a path differs between two trees.
type changeKind uint8

const (
	changeNone changeKind = iota
	changeAdded
	changeModified
	changeDeleted
)

// pathPair is one path on both sides of a comparison; nil where a side has
// nothing there.
type pathPair struct {
	path     string
	old, now *object
	// oldSum and nowSum are hexadecimal sha256 digests of content; "" where they
	// were not needed.
	oldSum, nowSum string
	kind           changeKind
	// linkOnly says that nothing but the number of links differs. Of a directory that
	// is how many it has in it, which is a change unless those are left out.
	linkOnly bool
}

// comparison decides which of some candidate paths differ between an image and a
// view. It knows no image layouts, no mounts and no tar.
type comparison struct {
	base tree
	view tree
	// same reports that the content of two files is known to be the same without
	// reading it. May be nil.
	same func(now, was layer.Ino) (bool, error)
	// epoch is what the layer's times will be clamped to; nil: nothing.
	epoch *time.Time
	log   *slog.Logger

	buf []byte // for hashing
}

// run compares the candidates and returns all of them, sorted, with their kind.
// The decision is go-mtree's; that it agrees with what the trees hold is checked.
func (c *comparison) run(ctx context.Context, paths candidates) ([]*pathPair, error) {
	pairs, err := c.pairs(ctx, paths)
	if err != nil {
		return nil, err
	}
	for _, p := range pairs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c.clamp(p)
		if err := c.hash(p); err != nil {
			return nil, err
		}
	}
	if err := decide(pairs); err != nil {
		return nil, err
	}
	return pairs, nil
}

// pairs looks the candidates up on both sides.
func (c *comparison) pairs(ctx context.Context, paths candidates) ([]*pathPair, error) {
	var out []*pathPair
	for cand, err := range paths {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		p := cand.path
		pair := &pathPair{path: p}
		if pair.old, err = find(c.base, p); err != nil {
			return nil, fmt.Errorf("base image: %w", err)
		}
		switch {
		case !cand.known:
			pair.now, err = find(c.view, p)
		case cand.exists:
			pair.now, err = load(c.view, p, cand.now)
		}
		if err != nil {
			return nil, err
		}
		if pair.now != nil && pair.now.typ() == unix.S_IFSOCK {
			c.log.Warn(socketNote, "path", p)
			pair.now = nil
		}
		if pair.old == nil && pair.now == nil {
			continue
		}
		if pair.now == nil {
			topmost, err := c.topmost(p)
			if err != nil {
				return nil, err
			}
			if !topmost {
				continue
			}
		}
		out = append(out, pair)
	}
	slices.SortFunc(out, func(a, b *pathPair) int { return layer.ComparePaths(a.path, b.path) })
	return slices.CompactFunc(out, func(a, b *pathPair) bool { return a.path == b.path }), nil
}

// topmost reports whether what is gone was in a directory that is still one: else
// it went with that.
func (c *comparison) topmost(p string) (bool, error) {
	a, err := c.view.stat(path.Dir(p))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %q: %w", path.Dir(p), err)
	}
	return a.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// clamp gives a path that was changed the time that the layer will give it, so
// that what an earlier repack clamped or rounded is not a change.
func (c *comparison) clamp(p *pathPair) {
	switch {
	case p.old == nil || p.now == nil || p.now.attr.Mtime.Sec == p.old.attr.Mtime.Sec:
	case roundsUp(p.now, p.old):
		p.old.attr.Mtime.Sec = p.now.attr.Mtime.Sec
	default:
		p.now.attr.Mtime.Sec = layer.ClampTime(p.now.attr.Mtime.Sec, c.epoch).Unix()
	}
}

// roundsUp reports whether a time is that of the base as stock umoci's repack writes it, to
// the nearest second (archive/tar's Writer). A time of the next half second before is no
// change that a layer has room for.
func roundsUp(now, was *object) bool {
	a, b := now.attr.Mtime, was.attr.Mtime
	return b.Nsec == 0 && b.Sec == a.Sec+1 && a.Nsec >= 5e8
}

// hash takes the digests of a file's content where they decide: everything else
// but the number of links is equal.
func (c *comparison) hash(p *pathPair) error {
	if p.old == nil || p.now == nil || p.old.typ() != unix.S_IFREG || !equalButContent(p.old, p.now) || p.now.attr.Size == 0 {
		return nil
	}
	if c.same != nil {
		same, err := c.same(p.now.attr.Ino, p.old.attr.Ino)
		if err != nil {
			return fmt.Errorf("look at the content of %q: %w", p.path, err)
		}
		if same {
			return nil
		}
	}
	var err error
	if p.oldSum, err = c.digest(c.base, p.old); err != nil {
		return fmt.Errorf("base image: hash %q: %w", p.path, err)
	}
	if p.nowSum, err = c.digest(c.view, p.now); err != nil {
		return fmt.Errorf("hash %q: %w", p.path, err)
	}
	return nil
}

// equalButContent compares all that the keywords compare, except for content and
// the number of links.
func equalButContent(a, b *object) bool {
	x, y := a.attr, b.attr
	return x.Mode == y.Mode && x.UID == y.UID && x.GID == y.GID && x.Size == y.Size && x.Rdev == y.Rdev &&
		x.Mtime.Sec == y.Mtime.Sec && a.target == b.target && maps.Equal(a.xattrs, b.xattrs)
}

// digest hashes a regular file.
func (c *comparison) digest(t tree, o *object) (sum string, err error) {
	f, err := t.open(o.attr.Ino)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if c.buf == nil {
		c.buf = make([]byte, 1<<20)
	}
	h := sha256.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{io.NewSectionReader(f, 0, o.attr.Size)}, c.buf); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// changed are the pairs that differ in more than the number of a file's links.
func changed(pairs []*pathPair) iter.Seq[*pathPair] {
	return func(yield func(*pathPair) bool) {
		for _, p := range pairs {
			if p.kind != changeNone && (!p.linkOnly || p.now.isDir()) && !yield(p) {
				return
			}
		}
	}
}
