package bundle

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/extract"
	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// ExtractOptions of Extract and ExtractRootfs.
type ExtractOptions struct {
	Image ImageOptions
	// Dest is the bundle, or the root file system's directory.
	Dest           string
	UIDMap, GIDMap []overlay.IDRange
	Rootless       bool // umoci's --rootless: all files are the caller's
}

// ExtractResult says what was extracted.
type ExtractResult struct {
	Rootfs  string
	Image   ispec.Descriptor
	Entries int
}

// extractSpanCache is the memory for decoded content, in bytes: room for the two spans,
// of 4 MiB at most, that each goroutine is at the border of, so that none is decoded
// twice.
func extractSpanCache() int64 { return int64(extract.DefaultWorkers()) * 8 << 20 }

// mapOptions are the mappings as umoci.json records them: --rootless without any
// makes the caller the image's root.
func (o *ExtractOptions) mapOptions() mapOptions {
	m := mapOptions{UIDMappings: idMappings(o.UIDMap), GIDMappings: idMappings(o.GIDMap), Rootless: o.Rootless}
	if o.Rootless {
		m.fillRootless()
	}
	return m
}

// tree writes the image's tree.
func (o *ExtractOptions) tree(ctx context.Context, im *Image, dest string, record bool) (*extract.Result, error) {
	res, err := extract.Tree(ctx, im.Image, dest, extract.Options{
		UIDs: extractRanges(o.UIDMap), GIDs: extractRanges(o.GIDMap), Rootless: o.Rootless,
		Record: record, Log: o.Image.Log,
	})
	if errors.Is(err, extract.ErrUnmapped) {
		err = fmt.Errorf("%w: %w", ErrUnmapped, err)
	}
	return res, err
}

func extractRanges(list []overlay.IDRange) []extract.IDRange {
	var out []extract.IDRange
	for _, r := range list {
		out = append(out, extract.IDRange{Container: r.Image, Host: r.Host, Size: r.Size})
	}
	return out
}

// ExtractRootfs writes an image's tree into a directory, and nothing else. One that
// is there is kept with what the image does not have. When it fails, what it made is
// gone.
func ExtractRootfs(ctx context.Context, opt ExtractOptions) (res *ExtractResult, err error) {
	dest, err := filepath.Abs(opt.Dest)
	if err != nil {
		return nil, fmt.Errorf("extract: %w", err)
	}
	opt.Image.SpanCache = extractSpanCache()
	im, err := OpenImage(ctx, opt.Image)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	parent := firstMissing(filepath.Dir(dest))
	if err := os.MkdirAll(filepath.Dir(dest), 0o755); err != nil {
		return nil, fmt.Errorf("extract: %w", err)
	}
	made, err := opt.tree(ctx, im, dest, false)
	if err != nil {
		return nil, errors.Join(err, removeEmpty(filepath.Dir(dest), parent))
	}
	return &ExtractResult{Rootfs: dest, Image: im.Path.Descriptor(), Entries: made.Entries}, nil
}

// extracting is one Extract under way.
type extracting struct {
	opt    ExtractOptions
	dir    string      // the bundle's path
	bundle *dir        // nil: not open
	before os.FileInfo // of the bundle's directory; nil: it was not there
	parent string      // the topmost directory made above it; "": none
	wrote  []string    // files in the bundle
}

// Extract makes a bundle as umoci does: the image's tree in rootfs, config.json,
// umoci.json, and an mtree manifest of what is on the disk. Both this program's and
// stock umoci's repack take it. When it fails, what it made is gone.
func Extract(ctx context.Context, opt ExtractOptions) (res *ExtractResult, err error) {
	x := &extracting{opt: opt}
	if x.dir, err = filepath.Abs(opt.Dest); err != nil {
		return nil, fmt.Errorf("open bundle: %w", err)
	}
	if err := x.checkFree(); err != nil {
		return nil, err
	}
	x.opt.Image.SpanCache = extractSpanCache()
	im, err := OpenImage(ctx, x.opt.Image)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	meta := &umociMeta{From: walkPath{im.Path.Walk}, MapOptions: opt.mapOptions()}
	config, err := runtimeConfig(runtimeInput{ // before all else: it finds an unknown user
		image: im.Manifest.Config, rootfs: rootfsName, rootless: opt.Rootless,
		uids: meta.MapOptions.UIDMappings, gids: meta.MapOptions.GIDMappings,
		passwd: func(name string) (io.ReadCloser, error) { return openInImage(im.Image, name) },
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if x.bundle == nil {
			return // what is there is another's
		}
		if err != nil {
			err = errors.Join(err, x.undo())
		}
		err = errors.Join(err, x.bundle.close())
	}()
	if err := x.makeDir(); err != nil {
		return nil, err
	}
	made, err := x.opt.tree(ctx, im, filepath.Join(x.dir, rootfsName), true)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, extract.Remove(x.dir, rootfsName))
		}
	}()
	if err := x.write(configName, config); err != nil {
		return nil, err
	}
	if err := x.writeMtree(im, made); err != nil {
		return nil, err
	}
	data, err := meta.encode()
	if err != nil {
		return nil, err
	}
	// Last: a bundle that has it is whole.
	if err := x.write(umociName, data); err != nil {
		return nil, err
	}
	// For a repack, which compares with it.
	if err := keepFor(ctx, im.layout, x.dir, im.Path.Descriptor()); err != nil {
		return nil, err
	}
	return &ExtractResult{
		Rootfs: filepath.Join(x.dir, rootfsName), Image: im.Path.Descriptor(), Entries: made.Entries,
	}, ctx.Err()
}

