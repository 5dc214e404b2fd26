package bundle

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/internal/imageconfig"
	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// AppendOptions say to which image a layer is added, and how.
type AppendOptions struct {
	Layout   string
	Tag      string          // of the image
	NewTag   string          // of the result
	Platform *ispec.Platform // see cas.ResolveOptions
	Compress string          // cas.CompressAuto and so on
	History  imageconfig.History
	CacheDir string // for what is learnt of the new layer; "" chooses
	Log      *slog.Logger
}

// AddLayer adds a plain tar as an image's next layer, as it is. What is no tar, or a
// compressed one, is layer.ErrFormat.
func AddLayer(ctx context.Context, opt AppendOptions, tarball io.Reader) error {
	in := bufio.NewReader(tarball)
	for name, magic := range map[string]string{"gzip": "\x1f\x8b", "zstd": "\x28\xb5\x2f\xfd", "xz": "\xfd7zXZ\x00", "bzip2": "BZh"} {
		if head, err := in.Peek(len(magic)); err == nil && string(head) == magic {
			return fmt.Errorf("the archive is compressed with %s: decompress it first: %w", name, layer.ErrFormat)
		}
	}
	tarball = in
	return appendLayer(ctx, &opt, "umoci raw add-layer", true, func(out io.Writer) ([]byte, error) {
		tee := io.TeeReader(tarball, out)
		toc, err := layer.ScanTOC(tee)
		if err == nil {
			_, err = io.Copy(io.Discard, tee) // what follows the end mark
		}
		return toc, err
	})
}

// InsertOptions say what an inserted layer holds. A whiteout has no source, and hides
// all that Opaque would.
type InsertOptions struct {
	AppendOptions
	Source   string // path of the host
	Target   string // path in the image that Source becomes, with all below it
	Whiteout bool   // remove Target
	Opaque   bool   // remove all that lower layers have in Target
	UIDMap   []overlay.IDRange
	GIDMap   []overlay.IDRange
	Rootless bool // owners are root's, or what user.rootlesscontainers says
}

// Insert adds a layer of files of the host, or of one whiteout. The image is not
// mounted. ErrRootTarget, ErrUnmapped.
func Insert(ctx context.Context, opt InsertOptions) (err error) {
	target := strings.TrimPrefix(path.Clean("/"+opt.Target), "/")
	if target == "" {
		target = "."
	}
	if opt.Whiteout {
		if target == "." {
			return fmt.Errorf("insert a whiteout: %w", ErrRootTarget)
		}
		return appendLayer(ctx, &opt.AppendOptions, "umoci insert", false, func(out io.Writer) ([]byte, error) {
			one := func(yield func(layer.Record, error) bool) { yield(layer.Record{Path: target, Whiteout: true}, nil) }
			return layer.WriteDiff(out, one, layer.DiffOptions{Epoch: opt.History.Epoch})
		})
	}
	abs, err := filepath.Abs(opt.Source)
	if err != nil {
		return err
	}
	dir, base := filepath.Split(abs)
	if base == "" {
		base = "."
	}
	t, err := newDirTree(dir, &mapOptions{
		UIDMappings: idMappings(opt.UIDMap), GIDMappings: idMappings(opt.GIDMap), Rootless: opt.Rootless,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	plan, err := planInsert(ctx, t, base, target)
	if err != nil {
		return err
	}
	if target == "." && !plan[0].now.isDir() {
		return fmt.Errorf("insert %s: %w", opt.Source, ErrRootTarget)
	}
	opaque := opt.Opaque && plan[0].now.isDir() // what is no directory hides all below it anyway
	return appendLayer(ctx, &opt.AppendOptions, "umoci insert", false, func(out io.Writer) ([]byte, error) {
		records := (&recordSource{view: t}).records(ctx, plan)
		if opaque {
			records = withOpaque(records, target)
		}
		return layer.WriteDiff(out, records, layer.DiffOptions{Epoch: opt.History.Epoch, Skipped: func(p string) {
			opt.Log.Warn("no layer can hold a socket: left out", "path", p)
		}})
	})
}

// planInsert lists what is at from, and below it, as entries at target.
func planInsert(ctx context.Context, t *dirTree, from, target string) ([]planned, error) {
	var plan []planned
	first := map[layer.Ino]string{}
	var walk func(from, to string) error
	walk = func(from, to string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		o, err := find(t, from)
		if err != nil {
			return err
		}
		if o == nil {
			return &os.PathError{Op: "insert", Path: filepath.Join(t.root.Name(), from), Err: unix.ENOENT}
		}
		p := planned{path: to, now: o}
		if !o.isDir() {
			p.link = first[o.attr.Ino]
			if p.link == "" {
				first[o.attr.Ino] = to
			}
		}
		plan = append(plan, p)
		if !o.isDir() {
			return nil
		}
		names, err := t.list(o.attr.Ino)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := walk(path.Join(from, name), path.Join(to, name)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := walk(from, target); err != nil {
		return nil, err
	}
	slices.SortFunc(plan, func(a, b planned) int { return layer.ComparePaths(a.path, b.path) })
	return plan, nil
}

// withOpaque marks the directory of the first record, as umoci does: before all else.
func withOpaque(records iter.Seq2[layer.Record, error], target string) iter.Seq2[layer.Record, error] {
	return func(yield func(layer.Record, error) bool) {
		if yield(layer.Record{Path: target, Opaque: true}, nil) {
			records(yield)
		}
	}
}

// appendLayer adds one layer to an image and tags the result.
func appendLayer(ctx context.Context, opt *AppendOptions, command string, author bool, write func(io.Writer) ([]byte, error)) (err error) {
	l, err := cas.Open(opt.Layout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	unpin, err := l.Pin(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unpin()) }()
	from, err := l.Resolve(ctx, opt.Tag, cas.ResolveOptions{Platform: opt.Platform})
	if err != nil {
		return err
	}
	img, err := l.Image(ctx, from)
	if err != nil {
		return fmt.Errorf("%s:%s: %w", opt.Layout, opt.Tag, err)
	}
	compress, err := img.LayerCompression(opt.Compress)
	if err != nil {
		return err
	}
	stored, err := storeLayer(ctx, l, compress, write)
	if err != nil {
		return err
	}
	by := ""
	if author {
		by = img.Config.Author
	}
	change := cas.Change{
		Layers: []cas.NewLayer{*stored.layer(img, compress)}, History: opt.History.Entry(command, by, false),
	}
	if len(change.History) == 0 {
		opt.Log.Warn("the new layer has no history entry: many tools cannot make sense of such an image")
	}
	made, err := l.Commit(ctx, img, change)
	if err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	if err := l.Tag(ctx, opt.NewTag, made); err != nil {
		return fmt.Errorf("tag image: %w", err)
	}
	stored.remember(ctx, opt.CacheDir, opt.Log)
	return nil
}
