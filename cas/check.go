package cas

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Problem is one thing that is wrong with a layout.
type Problem struct {
	Digest digest.Digest // of the blob concerned; "": index.json itself
	Err    error         // of the kinds of this package
	// Harmless says that the layout can be used all the same: an artifact's blob
	// that is elsewhere by design, a name that is no digest.
	Harmless bool
}

// Graph is what index.json leads to.
type Graph struct {
	Tags     []string                   // names in index.json, sorted, each once
	Images   []GraphImage               // manifests of images that could be read, each once
	Blobs    map[digest.Digest][]string // all that is referred to, with the tags that lead there
	Problems []Problem
}

// GraphImage is one image.
type GraphImage struct {
	Manifest digest.Digest
	Layers   []ispec.Descriptor // bottom first
	DiffIDs  []digest.Digest    // as many
}

// Check follows every reference of the layout, reads every document that is reached,
// and sees that it is what its descriptors say: digest, size, media type, fields.
// Of other blobs it looks at the size. What is wrong is in the result; an error is
// only what keeps it from looking. ErrNotLayout, ErrMalformed and so on: of
// index.json.
func (l *Layout) Check(ctx context.Context) (*Graph, error) {
	ix, err := l.Index(ctx)
	if err != nil {
		return nil, err
	}
	c := checker{
		l: l, g: &Graph{Blobs: map[digest.Digest][]string{}}, left: maxCheckSteps,
		nodes: map[checkKey]*checkNode{}, told: map[string]bool{}, images: map[digest.Digest]bool{},
	}
	// Sorted, so that the entries of one name follow each other.
	slices.SortStableFunc(ix.Entries, func(a, b Entry) int { return strings.Compare(a.RefName(), b.RefName()) })
	for _, e := range ix.Entries {
		name := e.RefName()
		if name != "" {
			if err := CheckTag(name); err != nil {
				c.problem(Problem{Err: err, Harmless: true})
			}
			c.g.Tags = append(c.g.Tags, name)
		}
		if err := c.reach(ctx, e.Descriptor, name, 0, map[checkKey]bool{}); err != nil {
			return nil, err
		}
	}
	slices.Sort(c.g.Tags)
	c.g.Tags = slices.Compact(c.g.Tags)
	return c.g, nil
}

// checker is one Check under way.
type checker struct {
	l      *Layout
	g      *Graph
	left   int // references that may still be followed
	nodes  map[checkKey]*checkNode
	told   map[string]bool // problems by their text
	images map[digest.Digest]bool
}

// maxCheckSteps bounds the references that are followed: each entry of index.json is
// followed by itself, so a few large documents could make more of them than there is
// time.
const maxCheckSteps = 1 << 22

// checkKey is how a blob is referred to: the same one can be read as several things.
type checkKey struct {
	digest    digest.Digest
	mediaType string
	size      int64
	embedded  bool
}

// checkNode is what a descriptor leads on to.
type checkNode struct{ children []ispec.Descriptor }

func (c *checker) problem(p Problem) {
	key := fmt.Sprint(p.Digest, p.Err)
	if !c.told[key] {
		c.told[key] = true
		c.g.Problems = append(c.g.Problems, p)
	}
}

// reach goes through all that a descriptor leads to. seen are those reached from the
// same entry.
func (c *checker) reach(ctx context.Context, d ispec.Descriptor, tag string, depth int, seen map[checkKey]bool) error {
	key := checkKey{d.Digest, d.MediaType, d.Size, d.Data != nil}
	if seen[key] {
		return nil
	}
	seen[key] = true
	if c.left--; c.left < 0 {
		c.problem(Problem{Err: fmt.Errorf("it leads to more than %d references: %w", maxCheckSteps, ErrMalformed)})
		return nil
	}
	if depth > maxIndexDepth {
		c.problem(Problem{Digest: d.Digest, Err: fmt.Errorf("it is nested too deep: %w", ErrMalformed)})
		return nil
	}
	if tags := c.g.Blobs[d.Digest]; tag == "" && tags == nil {
		c.g.Blobs[d.Digest] = []string{}
	} else if tag != "" && (len(tags) == 0 || tags[len(tags)-1] != tag) {
		c.g.Blobs[d.Digest] = append(tags, tag)
	}
	n := c.nodes[key]
	if n == nil {
		n = &checkNode{}
		c.nodes[key] = n
		if err := c.look(ctx, d, n); err != nil {
			return err
		}
	}
	for _, child := range n.children {
		if err := c.reach(ctx, child, tag, depth+1, seen); err != nil {
			return err
		}
	}
	return nil
}

