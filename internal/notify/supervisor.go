package notify

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// Tree is where calls are recorded. Its methods may be called at the same time, and
// their errors are looked into for a syscall.Errno; EIO where there is none. Ids are
// the image's, inodes are st_ino.
type Tree interface {
	// Chown changes an owner; nil stays.
	Chown(ino uint64, uid, gid *uint32) error
	// Mknod makes a device.
	Mknod(dir uint64, name string, mode uint32, rdev uint64, uid, gid uint32) error
	// SetXattr sets an attribute; flags are setxattr(2)'s.
	SetXattr(ino uint64, name string, value []byte, flags uint32) error
	RemoveXattr(ino uint64, name string) error
	// Owner is whose an inode is.
	Owner(ino uint64) (uid, gid uint32, err error)
	// Actor says as whom a thread creates files from now on.
	Actor(tid int, uid, gid uint32) error
}

// Options of Serve.
type Options struct {
	Tree   Tree
	Device uint64 // st_dev of the tree's files
	Log    *slog.Logger
}

// workers is how many calls are worked on at the same time.
const workers = 4

// Serve answers the calls that come on a listener until no process is left that makes
// any.
func Serve(listener *os.File, opt Options) error {
	s := &supervisor{opt: opt, fd: int(listener.Fd()), ids: idTable{of: map[int]entry{}}}
	if s.opt.Log == nil {
		s.opt.Log = slog.New(slog.DiscardHandler)
	}
	sys.HurrySeccomp(s.fd)
	ended := make(chan error, workers)
	start := func() { go func() { ended <- s.work() }() }
	for range workers {
		start()
	}
	var errs []error
	for len(errs) < workers {
		err := <-ended
		if errors.Is(err, errAstray) {
			s.opt.Log.Warn("system calls are answered in a new thread", "error", err)
			start()
			continue
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// supervisor is one Serve under way.
type supervisor struct {
	opt    Options
	fd     int // the listener
	ids    idTable
	owners ownerCache

	receiving sync.Mutex // held by the worker that waits for the next call
}

// work answers one call after another, in a thread of its own (resolve.go), which ends
// with it. errAstray.
func (s *supervisor) work() error {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	paths, err := newResolver()
	if err != nil {
		return err
	}
	defer paths.close()
	for {
		c := &call{s: s, paths: paths}
		if err := s.receive(&c.n); errors.Is(err, errNobody) {
			return nil
		} else if err != nil {
			return err
		}
		c.serve()
		if paths.astray != nil {
			return paths.astray
		}
	}
}

// errNobody: no process is left that makes calls.
var errNobody = errors.New("no process left")

// receive waits for a call. One worker at a time does: who has seen that there is one
// must not find it taken, and wait for another in a way that the end of all does not
// interrupt.
func (s *supervisor) receive(n *sys.SeccompNotif) error {
	s.receiving.Lock()
	defer s.receiving.Unlock()
	for {
		fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("wait for system calls: %w", err)
		case fds[0].Revents&unix.POLLIN == 0:
			return errNobody // POLLHUP
		}
		err = sys.ReceiveSeccomp(s.fd, n)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINTR):
			continue // whose call it was is gone
		case err != nil:
			return fmt.Errorf("receive a system call: %w", err)
		}
		return nil
	}
}

// call is one system call that waits.
type call struct {
	s     *supervisor
	paths *resolver
	n     sys.SeccompNotif
	own   *creds // the caller's ids, once they were asked for
}

// answer is what becomes of a call.
type answer struct {
	value  int64
	errno  syscall.Errno
	kernel bool // the kernel goes on with it
}

var toKernel = answer{kernel: true}

func value(v uint32) answer { return answer{value: int64(v)} }

// failed is the answer for an error; that of nil is success.
func failed(err error) answer {
	if err == nil {
		return answer{}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) && errno > 0 && errno < 512 {
		return answer{errno: errno}
	}
	return answer{errno: unix.EIO}
}

// serve answers the call.
func (c *call) serve() {
	if c.s.ids.news(c.pid()) {
		_ = c.ids()
	}
	a := toKernel
	if h, ok := calls[c.n.Data.Nr]; ok {
		a = h.do(c)
	}
	if c.paths.astray != nil { // what the call is about is not known, for the kernel's answer either
		a = failed(unix.EIO)
	}
	resp := sys.SeccompResp{ID: c.n.ID, Val: a.value, Error: -int32(a.errno)}
	if a.kernel {
		resp = sys.SeccompResp{ID: c.n.ID, Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	}
	c.s.opt.Log.Debug("system call", "pid", c.n.PID, "nr", c.n.Data.Nr, "value", a.value, "errno", a.errno, "kernel", a.kernel)
	if err := sys.AnswerSeccomp(c.s.fd, &resp); err != nil && !errors.Is(err, unix.ENOENT) {
		c.s.opt.Log.Warn("a system call was not answered", "pid", c.n.PID, "error", err)
	}
}

func (c *call) pid() int { return int(c.n.PID) }

func (c *call) int(i int) int { return int(int32(c.n.Data.Args[i])) }

func (c *call) uint(i int) uint32 { return uint32(c.n.Data.Args[i]) }

func (c *call) ptr(i int) uint64 { return c.n.Data.Args[i] }

// waits reports whether the caller is still there; see the package's comment.
func (c *call) waits() bool { return sys.SeccompWaits(c.s.fd, c.n.ID) }
