package layer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
)

// treeKey is what a tree is found by: all that its bytes depend on. Both digests
// of a layer count, since a tree that exists for a pair is the proof that the
// blob was checked against the diffID.
func treeKey(layers []Source, keepDirlinks bool) [sha256.Size]byte {
	h := sha256.New()
	// Writing to a hash gives no error.
	_, _ = fmt.Fprintf(h, "umoci-mount tree %d\nkeep-dirlinks %t\n", treeVersion, keepDirlinks)
	for _, l := range layers {
		_, _ = fmt.Fprintf(h, "%s %s\n", l.Digest, l.DiffID)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func treePath(key [sha256.Size]byte) string {
	return path.Join("trees", hex.EncodeToString(key[:])+".tree")
}

// openTree opens the tree of that key if the cache has it.
func (c *Cache) openTree(key [sha256.Size]byte) (*Tree, error) {
	f, _, err := c.open(treePath(key))
	if err != nil {
		return nil, err
	}
	t, err := OpenTree(f)
	if err != nil {
		return nil, err
	}
	if t.key() != key {
		return nil, errors.Join(fmt.Errorf("%w: tree of another image", ErrCorrupt), t.Close())
	}
	return t, nil
}

// makeTree merges layers that are all indexed, and opens the result.
func (c *Cache) makeTree(ctx context.Context, key [sha256.Size]byte, layers []Source, keepDirlinks bool) (_ *Tree, err error) {
	unlock, err := c.lock(ctx, "tree-"+hex.EncodeToString(key[:]))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	t, err := c.openTree(key) // another process may have made it
	if err == nil || !c.missing(treePath(key), err) {
		return t, err
	}
	m := newMerger(keepDirlinks)
	for _, src := range layers {
		if err := c.withTOC(src, func(t *toc) error { return m.apply(ctx, src.Digest.String(), t) }); err != nil {
			return nil, fmt.Errorf("merge layers: %w", err)
		}
	}
	if err := c.write(treePath(key), func(f *os.File) error { return encodeTree(m, f, key, len(layers)) }); err != nil {
		return nil, err
	}
	return c.openTree(key)
}
