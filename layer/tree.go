package layer

import (
	"errors"
	"iter"
	"os"
)

// Tree is a merged tree file, mapped into memory. It is immutable and safe for
// concurrent use.
type Tree struct{}

// OpenTree maps f and takes ownership of it.
func OpenTree(f *os.File) (*Tree, error) { return nil, errors.ErrUnsupported }

// Close unmaps the tree.
func (t *Tree) Close() error { return nil }

// Attr describes one inode.
func (t *Tree) Attr(ino Ino) (Attr, error) { return Attr{}, errors.ErrUnsupported }

// Lookup finds name in directory dir.
func (t *Tree) Lookup(dir Ino, name string) (Ino, error) { return 0, errors.ErrUnsupported }

// NumEntries is how many names dir holds.
func (t *Tree) NumEntries(dir Ino) (int, error) { return 0, errors.ErrUnsupported }

// Entry is the i-th name of dir.
func (t *Tree) Entry(dir Ino, i int) (Dirent, error) { return Dirent{}, errors.ErrUnsupported }

// Readlink is a symlink's target.
func (t *Tree) Readlink(ino Ino) (string, error) { return "", errors.ErrUnsupported }

// Xattrs yields the extended attributes.
func (t *Tree) Xattrs(ino Ino) iter.Seq2[string, []byte] { return func(func(string, []byte) bool) {} }

// Names yields every (parent directory, name) of an inode.
func (t *Tree) Names(ino Ino) iter.Seq2[Ino, string] { return func(func(Ino, string) bool) {} }
