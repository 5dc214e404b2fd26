package notify

import (
	"encoding/binary"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// keep is the id that stands for "as it is" in calls: (uid_t)-1.
const keep = 1<<32 - 1

// idSet are the four ids of a kind that a process has (credentials(7)).
type idSet struct{ real, effective, saved, fs uint32 }

func (s idSet) has(id uint32) bool { return id == s.real || id == s.effective || id == s.saved }

// creds are what a process believes to be. The zero value is root with all
// capabilities and no further group. The groups are never changed, but replaced.
type creds struct {
	uid, gid idSet
	groups   []uint32
	noPermit uint64 // capabilities that are not in the permitted set
	noEffect uint64 // and not in the effective one
	keepCaps bool   // PR_SET_KEEPCAPS
}

const allCaps = 1<<64 - 1

// can reports whether the process has a capability.
func (c *creds) can(capability int) bool { return c.noEffect>>capability&1 == 0 }

// setUID changes the user ids, and the capabilities with them (capabilities(7),
// "Effect of user ID changes on capabilities").
func (c *creds) setUID(now idSet) {
	was := c.uid
	c.uid = now
	if was.has(0) && !now.has(0) && !c.keepCaps {
		c.noPermit, c.noEffect = allCaps, allCaps
	}
	switch {
	case was.effective == 0 && now.effective != 0:
		c.noEffect = allCaps
	case was.effective != 0 && now.effective == 0:
		c.noEffect = c.noPermit
	}
}

// execute is what executing a program changes.
func (c *creds) execute() {
	c.keepCaps = false
	c.noPermit, c.noEffect = allCaps, allCaps
	if c.uid.real == 0 || c.uid.effective == 0 {
		c.noPermit = 0
	}
	if c.uid.effective == 0 {
		c.noEffect = 0
	}
}

func (c *creds) member(gid uint32) bool { return gid == c.gid.fs || slices.Contains(c.groups, gid) }

// entry is what a thread was last known to be.
type entry struct {
	start uint64 // see sys.Process
	stack uint64 // likewise: another in the next program
	creds creds
}

// idTable has the ids of threads that changed them, and of some that were born of
// those. Who is not in it and descends from nobody in it is root.
type idTable struct {
	mu    sync.Mutex
	of    map[int]entry    // protected by mu
	seen  map[int]struct{} // protected by mu; threads that were looked for lately
	clear time.Time        // protected by mu; when seen was cleared
}

// seenFor is how long a thread that was looked for is not looked for again only to know
// it: its number may be another's by then.
const seenFor = time.Second

// news reports whether a thread has to be looked for, so that it is known before its
// parent ends: afterwards nobody can tell what it was born with.
func (t *idTable) news(tid int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.of) == 0 {
		return false
	}
	if now := time.Now(); t.seen == nil || now.Sub(t.clear) > seenFor {
		t.seen, t.clear = map[int]struct{}{}, now
	}
	_, ok := t.seen[tid]
	t.seen[tid] = struct{}{}
	return !ok
}

// pruneAbove is the size of the table at which those that are gone are dropped.
const pruneAbove = 1024

// ids are the caller's.
func (c *call) ids() *creds {
	if c.own == nil {
		got := c.s.know(c.pid())
		c.own = &got
	}
	return c.own
}

// know finds the ids of a thread, and keeps them for it, here and in the tree.
func (s *supervisor) know(tid int) creds {
	got, born := s.ids.get(tid)
	if born && (got.uid.fs != 0 || got.gid.fs != 0) {
		if err := s.opt.Tree.Actor(tid, got.uid.fs, got.gid.fs); err != nil {
			s.opt.Log.Debug("a thread has ended", "pid", tid, "error", err)
		}
	}
	return got
}

// exit is exit_group(2): what a process believes to be is known of its children before
// it has ended. The kernel goes on with it.
func (c *call) exit() answer {
	if own := c.ids(); own.uid == (idSet{}) && own.gid == (idSet{}) {
		return toKernel // as they are without being known
	}
	for _, child := range sys.Children(c.pid()) {
		c.s.know(child)
	}
	return toKernel
}

