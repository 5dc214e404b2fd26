package overlay

import "golang.org/x/sys/unix"

// keptCtime is the ctime that a directory showed before a copy-up wrote to it. Nobody
// asked for that change, and the kernel has the old time: a new one would come up when
// something reads the directory, and tar says then that it changed. The zero value keeps
// nothing.
type keptCtime struct {
	mtime, ctime Timespec // of the upper directory since; what has others was changed
	shown        Timespec
}

// ctimeLocked is the ctime to show of a node whose upper object is st. Preconditions:
// n.mu is held.
func (n *node) ctimeLocked(st *unix.Statx_t) Timespec {
	ctime := toTimespec(st.Ctime)
	if ctime == n.ctime.ctime && toTimespec(st.Mtime) == n.ctime.mtime {
		return n.ctime.shown
	}
	return ctime
}

// keepCtimeLocked has a directory go on showing a ctime although it has another since a
// moment ago. Preconditions: n.mu is held; dir is n's upper directory.
func (fs *FS) keepCtimeLocked(n *node, dir at, shown Timespec) {
	n.ctime = keptCtime{}
	var st unix.Statx_t
	if err := fs.upper.stat(dir, &st); err != nil {
		fs.log.Warn("look at a directory after a copy-up", "name", n.name, "error", err)
		return
	}
	n.ctime = keptCtime{mtime: toTimespec(st.Mtime), ctime: toTimespec(st.Ctime), shown: shown}
}

// restoreTimesLocked sets the times of n's upper directory to what st says, and has it go
// on showing its ctime. Preconditions: n.mu is held.
func (fs *FS) restoreTimesLocked(n *node, dir at, st *unix.Statx_t) error {
	shown := n.ctimeLocked(st)
	err := fs.upper.utimes(dir, toUnix(toTimespec(st.Atime)), toUnix(toTimespec(st.Mtime)))
	if err == nil {
		fs.keepCtimeLocked(n, dir, shown)
	}
	return err
}
