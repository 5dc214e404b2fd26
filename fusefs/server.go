package fusefs

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// Server is one mount. Its process must not touch files in the mount while it
// serves: a request that waits for itself ends only with the connection.
type Server struct {
	ops        *ops
	dev        *device
	loop       requestLoop
	mountpoint string // absolute
	direct     bool
	served     chan struct{} // closed by the end of Serve
}

// Mount mounts fs on a directory. The kernel has been answered once when it
// returns; Serve answers the rest. The file system stays its owner's, to be
// closed after Serve.
func Mount(fs *overlay.FS, mountpoint string, opt Options) (*Server, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	path, err := filepath.Abs(mountpoint)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", mountpoint, err)
	}
	if err := checkMountpoint(path); err != nil {
		return nil, fmt.Errorf("mount %s: %w", mountpoint, err)
	}
	if err := CheckMeans(&opt); err != nil {
		return nil, fmt.Errorf("mount %s: %w", mountpoint, err)
	}
	o := newOps(fs, opt.Log, opt.Passthrough)
	s, err := newServer(o, o, path, &opt)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", mountpoint, errors.Join(explainMount(err), removeHalfMount(path, opt.DirectMount)))
	}
	// The mount is live: the kernel queues what is asked before Serve. Nothing in it is
	// opened to see that: a process that is killed while it waits for its own answer can
	// never end (request_wait_answer in fs/fuse/dev.c).
	if opt.DirectMount {
		if err := raiseReadAhead(path); err != nil {
			opt.Log.Debug("read-ahead stays as it is", slog.Any("cause", err))
		}
	}
	return s, nil
}

// newServer mounts, and answers the kernel's INIT. Requests come to fs, which is ops or
// wraps it.
func newServer(fs fuse.RawFileSystem, o *ops, path string, opt *Options) (*Server, error) {
	fd, err := openMount(path, opt)
	if err != nil {
		return nil, err
	}
	dev, err := newDevice(fd)
	if err != nil {
		return nil, err
	}
	protocol := fuse.NewProtocolServer(fs, opt.protocolOptions())
	s := &Server{ops: o, dev: dev, mountpoint: path, direct: opt.DirectMount, served: make(chan struct{})}
	s.loop = requestLoop{dev: dev, handle: protocol.HandleRequest, log: o.log, maxWrite: opt.maxWrite()}
	o.yield = s.loop.yield
	can, err := s.start()
	if err != nil {
		return nil, errors.Join(err, dev.close())
	}
	o.begin(dev, can)
	if !opt.Sleepy && !(idleDriverWorks(idleDriver) && s.loop.watch.processors.open(latencyDevice)) {
		s.loop.alert.patience = alertForAsleep
	}
	return s, nil
}

// start answers the kernel's INIT.
func (s *Server) start() (can uint64, err error) {
	b, err := newBuffers(s.loop.maxWrite)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, b.free()) }()
	return s.dev.start(s.loop.handle, b)
}

// Serve answers requests until the file system is unmounted. It is to be called
// once.
func (s *Server) Serve() {
	defer close(s.served)
	s.loop.serve()
	if err := errors.Join(s.dev.close(), s.loop.watch.processors.close()); err != nil {
		s.ops.log.Warn("close devices", slog.Any("error", err))
	}
	s.ops.OnUnmount()
}

// Unmount takes the mount away and waits for the end of every request.
// ErrBusyMountpoint while it is in use.
func (s *Server) Unmount() error {
	err := s.unmount()
	// Who has just ended may be in the mount for a moment more.
	for wait := 5 * time.Millisecond; errors.Is(err, ErrBusyMountpoint) && wait <= patience; wait *= 3 {
		time.Sleep(wait)
		err = s.unmount()
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", s.mountpoint, err)
	}
	<-s.served
	return nil
}

// patience is the longest time to wait before another try to unmount.
const patience = 135 * time.Millisecond

func (s *Server) unmount() error {
	var err error
	if s.direct {
		err = unix.Unmount(s.mountpoint, 0)
	} else {
		err = runFusermount("-u", s.mountpoint)
	}
	// fusermount3 has no other way than its message to say so.
	if err != nil && (errors.Is(err, syscall.EBUSY) || strings.Contains(err.Error(), "busy")) {
		return ErrBusyMountpoint
	}
	return err
}

// Stats counts the requests served so far by the kernel's name of their kind
// (LOOKUP, READ, …). Kinds that never came are left out.
func (s *Server) Stats() map[string]uint64 { return s.ops.stats.snapshot() }

// Requests is how many requests were served so far, of all kinds.
func (s *Server) Requests() uint64 {
	var n uint64
	for op := range s.ops.stats.kinds {
		n += s.ops.stats.kinds[op].Load()
	}
	return n
}

// checkMountpoint says what is wrong with a directory to mount on.
func checkMountpoint(path string) error {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_SYNC_AS_STAT, unix.STATX_TYPE, &st)
	switch {
	case errors.Is(err, unix.ENOTCONN), err == nil && isDeadMount(path):
		return ErrDeadMount
	case err != nil:
		return err
	case uint32(st.Mode)&unix.S_IFMT != unix.S_IFDIR:
		return ErrNotDirectory
	case st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
		return ErrBusyMountpoint
	}
	return nil
}

// isDeadMount reports whether path is in a FUSE mount whose server is gone.
// statfs(2) always asks the server; stat(2) may be answered from the cache.
func isDeadMount(path string) bool {
	var st unix.Statfs_t
	return errors.Is(unix.Statfs(path, &st), unix.ENOTCONN)
}

// removeHalfMount clears what is left when the kernel was mounted to and then not
// answered: a mount whose server is gone.
func removeHalfMount(path string, direct bool) error {
	if !isDeadMount(path) {
		return nil
	}
	if direct {
		return unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	return runFusermount("-u", "-z", path)
}