// get finds the ids of a thread: its own, its process's, or those of the nearest
// ancestor that is known, which it was born with; born is whether it was not known.
func (t *idTable) get(tid int) (ids creds, born bool) {
	t.mu.Lock()
	empty := len(t.of) == 0
	t.mu.Unlock()
	if empty {
		return creds{}, false
	}
	const maxDepth = 1000 // of the tree of processes
	first := sys.Process{}
	for pid, depth := tid, 0; pid > 1 && depth < maxDepth; depth++ {
		p, err := sys.ReadProcess(pid)
		if err != nil {
			return creds{}, false
		}
		if depth == 0 {
			first = p
		}
		t.mu.Lock()
		e, ok := t.of[pid]
		t.mu.Unlock()
		if ok && e.start == p.Start {
			if first.Stack != e.stack {
				e.creds.execute()
			}
			if depth > 0 || first.Stack != e.stack {
				t.put(tid, first, e.creds) // it keeps them whatever becomes of its parent
			}
			return e.creds, depth > 0
		}
		if p.Group != pid {
			pid = p.Group
		} else {
			pid = p.Parent
		}
	}
	return creds{}, false
}

func (t *idTable) put(tid int, p sys.Process, c creds) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.of) >= pruneAbove {
		for pid := range t.of {
			if _, err := os.Lstat("/proc/" + strconv.Itoa(pid)); err != nil {
				delete(t.of, pid)
			}
		}
	}
	t.of[tid] = entry{p.Start, p.Stack, c}
}

// keepCaps is prctl(PR_SET_KEEPCAPS), and capset is capset(2): both are noted, and the
// kernel goes on with them.
func (c *call) keepCaps() answer {
	if now := *c.ids(); now.keepCaps != (c.ptr(1) != 0) {
		now.keepCaps = c.ptr(1) != 0
		if a := c.become(now); a.errno != 0 {
			return a
		}
	}
	return toKernel
}

func (c *call) capset() answer {
	const size = 24 // two of struct __user_cap_data_struct
	version, err := c.readMemory(c.ptr(0), 4)
	if err != nil || binary.NativeEndian.Uint32(version) == unix.LINUX_CAPABILITY_VERSION_1 {
		return toKernel
	}
	raw, err := c.readMemory(c.ptr(1), size)
	if err != nil {
		return toKernel
	}
	set := func(i int) uint64 { // effective, permitted, inheritable; the low halves first
		return uint64(binary.NativeEndian.Uint32(raw[4*i:])) | uint64(binary.NativeEndian.Uint32(raw[12+4*i:]))<<32
	}
	now := *c.ids()
	effective, permitted := set(0), set(1)
	if permitted&now.noPermit != 0 || effective&^permitted != 0 {
		return failed(unix.EPERM)
	}
	now.noEffect, now.noPermit = ^effective, ^permitted
	if a := c.become(now); a.errno != 0 {
		return a
	}
	return toKernel
}

const maxGroups = 65536 // NGROUPS_MAX

func (c *call) setgroups() answer {
	n := c.int(0)
	switch {
	case !c.ids().can(unix.CAP_SETGID):
		return failed(unix.EPERM)
	case n < 0 || n > maxGroups:
		return failed(unix.EINVAL)
	}
	raw, err := c.readMemory(c.ptr(1), 4*uint64(n))
	if err != nil {
		return failed(unix.EFAULT)
	}
	now := *c.ids()
	now.groups = make([]uint32, n)
	for i := range now.groups {
		now.groups[i] = binary.NativeEndian.Uint32(raw[4*i:])
	}
	return c.become(now)
}

func (c *call) getgroups() answer {
	groups := c.ids().groups
	switch n := c.int(0); {
	case n == 0:
		return answer{value: int64(len(groups))}
	case n < len(groups):
		return failed(unix.EINVAL)
	}
	var raw []byte
	for _, g := range groups {
		raw = binary.NativeEndian.AppendUint32(raw, g)
	}
	if err := c.writeMemory(c.ptr(1), raw); err != nil {
		return failed(unix.EFAULT)
	}
	return answer{value: int64(len(groups))}
}

// getres is getresuid(2) and getresgid(2).
func (c *call) getres(s idSet) answer {
	for i, id := range []uint32{s.real, s.effective, s.saved} {
		if err := c.writeMemory(c.ptr(i), binary.NativeEndian.AppendUint32(nil, id)); err != nil {
			return failed(unix.EFAULT)
		}
	}
	return answer{}
}
