package sys

import "strconv"

// ProcPath is a name in an open directory, or what is open itself, as a path.
func ProcPath(dir int, name string) string {
	p := "/proc/self/fd/" + strconv.Itoa(dir)
	if name == "" {
		return p
	}
	return p + "/" + name
}
