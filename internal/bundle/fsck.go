package bundle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/layer"
)

// ErrDamaged: a layout is not what it says.
var ErrDamaged = errors.New("the image layout is damaged")

// FsckOptions of Fsck.
type FsckOptions struct {
	Layout   string
	Progress layer.Progress // of layers; may be nil
	Log      *slog.Logger
}

// FsckProblem is one thing that Fsck found.
type FsckProblem struct {
	Kind    string   `json:"kind"`             // see fsckKinds
	Digest  string   `json:"digest,omitempty"` // of the blob; none: index.json
	Tags    []string `json:"tags"`             // that need the blob; none: nothing refers to it, or an entry without a name
	Warning bool     `json:"warning"`          // the images can be used all the same
	Message string   `json:"message"`
}

// FsckResult is what Fsck looked at, and what it found.
type FsckResult struct {
	Layout       string        `json:"layout"`
	Tags         int           `json:"tags"`
	Images       int           `json:"images"`
	Blobs        int           `json:"blobs"`
	Bytes        int64         `json:"bytes"`
	Unreferenced int           `json:"unreferenced_blobs"` // gc removes them
	UnrefBytes   int64         `json:"unreferenced_bytes"`
	Problems     []FsckProblem `json:"problems"`
}

// Damaged reports whether anything is worse than a warning.
func (r *FsckResult) Damaged() int {
	n := 0
	for i := range r.Problems {
		if !r.Problems[i].Warning {
			n++
		}
	}
	return n
}

// fsckKinds name errors, the first that fits.
var fsckKinds = []struct {
	err  error
	kind string
}{
	{layer.ErrDiffID, "diffid"},       // a layer is not the one that the config names
	{layer.ErrUnsupported, "unknown"}, // a layer of a type that cannot be read here
	{layer.ErrDigest, "digest"},       // stored bytes have another digest or size
	{cas.ErrDigest, "digest"},
	{layer.ErrFormat, "layer"},       // a layer's compression or tar stream is garbled
	{cas.ErrBlobNotFound, "missing"}, // a reference leads to nothing
	{cas.ErrBadTag, "tag"},           // a name that the grammar does not allow
	{cas.ErrTooLarge, "document"},    // a document that cannot be read
	{cas.ErrMalformed, "document"},
	{cas.ErrMediaType, "document"},
	{errStray, "stray"}, // a file below blobs/ that is no blob
}

// errStray: a file's name is not its digest.
var errStray = errors.New("the name is no digest")

func kindName(err error) string {
	for _, k := range fsckKinds {
		if errors.Is(err, k.err) {
			return k.kind
		}
	}
	return "read" // the file system's own error
}

// Fsck reads everything in a layout: every reference, every document, and every blob
// whole; layers are decompressed and their tar streams scanned. It changes nothing.
// What is wrong is in the result; an error is what kept it from looking.
func Fsck(ctx context.Context, opt FsckOptions) (res *FsckResult, err error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	l, err := cas.Open(opt.Layout)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	unpin, err := l.Pin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unpin()) }()
	f := &fsck{opt: opt, layout: l, res: &FsckResult{Layout: l.Path(), Problems: []FsckProblem{}}}
	if f.graph, err = l.Check(ctx); err != nil {
		if !errors.Is(err, cas.ErrMalformed) && !errors.Is(err, cas.ErrTooLarge) {
			return nil, err
		}
		f.graph = &cas.Graph{}
		f.found("", err, false)
	}
	for _, p := range f.graph.Problems {
		f.found(p.Digest, p.Err, p.Harmless)
	}
	f.res.Tags, f.res.Images = len(f.graph.Tags), len(f.graph.Images)
	if err := f.blobs(ctx); err != nil {
		return nil, err
	}
	slices.SortStableFunc(f.res.Problems, func(a, b FsckProblem) int {
		return cmp.Or(cmp.Compare(a.Digest, b.Digest), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Message, b.Message))
	})
	f.res.Problems = slices.CompactFunc(f.res.Problems, func(a, b FsckProblem) bool {
		return a.Digest == b.Digest && a.Kind == b.Kind && a.Kind != "document"
	})
	return f.res, nil
}

// fsck is one Fsck under way.
type fsck struct {
	opt    FsckOptions
	layout *cas.Layout
	graph  *cas.Graph

	mu  sync.Mutex
	res *FsckResult // protected by mu while blobs runs
}

func (f *fsck) found(d digest.Digest, err error, warning bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := FsckProblem{Kind: kindName(err), Digest: d.String(), Tags: []string{}, Warning: warning, Message: err.Error()}
	p.Tags = append(p.Tags, f.graph.Blobs[d]...)
	if p.Kind == "unknown" || p.Kind == "stray" {
		p.Warning = true
	}
	f.res.Problems = append(f.res.Problems, p)
}

// layerUse is a layer as an image describes it.
type layerUse struct {
	digest, diffID digest.Digest
	mediaType      string
}

// blobs reads all that is stored, the largest first.
func (f *fsck) blobs(ctx context.Context) error {
	stored, err := f.layout.Blobs(ctx)
	if err != nil {
		return err
	}
	uses := f.layers()
	slices.SortStableFunc(stored, func(a, b cas.StoredBlob) int { return cmp.Compare(b.Size, a.Size) })
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, b := range stored {
		if b.Digest == "" {
			f.found("", fmt.Errorf("%s: %w", b.Name, errStray), true)
			continue
		}
		f.res.Blobs++
		f.res.Bytes += b.Size
		if _, used := f.graph.Blobs[b.Digest]; !used {
			f.res.Unreferenced++
			f.res.UnrefBytes += b.Size
		}
		group.Go(func() error {
			f.blob(ctx, b, uses[b.Digest])
			return ctx.Err()
		})
	}
	return group.Wait()
}

// layers are the ways in which images use blobs as layers, by digest.
func (f *fsck) layers() map[digest.Digest][]layerUse {
	out := map[digest.Digest][]layerUse{}
	for _, img := range f.graph.Images {
		for i, d := range img.Layers {
			use := layerUse{d.Digest, img.DiffIDs[i], d.MediaType}
			if !slices.Contains(out[d.Digest], use) {
				out[d.Digest] = append(out[d.Digest], use)
			}
		}
	}
	return out
}

// blob reads one blob: as a layer, in each way it is used, or as it is.
func (f *fsck) blob(ctx context.Context, b cas.StoredBlob, uses []layerUse) {
	read := false
	for _, use := range uses {
		src := layer.Source{
			Digest: use.digest, DiffID: use.diffID, Size: b.Size, MediaType: use.mediaType,
			Open: func() (*os.File, error) { return f.layout.Blob(ctx, use.digest) },
		}
		err := layer.Verify(ctx, src, func(n int64) {
			if f.opt.Progress != nil {
				f.opt.Progress(src, n)
			}
		})
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			f.found(b.Digest, err, false)
		}
		read = read || !errors.Is(err, layer.ErrUnsupported)
	}
	if read {
		return
	}
	if err := f.layout.VerifyBlob(ctx, b.Digest); err != nil && ctx.Err() == nil {
		f.found(b.Digest, err, false)
	}
}
