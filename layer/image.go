package layer

import (
	"errors"
	"os"
)

// Image is a merged tree together with the layers that hold its files' content:
// all that is read of an image. It is safe for concurrent use; Close ends the
// life of all that its methods returned.
type Image struct {
	*Tree
	layers []*lazyBlob // by layer number; a layer listed twice stands here twice
	held   []*os.File  // the layers' indexes: see Cache.hold
}

// Close releases the tree and the layers. No File of the image may be in use.
func (im *Image) Close() error {
	var errs []error
	for _, b := range im.layers {
		errs = append(errs, b.close())
	}
	for _, f := range im.held {
		errs = append(errs, f.Close())
	}
	im.held = nil
	return errors.Join(append(errs, im.Tree.Close())...)
}

// Open gives a regular file's content; ErrType for anything else. It opens
// nothing: a layer's index is read at the first read of a file in it.
func (im *Image) Open(ino Ino) (File, error) {
	c, err := im.content(ino)
	if err != nil {
		return nil, err
	}
	switch {
	case c.layer >= len(im.layers) && (c.inline || len(c.extents) > 0):
		return nil, ErrCorrupt
	case c.inline:
		return &runFile{blob: im.layers[c.layer], pos: c.pos, size: c.size}, nil
	case len(c.extents) == 0:
		return zeroFile(c.size), nil
	}
	return &holedFile{blob: im.layers[c.layer], content: c}, nil
}
