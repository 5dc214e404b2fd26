package fusefs

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// Server is one mount. Its process must not touch files in the mount while it
// serves: a request that waits for itself ends only with the connection.
type Server struct {
	ops        *ops
	fuse       *fuse.Server
	mountpoint string // absolute
	direct     bool
	sleepy     bool // Options.Sleepy
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
	if err := checkMeans(&opt); err != nil {
		return nil, fmt.Errorf("mount %s: %w", mountpoint, err)
	}
	o := newOps(fs, opt.Log, opt.Passthrough)
	srv, err := fuse.NewServer(o, path, opt.mountOptions())
	if err != nil {
		err = errors.Join(explainMount(err), removeHalfMount(path, opt.DirectMount))
		return nil, fmt.Errorf("mount %s: %w", mountpoint, err)
	}
	// The mount is live: the kernel queues what is asked before Serve. go-fuse's
	// WaitMount opens a file in it, and a process that is killed while it waits for
	// its own answer can never end (request_wait_answer in fs/fuse/dev.c).
	if opt.DirectMount {
		if err := raiseReadAhead(path); err != nil {
			opt.Log.Debug("read-ahead stays as it is", slog.Any("cause", err))
		}
	}
	return &Server{ops: o, fuse: srv, mountpoint: path, direct: opt.DirectMount, sleepy: opt.Sleepy}, nil
}

// Serve answers requests until the file system is unmounted. It is to be called
// once.
func (s *Server) Serve() {
	if !s.sleepy {
		s.ops.stats.wakeup.start(latencyDevice)
	}
	s.fuse.Serve()
	if err := s.ops.stats.wakeup.stop(); err != nil {
		s.ops.log.Warn("let processors sleep again", slog.Any("error", err))
	}
}

// Unmount takes the mount away and waits for the end of every request.
// ErrBusyMountpoint while it is in use.
func (s *Server) Unmount() error {
	err := s.fuse.Unmount()
	if err == nil {
		return nil
	}
	// fusermount3 has no other way than its message to say so.
	if errors.Is(err, syscall.EBUSY) || strings.Contains(err.Error(), "busy") {
		err = ErrBusyMountpoint
	}
	return fmt.Errorf("unmount %s: %w", s.mountpoint, err)
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
		return unix.Unmount(path, unix.MNT_DETACH)
	}
	return runFusermount("-u", "-z", path)
}
