package cas

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
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
	if at := strings.LastIndex(path, "@"); at >= 0 && digest.Digest(s[at+1:]).Validate() == nil {
		return "", "", fmt.Errorf("%q: want PATH[:TAG], an image is not named by its digest", s)
	}
	return path, tag, CheckTag(tag)
}

// maxNearTag bounds what is compared: a document of MaxDocument bytes can be one tag.
const maxNearTag = 256

// nearTags are the tags that a mistyped one may have meant, the nearest first.
func nearTags(ix *Index, tag string) []string {
	type near struct {
		name string
		dist int
	}
	var list []near
	for _, e := range ix.Entries {
		name := e.RefName()
		if len(name) > maxNearTag || CheckTag(name) != nil || slices.ContainsFunc(list, func(n near) bool { return n.name == name }) {
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
