package layer

import (
	"bytes"
	"errors"
	"fmt"
)

const (
	// maxPath is the longest cleaned path or link name in bytes: PATH_MAX of
	// Linux, which no extracted file could pass either.
	maxPath = 4096
	// maxName is the longest path component in bytes: NAME_MAX.
	maxName = 255
)

var (
	errNameTooLong = fmt.Errorf("path component of more than %d bytes", maxName)
	errPathTooLong = fmt.Errorf("path of more than %d bytes", maxPath)
	errNUL         = errors.New("NUL byte in name")
)

// appendClean appends the cleaned form of name to dst: relative to the root, no
// empty, "." or ".." component, no slash at either end; the root is "". A ".."
// takes the component before it away lexically and stops at the root, as umoci's
// CleanPath does: "../../esc" is "esc" and "/abs" is "abs".
func appendClean(dst, name []byte) ([]byte, error) {
	base := len(dst)
	if bytes.IndexByte(name, 0) >= 0 {
		return dst, errNUL
	}
	for len(name) > 0 {
		var part []byte
		part, name = cutComponent(name)
		switch {
		case len(part) == 0 || string(part) == ".":
		case string(part) == "..":
			dst = dst[:base+max(bytes.LastIndexByte(dst[base:], '/'), 0)]
		case len(part) > maxName && (len(name) > 0 || !isLongWhiteout(part)):
			return dst, errNameTooLong
		default:
			if len(dst) > base {
				dst = append(dst, '/')
			}
			dst = append(dst, part...)
		}
	}
	if len(dst)-base > maxPath {
		return dst, errPathTooLong
	}
	return dst, nil
}

// isLongWhiteout reports whether a last component of more than maxName bytes is a whiteout
// of a name that has no more.
func isLongWhiteout(name []byte) bool {
	return len(name) <= len(WhiteoutPrefix)+maxName && bytes.HasPrefix(name, []byte(WhiteoutPrefix))
}

// cutComponent splits path at its first slash.
func cutComponent(path []byte) (part, rest []byte) {
	if i := bytes.IndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return path, nil
}

// splitLast splits a cleaned path into its directory ("" is the root) and its
// last component.
func splitLast(path []byte) (dir, name []byte) {
	if i := bytes.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return nil, path
}
