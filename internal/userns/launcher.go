package userns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
	"github.com/umoci-mount/umoci-mount/internal/notify"
)

// launcher is the process between the caller's namespaces and the program's.
type launcher struct {
	spec spec
	log  *slog.Logger
	life *os.File // its end ends the daemon of a mount that is the launcher's
	made *madePoints

	end  context.CancelCauseFunc
	mu   sync.Mutex
	init *json.Encoder // to the init, when that has its spec; protected by mu
	last unix.Signal   // that was passed on; protected by mu
}

// pass passes a signal on to the program, or ends what is done before there is one.
func (l *launcher) pass(s unix.Signal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.init == nil {
		l.end(signalled{s})
		return
	}
	l.last = s
	_ = l.init.Encode(int(s)) // it has ended else
}

// passed is the signal that was passed on last; 0 for none.
func (l *launcher) passed() unix.Signal {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// passTo lets pass do so from now on.
func (l *launcher) passTo(init *json.Encoder) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.init = init
}

// launcherMain is the launcher's process. Its standard files are the program's.
func launcherMain() int {
	catch() // what a terminal sends comes from the parent too
	conn, err := parentConn()
	if err != nil {
		fmt.Fprintln(os.Stderr, "run in bundle:", err)
		return 1
	}
	l := &launcher{log: slog.New(slog.DiscardHandler)}
	dec := json.NewDecoder(conn)
	if err := dec.Decode(&l.spec); err != nil {
		return 1 // the parent is gone, or has not got the ids
	}
	if l.spec.Debug {
		l.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	l.end = cancel
	go func() {
		hear(dec, l.pass)
		cancel(errors.New("the parent process has ended"))
	}()
	code, err := l.run(ctx)
	var early signalled
	if errors.As(context.Cause(ctx), &early) {
		code, err = codeSignal+int(early.Signal), nil
	}
	r := report{Exit: code}
	if err != nil {
		r.Error, r.Kind = bundle.TellError(err)
	}
	if err := json.NewEncoder(conn).Encode(&r); err != nil {
		return 1
	}
	return 0
}

// parentConn is the connection to the parent.
func parentConn() (net.Conn, error) {
	f := os.NewFile(parentFD, "parent")
	if f == nil {
		return nil, errors.New("the command is for the program's own use")
	}
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("the command is for the program's own use: %w", err)
	}
	return conn, nil
}

// run does all: it mounts, makes mountpoints, starts the init and supervises it, and
// takes away what it made.
func (l *launcher) run(ctx context.Context) (code int, err error) {
	if l.spec.Mount {
		// Unmounts elsewhere come here too, as far as mounts are shared: else this
		// namespace would keep what others unmount from ending.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return 0, l.spec.explainMount(fmt.Errorf("keep mounts apart: %w", err))
		}
		if err := l.mount(ctx); err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, l.unmount()) }()
	}
	hold, err := bundle.HoldEntered(l.spec.Bundle)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, hold.Close()) }()
	var st unix.Stat_t
	if err := unix.Stat(l.spec.Rootfs, &st); err != nil {
		return 0, &os.PathError{Op: "run in bundle: look at", Path: l.spec.Rootfs, Err: err}
	}
	l.made, err = makePoints(l.spec.Rootfs, l.spec.Tmpfs, hold)
	if err != nil {
		return 0, err
	}
	defer func() {
		if rerr := l.made.remove(); !errors.Is(rerr, unix.ENOTCONN) { // without a daemon, that is what is told
			err = errors.Join(err, rerr)
		}
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if err := bundle.AwaitEnd(ctx, l.spec.Bundle); err == nil {
			cancel(fmt.Errorf("%w ended while a program used the mount", bundle.ErrDaemon))
		}
	}()
	return l.runInit(ctx, st.Dev)
}

// mount mounts the bundle in this mount namespace.
func (l *launcher) mount(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("run in bundle: %w", err)
	}
	l.life = w
	err = bundle.Resume(ctx, l.spec.Bundle, r, l.log)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return errors.Join(err, w.Close())
	}
	return nil
}

func (l *launcher) unmount() error {
	err := bundle.Umount(context.Background(), l.spec.Bundle, bundle.UmountOptions{})
	return errors.Join(err, l.life.Close())
}

// runInit starts the init, and returns when it and everything below it has ended.
func (l *launcher) runInit(ctx context.Context, device uint64) (int, error) {
	conn, theirs, err := socketPair()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	cmd := exec.Command("/proc/self/exe", InitCommand, l.spec.Bundle)
	cmd.Args[0] = "umoci-mount"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	if l.spec.Network == NetworkNone {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	err = cmd.Start()
	if cerr := theirs.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return 0, fmt.Errorf("run in bundle: start in namespaces: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	var r report
	supervised := func() error { return nil }
	enc := json.NewEncoder(conn)
	if err = enc.Encode(&l.spec); err == nil {
		l.passTo(enc)
	}
	if err == nil && l.spec.Filter != noFilter {
		supervised, err = l.supervise(conn, device)
	}
	if err == nil || errors.Is(err, errNoListener) {
		err = json.NewDecoder(conn).Decode(&r)
	}
	if err != nil {
		_ = cmd.Process.Kill()
	}
	werr := cmd.Wait()
	serr := supervised()
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case r.Error != "":
		return r.Exit, bundle.ToldError(r.Error, r.Kind)
	case err != nil && l.passed() != 0: // it had it from a terminal, as it began
		return codeSignal + int(l.passed()), serr
	case err != nil:
		return 0, fmt.Errorf("run in bundle: the init process ended (%v): %w", werr, err)
	}
	return r.Exit, serr
}

// errNoListener: the init said something else than was waited for.
var errNoListener = errors.New("no filter")

// supervise takes the listener from the init and serves it; wait returns when no
// process with the filter is left.
func (l *launcher) supervise(conn net.Conn, device uint64) (wait func() error, err error) {
	none := func() error { return nil }
	listener, err := receiveFile(conn)
	if err != nil {
		return none, err
	}
	tree, err := openTree(l.spec.Bundle)
	if err != nil {
		return none, errors.Join(err, listener.Close())
	}
	ended := make(chan error, 1)
	go func() {
		err := notify.Serve(listener, notify.Options{Tree: tree, Device: device, Log: l.log})
		ended <- errors.Join(err, listener.Close(), tree.close())
	}()
	return func() error { return <-ended }, nil
}

// sendFile passes a file on a connection, behind one byte.
func sendFile(conn net.Conn, f *os.File) error {
	_, _, err := conn.(*net.UnixConn).WriteMsgUnix([]byte{'F'}, unix.UnixRights(int(f.Fd())), nil)
	if err != nil {
		return fmt.Errorf("pass a file: %w", err)
	}
	return nil
}

// receiveFile takes a file that sendFile passed. errNoListener: what came first was no
// such byte, but '-', and a report follows.
func receiveFile(conn net.Conn) (*os.File, error) {
	buf, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(buf, oob)
	switch {
	case err != nil:
		return nil, fmt.Errorf("take the filter: %w", err)
	case n == 1 && buf[0] == '-':
		return nil, errNoListener
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("take the filter: %d messages: %w", len(messages), errors.Join(err, io.ErrUnexpectedEOF))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("take the filter: %d files: %w", len(fds), errors.Join(err, io.ErrUnexpectedEOF))
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "seccomp listener"), nil
}
