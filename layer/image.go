package layer

import "errors"

// Image is a merged tree together with the layers that hold its files' content.
type Image struct{ *Tree }

// Close releases the tree and the layers.
func (im *Image) Close() error { return nil }

// Open gives a regular file's content.
func (im *Image) Open(ino Ino) (File, error) { return nil, errors.ErrUnsupported }

// LookupPath finds the inode at path ("a/b"; "." is the root). No symlink is followed.
func (im *Image) LookupPath(path string) (Ino, error) { return 0, errors.ErrUnsupported }

// PathOf is the path of an inode's first name; "." for the root.
func (im *Image) PathOf(ino Ino) (string, error) { return "", errors.ErrUnsupported }
