package fusefs

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// actors are threads that create files as somebody of the image, whoever the kernel
// says they are: where a user namespace has one id, all are its root to the kernel.
// Threads born of them are like them, until they are told of by themselves.
type actors struct {
	any atomic.Bool // whether there ever was one

	mu sync.Mutex
	of map[int]actor // protected by mu
}

type actor struct {
	start uint64 // see sys.Process
	owner overlay.Owner
}

// maxActors is the size at which those that have ended are dropped.
const maxActors = 1024

// SetActor says as whom a thread of this process's pid namespace creates files from
// now on, in the image's ids.
func (s *Server) SetActor(tid int, as overlay.Owner) error {
	p, err := sys.ReadProcess(tid)
	if err != nil {
		return err
	}
	a := &s.ops.actors
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.of == nil {
		a.of = make(map[int]actor)
	}
	if len(a.of) >= maxActors {
		for pid, known := range a.of {
			if now, err := sys.ReadProcess(pid); err != nil || now.Start != known.start {
				delete(a.of, pid)
			}
		}
	}
	a.of[tid] = actor{p.Start, as}
	a.any.Store(true)
	return nil
}

// find is the actor that a thread is or descends from.
func (a *actors) find(tid int) (overlay.Owner, bool) {
	const maxDepth = 1000 // of the tree of processes
	for depth := 0; tid > 1 && depth < maxDepth; depth++ {
		p, err := sys.ReadProcess(tid)
		if err != nil {
			return overlay.Owner{}, false
		}
		a.mu.Lock()
		known, ok := a.of[tid]
		a.mu.Unlock()
		if ok && known.start == p.Start {
			return known.owner, true
		}
		if p.Group != tid {
			tid = p.Group
		} else {
			tid = p.Parent
		}
	}
	return overlay.Owner{}, false
}

// keepsSgid is whether who asks for a change may keep a file's sgid bit where no group
// runs it (in_group_or_capable in the kernel). Before a write or truncate the kernel has
// looked for the capability itself; at a change of owner it asks for KillSuidgid always.
func keepsSgid(h *fuse.InHeader, change overlay.SetattrMask) func(gid uint32) bool {
	return func(gid uint32) bool {
		if h.Gid == gid {
			return true
		}
		c, err := sys.ReadCredentials(int(h.Pid))
		return err == nil && (slices.Contains(c.Groups, gid) ||
			change&(overlay.SetUID|overlay.SetGID) != 0 && c.Has(unix.CAP_FSETID))
	}
}

// callerOf is who asks for an object to be created.
func (o *ops) callerOf(h *fuse.InHeader, umask uint32) overlay.Caller {
	if o.actors.any.Load() {
		if as, ok := o.actors.find(int(h.Pid)); ok {
			return overlay.Caller{UID: as.UID, GID: as.GID, Umask: umask, ImageIDs: true}
		}
	}
	return overlay.Caller{UID: h.Uid, GID: h.Gid, Umask: umask}
}
