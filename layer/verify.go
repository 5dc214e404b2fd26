package layer

import (
	"context"
	"errors"
	"io"
	"os"
)

// Verify reads a layer's stored bytes from first to last and sees that they are what
// its descriptor says: size, digest, compression, diffID, and a tar stream that can be
// scanned. It keeps nothing. Errors as of Cache.Open. progress may be nil; it is told
// of stored bytes, from one goroutine.
func Verify(ctx context.Context, src Source, progress func(bytes int64)) (err error) {
	f, err := src.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// A layer that cannot be read at random is transcoded as it is indexed: to nowhere.
	var null *os.File
	side := func() (_ *os.File, err error) {
		null, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		return null, err
	}
	defer func() {
		if null != nil {
			err = errors.Join(err, null.Close())
		}
	}()
	shared := newSharedWork(1, 1)
	defer shared.close()
	scan := func(r io.Reader) error {
		_, err := scanTar(r)
		return err
	}
	_, err = indexBlob(ctx, f, src, passOptions{side: side, scan: scan, progress: progress, shared: shared})
	return err
}
