package bundle

import (
	"path"
	"slices"
	"strings"
)

// masks are paths that are left out of a layer with all below them.
type masks []string

// newMasks cleans paths, which are taken as relative to the root, as umoci does.
func newMasks(lists ...[]string) masks {
	var m masks
	for _, list := range lists {
		for _, p := range list {
			m = append(m, path.Clean("/"+p))
		}
	}
	return m
}

// match reports whether a path ("a/b", "." is the root) is left out. The root
// never is.
func (m masks) match(p string) bool {
	if p == "." {
		return false
	}
	p = "/" + p
	for _, mask := range m {
		if p == mask || mask == "/" || strings.HasPrefix(p, mask+"/") {
			return true
		}
	}
	return false
}

// in are the names right in a directory that are left out, as paths. The directory is
// not.
func (m masks) in(dir string) []string {
	var out []string
	for _, mask := range m {
		if mask != "/" && path.Dir(mask) == path.Join("/", dir) {
			out = append(out, strings.TrimPrefix(mask, "/"))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
