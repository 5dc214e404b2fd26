package bundle

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// fsType is what mount tables show of our mounts.
const fsType = "fuse.umoci-mount"

// mountEntry is one line of a mountinfo file (proc_pid_mountinfo(5)).
type mountEntry struct {
	ID     string // unique while it lasts
	Device string // "major:minor"
	Point  string
	FSType string
	Source string
	User   string // who mounted it, where it is FUSE's (user_id)
}

// parseMountinfo reads a mountinfo file; lines it does not understand are left out.
func parseMountinfo(data []byte) []mountEntry {
	var out []mountEntry
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(g) < 2 {
			continue
		}
		e := mountEntry{ID: f[0], Device: f[2], Point: unescapeMount(f[4]), FSType: g[0], Source: unescapeMount(g[1])}
		if len(g) > 2 {
			_, user, _ := strings.Cut(","+g[2], ",user_id=")
			e.User, _, _ = strings.Cut(user, ",")
		}
		out = append(out, e)
	}
	return out
}

// unescapeMount undoes the kernel's \ooo for blanks and backslashes.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// ownMounts lists the mounts of this process's mount namespace.
func ownMounts() ([]mountEntry, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	return parseMountinfo(data), nil
}

// MountsBelow lists the mounts at a path and below, of any kind, innermost first.
func MountsBelow(path string) ([]string, error) {
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		// A mount whose daemon has ended cannot be looked at: its name is as good.
		real = path
	}
	entries, err := ownMounts()
	var out []string
	for _, e := range slices.Backward(entries) {
		if isBelow(e.Point, real) {
			out = append(out, e.Point)
		}
	}
	return out, err
}

// mountAt is the mount of ours on top at a path, or nil.
func mountAt(path string) (*mountEntry, error) {
	entries, err := ownMounts()
	return topAt(entries, path), err
}

// topAt is the mount of ours on top at a path in a mount table, or nil.
func topAt(entries []mountEntry, path string) *mountEntry {
	for i := len(entries) - 1; i >= 0; i-- {
		if e := entries[i]; e.Point == path && e.FSType == fsType {
			return &e
		}
	}
	return nil
}
