package cas

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// PathText is an absolute path as a string of JSON can have it: one that is no UTF-8 is
// quoted as Go quotes it, and so begins with what no absolute path begins with.
func PathText(path string) string {
	if utf8.ValidString(path) {
		return path
	}
	return strconv.Quote(path)
}

// ParsePathText is the path of which PathText made s.
func ParsePathText(s string) string {
	if path, err := strconv.Unquote(s); err == nil && strings.HasPrefix(s, `"`) {
		return path
	}
	return s
}