// checkFree refuses a directory that holds a bundle, or part of one.
func (x *extracting) checkFree() error {
	info, err := os.Stat(x.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("open bundle: %w", err)
	case !info.IsDir():
		return fmt.Errorf("%s %w, and is no directory", x.dir, ErrExists)
	}
	x.before = info
	for _, name := range []string{configName, rootfsName, umociName, stateDir, ispec.ImageLayoutFile} {
		if name = filepath.Join(x.dir, name); fileExists(name) {
			return fmt.Errorf("%s %w", name, ErrExists)
		}
	}
	return nil
}

// makeDir makes the bundle's directory, where it is missing, and locks it. ErrInUse.
func (x *extracting) makeDir() error {
	parent := firstMissing(filepath.Dir(x.dir))
	if err := os.MkdirAll(x.dir, 0o700); err != nil {
		return errors.Join(fmt.Errorf("create bundle: %w", err), removeEmpty(filepath.Dir(x.dir), parent))
	}
	d, err := lockPlain(x.dir)
	if err != nil {
		return err
	}
	x.bundle, x.parent = d, parent
	if d.top.exists(rootfsName) { // since checkFree
		return fmt.Errorf("%s %w", d.file(rootfsName), ErrExists)
	}
	if err := d.top.fd.Chmod(0o700); err != nil {
		return fmt.Errorf("create bundle: %w", err)
	}
	return nil
}

// undo removes the files that were written, and the directories that were made.
func (x *extracting) undo() error {
	var errs []error
	for _, name := range x.wrote {
		if err := x.bundle.top.remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if x.before != nil {
		return errors.Join(append(errs, x.bundle.top.fd.Chmod(x.before.Mode().Perm()))...)
	}
	return errors.Join(append(errs, removeEmpty(x.dir, cmp.Or(x.parent, x.dir)))...)
}

// write makes a file of the bundle. It is not fsynced: nor is the tree, of which
// there is a copy in the layout.
func (x *extracting) write(name string, data []byte) error {
	x.wrote = append(x.wrote, name)
	f, err := x.bundle.top.file(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

// writeMtree writes the manifest of what is on the disk.
func (x *extracting) writeMtree(im *Image, made *extract.Result) error {
	t := newMtreeTree(im.Image)
	for i := range made.Objects {
		if o := &made.Objects[i]; o.Mode&unix.S_IFMT == unix.S_IFREG {
			t.digests[layer.RootIno+layer.Ino(i)] = hex.EncodeToString(o.Sum[:])
		}
	}
	t.attr = func(ino layer.Ino) (layer.Attr, error) {
		o := &made.Objects[ino-layer.RootIno]
		return layer.Attr{
			Ino: ino, Mode: o.Mode, UID: o.UID, GID: o.GID, Nlink: o.Nlink, Size: o.Size, Mtime: o.Mtime,
		}, nil
	}
	t.xattrs = func(ino layer.Ino) (map[string]string, error) {
		return walkedXattrs(made.Objects[ino-layer.RootIno].Xattrs), nil
	}
	name := mtreeName(im.Path.Descriptor().Digest)
	x.wrote = append(x.wrote, name)
	return x.bundle.top.writeMtree(name, t)
}

// walkedBuffer is what go-mtree reads a list of extended attributes into, and each
// value, in bytes.
const walkedBuffer = 1024

// walkedXattrs are the attributes that a go-mtree walk of the tree will find: none
// of a file where one value, or the list of their names, is too long for it.
func walkedXattrs(xattrs map[string]string) map[string]string {
	list := 0
	for name, value := range xattrs {
		list += len(name) + 1
		if len(value) > walkedBuffer {
			return nil
		}
	}
	if list > walkedBuffer {
		return nil
	}
	return xattrs
}
