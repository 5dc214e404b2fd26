package cas

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Opening and creating a layout.
var (
	// ErrNotLayout: the directory is no image layout of a version read here.
	ErrNotLayout = errors.New("not an OCI image layout")
	// ErrExists: a layout is to be created where something is.
	ErrExists = errors.New("already exists")
)

// Reading blobs and documents.
var (
	// ErrBlobNotFound: a descriptor leads to no blob.
	ErrBlobNotFound = errors.New("blob not found")
	// ErrDigest: content does not have the digest or size its descriptor says. Scripts
	// look for umoci's words.
	ErrDigest = errors.New("verified reader digest mismatch")
	// ErrSize: the content begins as its descriptor says, and goes on. A kind of ErrDigest.
	ErrSize error = sizeError{}
	// ErrTooLarge: a JSON document is larger than MaxDocument.
	ErrTooLarge = errors.New("document too large")
	// ErrMalformed: a document is not what its media type says.
	ErrMalformed = errors.New("malformed document")
	// ErrMediaType: a document of a type that cannot be read.
	ErrMediaType = errors.New("unsupported media type")
)

// Names and what they lead to.
var (
	// ErrTagNotFound: no reference has the name; see *TagError.
	ErrTagNotFound = errors.New("tag not found")
	// ErrNoPlatform: a tag has no image for the platform asked for; see *TagError. It
	// is a kind of ErrTagNotFound.
	ErrNoPlatform = errors.New("no image for this platform")
	// ErrAmbiguous: several manifests have the name; see *TagError.
	ErrAmbiguous = errors.New("tag is ambiguous")
	// ErrBadTag: a reference name that image-spec's grammar does not allow.
	ErrBadTag = errors.New("invalid tag")
)

var (
	// ErrBusy: others use blobs, or are writing them.
	ErrBusy = errors.New("layout is in use")
)

type sizeError struct{}

func (sizeError) Error() string        { return "verified reader size mismatch" }
func (sizeError) Is(target error) bool { return target == ErrDigest }

// TagError says which tag could not be resolved, and what there is in its place.
type TagError struct {
	Tag        string
	Err        error              // ErrTagNotFound, ErrNoPlatform or ErrAmbiguous
	Near       []string           // ErrTagNotFound: similar tags, the nearest first
	Platform   *ispec.Platform    // ErrNoPlatform: what was asked for
	Candidates []ispec.Descriptor // else: what the tag could mean
}

// Unwrap is Err, with what it is a kind of.
func (e *TagError) Unwrap() []error {
	if e.Err == ErrNoPlatform {
		return []error{ErrNoPlatform, ErrTagNotFound}
	}
	return []error{e.Err}
}

func (e *TagError) Error() string {
	s := fmt.Sprintf("%v: %s", e.Err, e.Tag)
	if e.Platform != nil {
		s += " for " + platformName(*e.Platform)
	}
	if len(e.Near) > 0 {
		s += fmt.Sprintf(" (did you mean %s?)", strings.Join(e.Near, ", "))
	}
	if len(e.Candidates) > 0 {
		s += fmt.Sprintf(" (%s; choose one with --platform)", e.candidates())
	}
	return s
}

// maxNamed bounds the candidates in a message.
const maxNamed = 12

func (e *TagError) candidates() string {
	var names []string
	for _, d := range e.Candidates {
		name := printable(d.Digest.String())
		if d.Platform != nil {
			name = platformName(*d.Platform)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		if len(names) == maxNamed && len(e.Candidates) > maxNamed {
			names = append(names, "...")
			break
		}
	}
	return strings.Join(names, ", ")
}

func platformName(p ispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return printable(s)
}

// printable quotes what an image says where a terminal should not see it.
func printable(s string) string {
	if q := strconv.Quote(s); q != `"`+s+`"` || len(s) > maxNearTag {
		return q[:min(len(q), maxNearTag)]
	}
	return s
}
