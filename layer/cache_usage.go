package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
)

// Usage is what a cache holds.
type Usage struct {
	Blobs int   // layers with an index or a table of contents
	Trees int   // merged trees
	Bytes int64 // that all files take
}

// Usage counts what the cache holds. Files that come and go meanwhile may or may
// not count.
func (c *Cache) Usage() (Usage, error) {
	var u Usage
	blobs := make(map[string]bool)
	err := fs.WalkDir(c.dir.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			err = u.add(blobs, name, d)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return Usage{}, fmt.Errorf("read cache: %w", err)
	}
	u.Blobs = len(blobs)
	return u, nil
}

func (u *Usage) add(blobs map[string]bool, name string, d fs.DirEntry) error {
	fi, err := d.Info()
	if err != nil {
		return err
	}
	u.Bytes += onDisk(fi)
	switch ext := path.Ext(name); ext {
	case ".idx", ".side", ".toc", keptExt:
		blobs[name[:len(name)-len(ext)]] = true
	case ".tree":
		u.Trees++
	}
	return nil
}
