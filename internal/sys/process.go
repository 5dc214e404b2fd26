package sys

import (
	"os"
	"path/filepath"
	"slices"
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
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/stat")
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
	status, err := readStatus(tid, "Tgid")
	if err != nil {
		return p, err
	}
	p.Group, err = strconv.Atoi(status[0])
	return p, err
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

// Credentials are what a thread may do, beyond its own ids.
type Credentials struct {
	Groups    []uint32 // supplementary ones, in the ids of this process's user namespace
	effective uint64   // the set of capabilities, in the thread's user namespace
}

// Has reports whether a capability is effective, in the thread's user namespace.
func (c *Credentials) Has(capability int) bool { return c.effective&(1<<capability) != 0 }

// ReadCredentials is a thread's, by its number (proc_pid_status(5)). ErrNotExist, ESRCH.
func ReadCredentials(tid int) (c Credentials, err error) {
	status, err := readStatus(tid, "Groups", "CapEff")
	if err != nil {
		return c, err
	}
	for g := range strings.FieldsSeq(status[0]) {
		id, err := strconv.ParseUint(g, 10, 32)
		if err != nil {
			return c, err
		}
		c.Groups = append(c.Groups, uint32(id))
	}
	c.effective, err = strconv.ParseUint(status[1], 16, 64)
	return c, err
}

// ReadUmask is a thread's umask(2). ErrNotExist, ESRCH.
func ReadUmask(tid int) (uint32, error) {
	status, err := readStatus(tid, "Umask")
	if err != nil {
		return 0, err
	}
	mask, err := strconv.ParseUint(status[0], 8, 32)
	return uint32(mask) & 0o777, err
}

// readStatus is the values of some fields of proc_pid_status(5). ErrNotExist; ESRCH
// where one is missing.
func readStatus(tid int, fields ...string) ([]string, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/status")
	if err != nil {
		return nil, err
	}
	values := make([]string, len(fields))
	found := 0
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if i := slices.Index(fields, name); i >= 0 {
			values[i] = strings.TrimSpace(value)
			found++
		}
	}
	if found < len(fields) {
		return nil, unix.ESRCH
	}
	return values, nil
}
