package layer

import "strings"

// How a layer says that something below it is gone (image-spec, layer.md,
// "Whiteouts"). The strings stand in this file alone.
const (
	// WhiteoutPrefix begins the name of an entry that hides the name after it.
	WhiteoutPrefix = ".wh."
	// OpaqueName is the name of an entry that hides all that lower layers have in
	// its directory.
	OpaqueName = WhiteoutPrefix + WhiteoutPrefix + ".opq"
)

// IsWhiteoutName reports whether name, one path component, cannot be the name
// of a file in a layer because it would be read as a whiteout.
func IsWhiteoutName(name string) bool { return strings.HasPrefix(name, WhiteoutPrefix) }

// WhiteoutName is the name of the entry that hides name, one path component.
func WhiteoutName(name string) string { return WhiteoutPrefix + name }
