package bundle

import (
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// findHolders lists the processes that keep a mount busy: by working directory,
// root, program, open files and mappings below its mountpoint, or by a mount
// namespace of their own that has it too. The mount itself is not touched, so that
// a dead one cannot hang the search.
func findHolders(m *mountEntry, self ...int) []Holder {
	own := mountNamespace("/proc/self")
	return holders(append(self, os.Getpid()), func(dir string) string {
		if how := holdsBelow(dir, m); how != "" {
			return how
		}
		return holdsInNamespace(dir, own, m)
	})
}

// findCopy is a mount of ours that another mount namespace has at a path; nil: none has.
func findCopy(point string) *mountEntry {
	own := mountNamespace("/proc/self")
	for _, dir := range processes() {
		if ns := mountNamespace(dir); ns == "" || ns == own {
			continue
		}
		table, err := os.ReadFile(filepath.Join(dir, "mountinfo"))
		if err != nil {
			continue
		}
		if m := topAt(parseMountinfo(table), point); m != nil {
			return m
		}
	}
	return nil
}

// findUsers lists the processes of any mount namespace that use a file system, by its
// "major:minor". It may be asked: its server answers.
func findUsers(device string) []Holder {
	return holders(nil, func(dir string) string {
		links := []string{"cwd", "root", "exe"}
		if fds, err := os.ReadDir(filepath.Join(dir, "fd")); err == nil {
			for _, fd := range fds {
				links = append(links, "fd/"+fd.Name())
			}
		}
		for _, link := range links {
			var st unix.Statx_t
			err := unix.Statx(unix.AT_FDCWD, filepath.Join(dir, link), unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
			if err == nil && fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor) == device {
				return strings.Replace(link, "/", " ", 1)
			}
		}
		maps, err := os.ReadFile(filepath.Join(dir, "maps"))
		if err != nil {
			return ""
		}
		for line := range strings.Lines(string(maps)) {
			var major, minor uint32
			f := strings.Fields(line)
			if len(f) < 4 {
				continue
			}
			if _, err := fmt.Sscanf(f[3], "%x:%x", &major, &minor); err == nil && fmt.Sprintf("%d:%d", major, minor) == device {
				return "map"
			}
		}
		return ""
	})
}

// holders lists the processes of which how, given their directory in /proc, has
// something to say, but for some.
func holders(skip []int, how func(dir string) string) []Holder {
	var out []Holder
	for pid, dir := range processes() {
		if slices.Contains(skip, pid) {
			continue
		}
		if h := how(dir); h != "" {
			name, _ := os.ReadFile(filepath.Join(dir, "comm")) //nolint:errcheck // it may have ended
			out = append(out, Holder{PID: pid, Command: strings.TrimSpace(string(name)), How: h})
		}
	}
	return out
}

// processes are the directories in /proc of those that there are.
func processes() iter.Seq2[int, string] {
	return func(yield func(pid int, dir string) bool) {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return
		}
		for _, e := range entries {
			if pid, err := strconv.Atoi(e.Name()); err == nil && !yield(pid, filepath.Join("/proc", e.Name())) {
				return
			}
		}
	}
}

// mountNamespace names that of a process, by its directory in /proc; "" where that cannot
// be told: the process has ended, or is another user's.
func mountNamespace(dir string) string {
	ns, _ := os.Readlink(filepath.Join(dir, "ns/mnt")) //nolint:errcheck // "" then
	return ns
}

func isBelow(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

// holdsBelow looks at what a process has open by path. The mountpoint's own path may be
// that of the directory below the mount, as the daemon has it open.
func holdsBelow(dir string, m *mountEntry) string {
	point := m.Point
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
		target, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
		if err != nil || !isBelow(target, point) {
			continue
		}
		if id, err := sys.MountID(dir, fd.Name()); target == point && err == nil && id != m.ID {
			continue
		}
		return "fd " + fd.Name()
	}
	maps, err := os.ReadFile(filepath.Join(dir, "maps"))
	if err == nil && strings.Contains(string(maps), " "+point+"/") {
		return "map"
	}
	return ""
}

// holdsInNamespace reports a process whose own mount namespace has the mount.
func holdsInNamespace(dir, own string, m *mountEntry) string {
	if ns := mountNamespace(dir); ns == "" || ns == own {
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