// look checks what a descriptor is of, and finds what it leads to.
func (c *checker) look(ctx context.Context, d ispec.Descriptor, n *checkNode) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	document := isIndexType(d.MediaType) || isManifestType(d.MediaType) || d.MediaType == artifactManifest
	if !document {
		c.stat(d)
		return nil
	}
	data, err := c.l.ReadBlob(ctx, d)
	if err != nil {
		c.problem(Problem{Digest: d.Digest, Err: err})
		return nil
	}
	switch {
	case isIndexType(d.MediaType):
		_, err = parseIndex(data, d.MediaType)
	case isManifestType(d.MediaType):
		err = c.image(ctx, d)
	}
	m := marker{l: c.l}
	if ferr := m.follow(data); err == nil {
		err = ferr
	}
	if err != nil {
		c.problem(Problem{Digest: d.Digest, Err: err})
	}
	n.children = m.work
	return nil
}

// image reads a manifest as an image's. One of an artifact, whose config is of
// another type, has no layers that are file systems, and is no problem.
func (c *checker) image(ctx context.Context, d ispec.Descriptor) error {
	img, err := c.l.Image(ctx, &Path{Walk: []ispec.Descriptor{d}})
	if errors.Is(err, ErrMediaType) {
		return nil
	}
	if errors.Is(err, ErrBlobNotFound) || errors.Is(err, ErrDigest) {
		return nil // the config's: it is a child, and told of as such
	}
	if err != nil {
		return err
	}
	if !c.images[d.Digest] {
		c.images[d.Digest] = true
		c.g.Images = append(c.g.Images, GraphImage{d.Digest, img.Manifest.Layers, img.Config.RootFS.DiffIDs})
	}
	return nil
}

// stat sees that a blob is there and as long as its descriptor says.
func (c *checker) stat(d ispec.Descriptor) {
	if d.Data != nil {
		if got := int64(len(d.Data)); got != d.Size || d.Digest.Validate() != nil || d.Digest.Algorithm().FromBytes(d.Data) != d.Digest {
			c.problem(Problem{Digest: d.Digest, Err: fmt.Errorf("the data in its descriptor is not the blob's: %w", ErrDigest)})
		}
		return
	}
	name, err := blobName(d.Digest)
	if err != nil {
		c.problem(Problem{Digest: d.Digest, Err: err})
		return
	}
	root, rest := c.l.at(name)
	info, err := root.Stat(rest)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// Layers with URLs are not to be distributed (image-spec, layer.md).
		c.problem(Problem{Digest: d.Digest, Err: ErrBlobNotFound, Harmless: len(d.URLs) > 0})
	case err != nil:
		c.problem(Problem{Digest: d.Digest, Err: err})
	case !info.Mode().IsRegular():
		c.problem(Problem{Digest: d.Digest, Err: fmt.Errorf("it is no regular file: %w", ErrMalformed)})
	case info.Size() != d.Size:
		c.problem(Problem{Digest: d.Digest, Err: fmt.Errorf("it has %d bytes, a descriptor says %d: %w", info.Size(), d.Size, ErrDigest)})
	}
}

// StoredBlob is a file below blobs/.
type StoredBlob struct {
	Digest digest.Digest // "": the name is no digest
	Name   string        // relative to the layout
	Size   int64
}

// Blobs lists the files below blobs/.
func (l *Layout) Blobs(ctx context.Context) ([]StoredBlob, error) {
	root, dir := l.at(ispec.ImageBlobsDir)
	own, err := fs.Sub(root.FS(), dir)
	if err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	out, err := listBlobs(ctx, own, ispec.ImageBlobsDir)
	for _, d := range l.linked {
		if err != nil || d.name == ispec.ImageBlobsDir {
			break
		}
		var more []StoredBlob
		more, err = listBlobs(ctx, d.root.FS(), d.name)
		out = append(slices.DeleteFunc(out, func(b StoredBlob) bool { return b.Name == d.name }), more...)
	}
	if err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	return out, nil
}

// listBlobs lists the files of a directory that has a name in the layout.
func listBlobs(ctx context.Context, fsys fs.FS, dir string) (out []StoredBlob, err error) {
	err = fs.WalkDir(fsys, ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		b := StoredBlob{Name: path.Join(dir, name), Size: info.Size()}
		d := digest.NewDigestFromEncoded(digest.Algorithm(path.Base(path.Dir(b.Name))), path.Base(b.Name))
		if own, err := blobName(d); err == nil && own == b.Name {
			b.Digest = d
		}
		out = append(out, b)
		return nil
	})
	return out, err
}

// VerifyBlob reads a whole blob and compares it with its digest. ErrDigest,
// ErrBlobNotFound, ErrMalformed.
func (l *Layout) VerifyBlob(ctx context.Context, d digest.Digest) (err error) {
	f, err := l.Blob(ctx, d)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := d.Algorithm().Hash()
	if _, err := io.Copy(h, contextReader{ctx, f}); err != nil {
		return fmt.Errorf("read blob %s: %w", d, err)
	}
	if got := digest.NewDigest(d.Algorithm(), h); got != d {
		return fmt.Errorf("%w: the stored bytes have %s", ErrDigest, got)
	}
	return nil
}

// contextReader is a file that cannot be read once a context has ended.
type contextReader struct {
	ctx context.Context
	f   *os.File
}

// Read reads from the file.
func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.f.Read(p)
}
