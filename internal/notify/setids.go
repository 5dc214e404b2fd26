package notify

import (
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// become gives the caller other ids, and says so to the tree.
func (c *call) become(now creds) answer {
	p, err := sys.ReadProcess(c.pid())
	if err != nil || !c.waits() {
		return failed(unix.ESRCH)
	}
	was := c.ids()
	if was.uid.fs != now.uid.fs || was.gid.fs != now.gid.fs {
		if err := c.s.opt.Tree.Actor(c.pid(), now.uid.fs, now.gid.fs); err != nil {
			return failed(err)
		}
	}
	c.s.ids.put(c.pid(), p, now)
	return answer{}
}

// setOne is setuid(2) and setgid(2) on one kind of ids.
func setOne(s idSet, id uint32, root bool) (idSet, error) {
	switch {
	case id == keep:
		return s, unix.EINVAL
	case root:
		return idSet{id, id, id, id}, nil
	case id != s.real && id != s.saved:
		return s, unix.EPERM
	}
	s.effective, s.fs = id, id
	return s, nil
}

// setTwo is setreuid(2) and setregid(2).
func setTwo(s idSet, r, e uint32, root bool) (idSet, error) {
	now := s
	if r != keep {
		if !root && r != s.real && r != s.effective {
			return s, unix.EPERM
		}
		now.real = r
	}
	if e != keep {
		if !root && !s.has(e) {
			return s, unix.EPERM
		}
		now.effective = e
	}
	if r != keep || e != keep && e != s.real {
		now.saved = now.effective
	}
	now.fs = now.effective
	return now, nil
}

// setThree is setresuid(2) and setresgid(2).
func setThree(s idSet, r, e, saved uint32, root bool) (idSet, error) {
	now := s
	for _, f := range []struct {
		to *uint32
		id uint32
	}{{&now.real, r}, {&now.effective, e}, {&now.saved, saved}} {
		if f.id == keep {
			continue
		}
		if !root && !s.has(f.id) {
			return s, unix.EPERM
		}
		*f.to = f.id
	}
	now.fs = now.effective
	return now, nil
}

// setUIDs and setGIDs finish a call that computed new ids.
func (c *call) setUIDs(s idSet, err error) answer {
	if err != nil {
		return failed(err)
	}
	now := *c.ids()
	now.setUID(s)
	return c.become(now)
}

func (c *call) setGIDs(s idSet, err error) answer {
	if err != nil {
		return failed(err)
	}
	now := *c.ids()
	now.gid = s
	return c.become(now)
}

func (c *call) setuid() answer {
	return c.setUIDs(setOne(c.ids().uid, c.uint(0), c.ids().can(unix.CAP_SETUID)))
}

func (c *call) setgid() answer {
	return c.setGIDs(setOne(c.ids().gid, c.uint(0), c.ids().can(unix.CAP_SETGID)))
}

func (c *call) setreuid() answer {
	return c.setUIDs(setTwo(c.ids().uid, c.uint(0), c.uint(1), c.ids().can(unix.CAP_SETUID)))
}

func (c *call) setregid() answer {
	return c.setGIDs(setTwo(c.ids().gid, c.uint(0), c.uint(1), c.ids().can(unix.CAP_SETGID)))
}

func (c *call) setresuid() answer {
	return c.setUIDs(setThree(c.ids().uid, c.uint(0), c.uint(1), c.uint(2), c.ids().can(unix.CAP_SETUID)))
}

func (c *call) setresgid() answer {
	return c.setGIDs(setThree(c.ids().gid, c.uint(0), c.uint(1), c.uint(2), c.ids().can(unix.CAP_SETGID)))
}

// setfsuid and setfsgid answer with the id that was, whether it changes or not.
func (c *call) setfsuid() answer {
	now := *c.ids()
	was := now.uid.fs
	if id := c.uint(0); id != keep && (now.can(unix.CAP_SETUID) || now.uid.has(id)) {
		now.uid.fs = id
		if a := c.become(now); a.errno != 0 {
			return value(was)
		}
	}
	return value(was)
}

func (c *call) setfsgid() answer {
	now := *c.ids()
	was := now.gid.fs
	if id := c.uint(0); id != keep && (now.can(unix.CAP_SETGID) || now.gid.has(id)) {
		now.gid.fs = id
		if a := c.become(now); a.errno != 0 {
			return value(was)
		}
	}
	return value(was)
}
