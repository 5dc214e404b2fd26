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
// in it. A user that is not in Rootfs is ErrUser; one that is not in the image, where
// there is no Rootfs, becomes root with a warning, as with umoci.
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
	if errors.Is(err, ErrUser) && opt.Rootfs == "" {
		opt.Log.Warn("the image does not know its user: the process will be root's", "user", in.image.Config.User)
		in.image.Config.User = ""
		in.passwd = func(string) (io.ReadCloser, error) { return nil, nil }
		config, err = runtimeConfig(in)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(name, config, 0o644)
}
