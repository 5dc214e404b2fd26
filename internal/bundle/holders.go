package bundle

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// findHolders lists the processes that keep a mount busy: by working directory,
// root, program, open files and mappings below its mountpoint, or by a mount
// namespace of their own that has it too. The mount itself is not touched, so that
// a dead one cannot hang the search.
func findHolders(m *mountEntry, self ...int) []Holder {
	skip := map[int]bool{os.Getpid(): true}
	for _, pid := range self {
		skip[pid] = true
	}
	own, _ := os.Readlink("/proc/self/ns/mnt") //nolint:errcheck // "" then: every namespace is another
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []Holder
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || skip[pid] {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		how := holdsBelow(dir, m.Point)
		if how == "" {
			how = holdsInNamespace(dir, own, m)
		}
		if how != "" {
			name, _ := os.ReadFile(filepath.Join(dir, "comm")) //nolint:errcheck // it may have ended
			out = append(out, Holder{PID: pid, Command: strings.TrimSpace(string(name)), How: how})
		}
	}
	return out
}

func isBelow(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

// holdsBelow looks at what a process has open by path.
func holdsBelow(dir, point string) string {
	for _, link := range []string{"cwd", "root", "exe"} {
		if target, err := os.Readlink(filepath.Join(dir, link)); err == nil && isBelow(target, point) {
			return link
		}
	}
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		if target, err := os.Readlink(filepath.Join(dir, "fd", fd.Name())); err == nil && isBelow(target, point) {
			return "fd " + fd.Name()
		}
	}
	maps, err := os.ReadFile(filepath.Join(dir, "maps"))
	if err == nil && strings.Contains(string(maps), " "+point+"/") {
		return "map"
	}
	return ""
}

// holdsInNamespace reports a process whose own mount namespace has the mount.
func holdsInNamespace(dir, own string, m *mountEntry) string {
	ns, err := os.Readlink(filepath.Join(dir, "ns/mnt"))
	if err != nil || ns == own {
		return ""
	}
	data, err := os.ReadFile(filepath.Join(dir, "mountinfo"))
	if err != nil {
		return ""
	}
	for _, e := range parseMountinfo(data) {
		if e.Device == m.Device && e.FSType == m.FSType {
			return "mount namespace"
		}
	}
	return ""
}
