package overlay

import (
	"iter"

	"github.com/umoci-mount/umoci-mount/layer"
)

// Ino is an inode number as the kernel sees it. A lower object's is its number
// in the tree, also after copy-up; see ino.go for the range of the others.
type Ino = layer.Ino

// Lower is the merged, immutable tree below the upper directory. Lookups return
// an error that is fs.ErrNotExist for a name that is not there. Strings and
// byte slices stay valid until the tree is closed. *layer.Image satisfies it.
type Lower interface {
	// Attr describes one inode.
	Attr(ino Ino) (layer.Attr, error)
	// Lookup finds name in directory dir.
	Lookup(dir Ino, name string) (Ino, error)
	// NumEntries is how many names dir holds, "." and ".." not among them.
	NumEntries(dir Ino) (int, error)
	// Entry is the i-th name of dir, sorted by bytes, 0 ≤ i < NumEntries.
	Entry(dir Ino, i int) (layer.Dirent, error)
	// Readlink is a symlink's target.
	Readlink(ino Ino) (string, error)
	// Xattrs yields the extended attributes, sorted by name.
	Xattrs(ino Ino) iter.Seq2[string, []byte]
	// Names yields every (parent directory, name) of an inode; a directory has
	// one, the root none.
	Names(ino Ino) iter.Seq2[Ino, string]
	// Open gives a regular file's content.
	Open(ino Ino) (layer.File, error)
}
