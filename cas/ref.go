package cas

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// tagGrammar is image-spec's grammar of org.opencontainers.image.ref.name
// (annotations.md).
var tagGrammar = regexp.MustCompile(`^[A-Za-z0-9]+(([-._:@+]|--)[A-Za-z0-9]+)*(/[A-Za-z0-9]+(([-._:@+]|--)[A-Za-z0-9]+)*)*$`)

// CheckTag reports ErrBadTag for a name the grammar does not allow.
func CheckTag(tag string) error {
	if !tagGrammar.MatchString(tag) {
		return fmt.Errorf("%w: %q", ErrBadTag, tag)
	}
	return nil
}

// DefaultTag is meant where an image is named without one.
const DefaultTag = "latest"

// ParseImage splits "path[:tag]" at the first colon, as umoci does: a layout's path
// cannot contain one.
func ParseImage(s string) (path, tag string, err error) {
	path, tag, found := strings.Cut(s, ":")
	if !found {
		tag = DefaultTag
	}
	if path == "" {
		return "", "", errors.New("image path is empty: want PATH[:TAG]")
	}
	return path, tag, CheckTag(tag)
}

// ResolveOptions chooses between several manifests of one reference.
type ResolveOptions struct {
	// Platform to choose where a reference leads to several manifests; nil is the
	// machine's own.
	Platform *ispec.Platform
}

// Path leads from an entry of index.json through nested indexes to a manifest.
type Path struct {
	Walk []ispec.Descriptor
}

// Root is the entry of index.json.
func (p *Path) Root() ispec.Descriptor { return p.Walk[0] }

// Descriptor is the manifest's.
func (p *Path) Descriptor() ispec.Descriptor { return p.Walk[len(p.Walk)-1] }

// maxIndexDepth bounds nested indexes. The specification sets no bound; no tool is
// known to nest more than two.
const maxIndexDepth = 16

// Resolve finds the manifest of a reference. *TagError.
func (l *Layout) Resolve(ctx context.Context, tag string, opt ResolveOptions) (*Path, error) {
	ix, err := l.Index(ctx)
	if err != nil {
		return nil, err
	}
	var paths []*Path
	for _, e := range ix.Entries {
		if e.RefName() != tag {
			continue
		}
		found, err := l.manifestsBelow(ctx, []ispec.Descriptor{e.Descriptor}, map[digest.Digest]bool{})
		if err != nil {
			return nil, err
		}
		paths = append(paths, found...)
	}
	paths = slices.CompactFunc(paths, func(a, b *Path) bool { return a.Descriptor().Digest == b.Descriptor().Digest })
	if len(paths) == 0 {
		return nil, &TagError{Tag: tag, Err: ErrTagNotFound, Near: nearTags(ix, tag)}
	}
	if len(paths) == 1 && opt.Platform == nil {
		return paths[0], nil
	}
	return choosePlatform(tag, paths, opt.Platform)
}

// manifestsBelow walks an index depth-first.
func (l *Layout) manifestsBelow(ctx context.Context, walk []ispec.Descriptor, seen map[digest.Digest]bool) ([]*Path, error) {
	desc := walk[len(walk)-1]
	if !isIndexType(desc.MediaType) {
		return []*Path{{Walk: slices.Clone(walk)}}, nil
	}
	if seen[desc.Digest] || len(walk) > maxIndexDepth {
		return nil, fmt.Errorf("index %s is nested in itself or too deep: %w", desc.Digest, ErrMalformed)
	}
	seen[desc.Digest] = true
	defer delete(seen, desc.Digest)
	data, err := l.ReadBlob(ctx, desc)
	if err != nil {
		return nil, err
	}
	ix, err := parseIndex(data)
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", desc.Digest, err)
	}
	var out []*Path
	for _, e := range ix.Entries {
		found, err := l.manifestsBelow(ctx, append(walk, e.Descriptor), seen)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

func choosePlatform(tag string, paths []*Path, want *ispec.Platform) (*Path, error) {
	p := ispec.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
	if want != nil {
		p = *want
	}
	var fit []*Path
	var all []ispec.Descriptor
	for _, path := range paths {
		d := path.Descriptor()
		all = append(all, d)
		have := d.Platform
		if have == nil && want == nil || have != nil && have.OS == p.OS && have.Architecture == p.Architecture &&
			(p.Variant == "" || have.Variant == p.Variant) {
			fit = append(fit, path)
		}
	}
	if len(fit) == 1 {
		return fit[0], nil
	}
	if len(fit) == 0 && len(paths) == 1 && paths[0].Descriptor().Platform == nil {
		return paths[0], nil // it says nothing of its platform, and there is no other
	}
	return nil, &TagError{Tag: tag, Err: ErrAmbiguous, Candidates: all}
}

// ParsePlatform reads "os/architecture[/variant]".
func ParsePlatform(s string) (*ispec.Platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return nil, fmt.Errorf("platform %q: want OS/ARCHITECTURE[/VARIANT]", s)
	}
	p := &ispec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

// nearTags are the tags that a mistyped one may have meant, the nearest first.
func nearTags(ix *Index, tag string) []string {
	type near struct {
		name string
		dist int
	}
	var list []near
	for _, e := range ix.Entries {
		name := e.RefName()
		if name == "" || slices.ContainsFunc(list, func(n near) bool { return n.name == name }) {
			continue
		}
		list = append(list, near{name, editDistance(tag, name)})
	}
	slices.SortStableFunc(list, func(a, b near) int { return cmp.Compare(a.dist, b.dist) })
	var out []string
	for i, n := range list {
		if i < 3 && (n.dist <= 3 || len(list) <= 3) {
			out = append(out, n.name)
		}
	}
	return out
}

// editDistance is Levenshtein's, in bytes.
func editDistance(a, b string) int {
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		cur := make([]int, len(b)+1)
		cur[0] = i + 1
		for j := range len(b) {
			change := prev[j]
			if a[i] != b[j] {
				change++
			}
			cur[j+1] = min(change, prev[j+1]+1, cur[j]+1)
		}
		prev = cur
	}
	return prev[len(b)]
}
