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
	Rootfs   string // extracted or mounted; users are looked up in it. "": nowhere
	Rootless bool
	UIDMap   []overlay.IDRange
	GIDMap   []overlay.IDRange
}

// WriteRuntimeFile writes the config.json of an image to a file, in place of what was
// in it. A user that is not in Rootfs is ErrUser. Without a Rootfs names cannot be looked
// up: such a user becomes root with a warning, as with umoci, and there is no HOME.
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
		passwd: func(string) (io.ReadCloser, error) { return nil, nil }, //nolint:nilnil // there is no such file
	}
	if opt.Rootfs != "" {
		in.rootfs = filepath.Base(opt.Rootfs)
	}
	// One that is not there, as "" is, names no users.
	if root, rerr := os.OpenRoot(opt.Rootfs); !errors.Is(rerr, os.ErrNotExist) {
		if rerr != nil {
			return rerr
		}
		defer func() { err = errors.Join(err, root.Close()) }()
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
		opt.Log.Warn("no --rootfs to look the user up in: the process will be root's", "user", in.image.Config.User)
		in.image.Config.User = ""
		config, err = runtimeConfig(in)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(name, config, 0o644)
}
