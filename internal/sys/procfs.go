package sys

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// ProcPath is a name in an open directory, or what is open itself, as a path.
func ProcPath(dir int, name string) string {
	p := "/proc/self/fd/" + strconv.Itoa(dir)
	if name == "" {
		return p
	}
	return p + "/" + name
}

// MountID is the ID of the mount that an open file is in, as mount tables have it, by the
// process' directory in /proc and the descriptor (proc_pid_fdinfo(5)). No file system is
// asked.
func MountID(process, fd string) (string, error) {
	data, err := os.ReadFile(process + "/fdinfo/" + fd)
	if err != nil {
		return "", fmt.Errorf("look up a mount: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if id, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strings.TrimSpace(id), nil
		}
	}
	return "", fmt.Errorf("look up a mount: %w", errors.ErrUnsupported)
}
