package notify

import (
	"encoding/binary"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// statFlags are those of statx(2) and fstatat(2) that say nothing of what is meant.
const statFlags = unix.AT_NO_AUTOMOUNT | unix.AT_STATX_FORCE_SYNC | unix.AT_STATX_DONT_SYNC

// stat is stat(2) and its kin; the buffer is argument i. The namespace has one id, so the
// kernel cannot say whose a file is: what it says is completed. Programs copy the owner
// of a file that they replace (passwd(5) tools above all), and archive it.
func (c *call) stat(o object, i int) answer {
	defer o.close()
	if !c.ours(&o) {
		return toKernel
	}
	var err error
	if o.st.Uid, o.st.Gid, err = c.s.ownerOf(&o.st); err != nil {
		return failed(err)
	}
	return c.give(i, &o.st)
}

// statx is statx(2): the mask is argument 3, the buffer 4.
func (c *call) statx(o object) answer {
	defer o.close()
	if !c.ours(&o) {
		return toKernel
	}
	var st unix.Statx_t
	flags := c.int(2)&statFlags | unix.AT_EMPTY_PATH
	if err := unix.Statx(o.fd, "", flags, c.int(3), &st); err != nil {
		return failed(err)
	}
	var err error
	if st.Uid, st.Gid, err = c.s.ownerOf(&o.st); err != nil {
		return failed(err)
	}
	return c.give(4, &st)
}

// ownerCache remembers owners by inode and time of change: whoever gives a file to
// somebody else changes that.
type ownerCache struct {
	mu sync.Mutex
	of map[inodeState][2]uint32 // protected by mu
}

type inodeState struct {
	ino   uint64
	ctime unix.Timespec
}

// settled is how long ago a change must be for the next to have another time: the
// kernel's clock for files goes in ticks, and inode numbers are used again.
const settled = time.Second

// maxOwners bounds the cache; each takes some 60 bytes.
const maxOwners = 1 << 16

// ownerOf is whose a file of the tree is.
func (s *supervisor) ownerOf(st *unix.Stat_t) (uid, gid uint32, err error) {
	key := inodeState{st.Ino, st.Ctim}
	s.owners.mu.Lock()
	owner, ok := s.owners.of[key]
	s.owners.mu.Unlock()
	if ok {
		return owner[0], owner[1], nil
	}
	if uid, gid, err = s.opt.Tree.Owner(st.Ino); err != nil {
		return 0, 0, err
	}
	if time.Since(time.Unix(st.Ctim.Unix())) < settled {
		return uid, gid, nil
	}
	s.owners.mu.Lock()
	defer s.owners.mu.Unlock()
	if s.owners.of == nil || len(s.owners.of) >= maxOwners {
		s.owners.of = make(map[inodeState][2]uint32)
	}
	s.owners.of[key] = [2]uint32{uid, gid}
	return uid, gid, nil
}

// give writes a struct of the kernel to where argument i points. Its Go form has no
// padding that is not spelled out.
func (c *call) give(i int, data any) answer {
	raw, err := binary.Append(nil, binary.NativeEndian, data)
	if err != nil {
		return toKernel
	}
	if err := c.writeMemory(c.ptr(i), raw); err != nil {
		return failed(unix.EFAULT)
	}
	return answer{}
}
