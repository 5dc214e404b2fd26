package sys

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is what /proc says of a thread.
type Process struct {
	Parent int    // the process it was born of, or was given to
	Group  int    // the process that the thread is of
	Start  uint64 // when it began: with the number it tells threads apart, which are numbered anew
	Stack  uint64 // where its stack begins, by chance another in each program executed; 0: not to be known
}

// ReadProcess describes a thread by its number (proc_pid_stat(5)). ErrNotExist, ESRCH.
func ReadProcess(tid int) (p Process, err error) {
	dir := "/proc/" + strconv.Itoa(tid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return p, err
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return p, err
	}
	// The name, field 2, may have blanks and parentheses in it.
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(f) < 26 {
		return p, unix.ESRCH
	}
	if p.Parent, err = strconv.Atoi(f[1]); err != nil {
		return p, err
	}
	if p.Start, err = strconv.ParseUint(f[19], 10, 64); err != nil {
		return p, err
	}
	if p.Stack, err = strconv.ParseUint(f[25], 10, 64); err != nil {
		return p, err
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "Tgid:"); ok {
			p.Group, err = strconv.Atoi(strings.TrimSpace(v))
			return p, err
		}
	}
	return p, unix.ESRCH
}

// Children are the processes that a process was the parent of a moment ago
// (proc_pid_task_children(5)); none where the kernel does not tell.
func Children(pid int) []int {
	files, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	if err != nil {
		return nil
	}
	var out []int
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(data)) {
			if child, err := strconv.Atoi(f); err == nil {
				out = append(out, child)
			}
		}
	}
	return out
}
