package cas

import (
	"errors"
	"fmt"
	"strings"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var (
	// ErrNotLayout: the directory is no image layout of a version read here.
	ErrNotLayout = errors.New("not an OCI image layout")
	// ErrExists: a layout is to be created where something is.
	ErrExists = errors.New("already exists")
	// ErrBlobNotFound: a descriptor leads to no blob.
	ErrBlobNotFound = errors.New("blob not found")
	// ErrDigest: content does not have the digest or size its descriptor says.
	ErrDigest = errors.New("digest mismatch")
	// ErrTooLarge: a JSON document is larger than MaxDocument.
	ErrTooLarge = errors.New("document too large")
	// ErrMalformed: a document is not what its media type says.
	ErrMalformed = errors.New("malformed document")
	// ErrMediaType: a document of a type that cannot be read.
	ErrMediaType = errors.New("unsupported media type")
	// ErrTagNotFound: no reference has the name; see *TagError.
	ErrTagNotFound = errors.New("tag not found")
	// ErrAmbiguous: several manifests have the name; see *TagError.
	ErrAmbiguous = errors.New("tag is ambiguous")
	// ErrBadTag: a reference name that image-spec's grammar does not allow.
	ErrBadTag = errors.New("invalid tag")
	// ErrBusy: blobs are in use by another process.
	ErrBusy = errors.New("layout is in use")
)

// TagError says which tag could not be resolved, and what there is in its place.
type TagError struct {
	Tag        string
	Err        error              // ErrTagNotFound or ErrAmbiguous
	Near       []string           // ErrTagNotFound: similar tags, the nearest first
	Candidates []ispec.Descriptor // ErrAmbiguous: what the tag could mean
}

func (e *TagError) Unwrap() error { return e.Err }

func (e *TagError) Error() string {
	s := fmt.Sprintf("%v: %s", e.Err, e.Tag)
	if len(e.Near) > 0 {
		s += fmt.Sprintf(" (did you mean %s?)", strings.Join(e.Near, ", "))
	}
	if len(e.Candidates) > 0 {
		var names []string
		for _, d := range e.Candidates {
			name := d.Digest.String()
			if d.Platform != nil {
				name = d.Platform.OS + "/" + d.Platform.Architecture
				if d.Platform.Variant != "" {
					name += "/" + d.Platform.Variant
				}
			}
			names = append(names, name)
		}
		s += fmt.Sprintf(" (%s; choose one with --platform)", strings.Join(names, ", "))
	}
	return s
}
