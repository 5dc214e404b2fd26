package bundle

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// RuntimeFileOptions of WriteRuntimeFile.
type RuntimeFileOptions struct {
	ImageOptions
	Rootfs   string // extracted or mounted; users are looked up in it. "": in the image
	Rootless bool
	UIDMap   []overlay.IDRange
	GIDMap   []overlay.IDRange
}

// WriteRuntimeFile writes the config.json of an image to a file, in place of what was
// in it. ErrUser where the image's user is not known.
func WriteRuntimeFile(ctx context.Context, name string, opt RuntimeFileOptions) (err error) {
	im, err := OpenImage(ctx, opt.ImageOptions)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	maps := mapOptions{UIDMappings: idMappings(opt.UIDMap), GIDMappings: idMappings(opt.GIDMap)}
	if opt.Rootless {
		maps.fillRootless()
	}
	in := runtimeInput{
		image: im.Manifest.Config, rootfs: ".", rootless: opt.Rootless, uids: maps.UIDMappings, gids: maps.GIDMappings,
		passwd: func(name string) (io.ReadCloser, error) { return openInImage(im.Image, name) },
	}
	if opt.Rootfs != "" {
		root, err := os.OpenRoot(opt.Rootfs)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, root.Close()) }()
		in.rootfs = filepath.Base(opt.Rootfs)
		in.passwd = func(name string) (io.ReadCloser, error) {
			f, err := root.Open(name)
			if errors.Is(err, os.ErrNotExist) {
				return nil, nil //nolint:nilnil // no such file, as openInImage says it
			}
			return f, err
		}
	}
	config, err := runtimeConfig(in)
	if err != nil {
		return err
	}
	return os.WriteFile(name, config, 0o644)
}
