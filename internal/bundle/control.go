package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/fusefs"
	"github.com/umoci-mount/umoci-mount/internal/sys"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// The control socket speaks one JSON object a line. A freeze lasts until the
// connection that asked for it ends, so that a client that dies thaws the mount.
type controlRequest struct {
	Op   string `json:"op"`             // "status", "freeze", "edit", "owner", "unmount"
	Edit *Edit  `json:"edit,omitempty"` // of "edit"; of "owner" its Ino
}

// DaemonStatus is what a daemon says of itself.
type DaemonStatus struct {
	PID      int               `json:"pid"`
	Started  time.Time         `json:"started,omitzero"`
	Requests map[string]uint64 `json:"requests,omitempty"` // FUSE requests by opcode
	Resources
	Error string         `json:"error,omitempty"`
	Owner *overlay.Owner `json:"owner,omitempty"` // of "owner", in the image's ids
	Errno int            `json:"errno,omitempty"` // of an edit or an unmount that failed
	Kind  int            `json:"kind,omitempty"`  // of an edit that failed, see readyAnswer
}

// maxFreeze bounds how long a client can hold the writers of a mount.
const maxFreeze = 10 * time.Minute

// acceptPause is how long the control socket is left alone where no connection can be
// taken, for want of descriptors or memory.
const acceptPause = 50 * time.Millisecond

// controlServer answers on the control socket of a mount.
type controlServer struct {
	listener net.Listener
	log      *slog.Logger
	status   func() DaemonStatus
	freeze   func() (thaw func())
	edit     func(*Edit) error
	owner    func(overlay.Ino) (overlay.Owner, error)
	unmount  func() error
}

// listenControl opens the control socket. It is reached through its directory's
// descriptor, which also keeps its path short: one in sockaddr_un has 108 bytes at most.
func (d *dir) listenControl(s *controlServer) (err error) {
	if err := d.inner.remove(controlName); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open control socket: %w", err)
	}
	// The socket's mode is that of the file that bind(2) makes (unix_bind_bsd).
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	if s.listener, err = private.Listen(context.Background(), "unix", d.inner.path(controlName)); err != nil {
		return fmt.Errorf("open control socket: %w", err)
	}
	go s.serve()
	return nil
}

func (s *controlServer) serve() {
	for {
		conn, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return // at the end of the daemon
		}
		if err != nil {
			s.log.Debug("control connection", "error", err)
			time.Sleep(acceptPause)
			continue
		}
		go func() {
			if err := s.answer(conn); err != nil {
				s.log.Debug("control connection", "error", err)
			}
		}()
	}
}

func (s *controlServer) answer(conn net.Conn) (err error) {
	defer func() { err = errors.Join(err, conn.Close()) }()
	dec, enc := json.NewDecoder(conn), json.NewEncoder(conn)
	for {
		var req controlRequest
		if err := dec.Decode(&req); err != nil {
			return nil //nolint:nilerr // the client is gone: that ends what it asked for
		}
		switch req.Op {
		case "status":
			err = enc.Encode(s.status())
		case "freeze":
			thaw := s.freeze()
			defer thaw()
			if err := conn.SetDeadline(time.Now().Add(maxFreeze)); err != nil {
				return err
			}
			err = enc.Encode(s.status())
		case "edit":
			err = enc.Encode(s.edited(req.Edit))
		case "owner":
			err = enc.Encode(s.ownerOf(req.Edit))
		case "unmount":
			err = enc.Encode(s.unmounted())
		default:
			err = enc.Encode(DaemonStatus{Error: fmt.Sprintf("unknown request %q", req.Op)})
		}
		if err != nil {
			return err
		}
	}
}

// edited makes a change, and says how that went.
func (s *controlServer) edited(c *Edit) DaemonStatus {
	if c == nil {
		return DaemonStatus{Error: "no change in the request"}
	}
	if err := s.edit(c); err != nil {
		st := DaemonStatus{Error: err.Error(), Errno: int(fusefs.Errno(err))}
		if errors.Is(err, ErrUser) {
			st.Errno, st.Kind = 0, newAnswer(err).Kind
		}
		return st
	}
	return DaemonStatus{}
}

// unmounted asks the kernel for the end of the mount.
func (s *controlServer) unmounted() (st DaemonStatus) {
	if err := s.unmount(); err != nil {
		st.Error = err.Error()
		var errno unix.Errno
		if errors.As(err, &errno) {
			st.Errno = int(errno)
		}
	}
	return st
}

// ownerOf says whose an inode is.
func (s *controlServer) ownerOf(e *Edit) DaemonStatus {
	if e == nil {
		return DaemonStatus{Error: "no inode in the request"}
	}
	owner, err := s.owner(overlay.Ino(e.Ino))
	if err != nil {
		return DaemonStatus{Error: err.Error(), Errno: int(fusefs.Errno(err))}
	}
	return DaemonStatus{Owner: &owner}
}

// controlCall asks a mount's daemon. The connection stays open for the caller.
func (d *dir) controlCall(op string) (DaemonStatus, net.Conn, error) {
	var st DaemonStatus
	conn, err := d.dialControl()
	if err != nil {
		return st, nil, fmt.Errorf("reach the mount daemon: %w", err)
	}
	limit := 5 * time.Second
	if op == "freeze" || op == "unmount" {
		limit = time.Minute // changes under way come first
	}
	err = conn.SetDeadline(time.Now().Add(limit))
	if err == nil {
		if err = json.NewEncoder(conn).Encode(controlRequest{Op: op}); err == nil {
			err = json.NewDecoder(conn).Decode(&st)
		}
	}
	if err == nil && st.Error != "" {
		err = errors.New(st.Error)
	}
	if err != nil {
		return st, nil, errors.Join(fmt.Errorf("ask the mount daemon: %w", err), conn.Close())
	}
	return st, conn, nil
}

// dialControl connects to the control socket. No symlink leads to another.
func (d *dir) dialControl() (net.Conn, error) {
	if d.inner.none() {
		return nil, d.notBundle()
	}
	at, err := d.inner.open(controlName, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	conn, err := net.DialTimeout("unix", sys.ProcPath(int(at.Fd()), ""), 2*time.Second)
	if cerr := at.Close(); err == nil && cerr != nil {
		err = errors.Join(cerr, conn.Close())
	}
	return conn, err
}

// listenerOf is the process that made the socket at the other end.
func listenerOf(conn net.Conn) (pid int, err error) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid, errors.Join(err, cerr)
}
