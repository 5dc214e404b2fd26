package layer

import (
	"fmt"
	"strings"
)

// Compression is how a layer's tar stream is stored.
type Compression uint8

// The compressions of image-spec's layer media types.
const (
	CompressNone Compression = iota
	CompressGzip
	CompressZstd
)

// String is the name used on command lines.
func (c Compression) String() string {
	switch c {
	case CompressNone:
		return "none"
	case CompressGzip:
		return "gzip"
	case CompressZstd:
		return "zstd"
	}
	return fmt.Sprintf("compression %d", uint8(c))
}

// Layer media types before their compression suffix: image-spec's
// (media-types.md), also the deprecated ones of layers that must not be
// distributed, and Docker's (image manifest v2 schema 2).
var (
	ociLayerTypes = []string{
		"application/vnd.oci.image.layer.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
	}
	dockerLayerTypes = []string{
		"application/vnd.docker.image.rootfs.diff.tar",
		"application/vnd.docker.image.rootfs.foreign.diff.tar",
	}
)

// ParseMediaType gives the compression that a layer's media type asks for. Any
// type that is not a tar layer's is ErrUnsupported.
func ParseMediaType(mt string) (Compression, error) {
	for _, base := range ociLayerTypes {
		if rest, ok := strings.CutPrefix(mt, base); ok {
			if c, ok := parseSuffix(rest, "+"); ok {
				return c, nil
			}
		}
	}
	for _, base := range dockerLayerTypes {
		if rest, ok := strings.CutPrefix(mt, base); ok {
			if c, ok := parseSuffix(rest, "."); ok {
				return c, nil
			}
		}
	}
	return CompressNone, fmt.Errorf("%w: %q", ErrUnsupported, mt)
}

// parseSuffix reads what stands after a media type's base.
func parseSuffix(s, sep string) (Compression, bool) {
	switch s {
	case "":
		return CompressNone, true
	case sep + "gzip":
		return CompressGzip, true
	case sep + "zstd":
		return CompressZstd, true
	}
	return CompressNone, false
}
