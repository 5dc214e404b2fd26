package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/fusefs"
	"github.com/umoci-mount/umoci-mount/internal/sys"
	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// DaemonCommand is the name of the hidden command that serves a mount: argv[1] of
// the process that startDaemon starts; argv[2] is the bundle's path. Descriptor 3 is the
// pipe on which it says that it is ready, or why not (readyAnswer); 4 is the bundle's
// directory, which may have another path by then.
const DaemonCommand = "serve-mount"

const (
	readyFD  = 3
	bundleFD = 4
)

// maxLog is the size in bytes above which a new daemon starts its log anew.
const maxLog = 4 << 20

// Arguments that may follow the bundle's path. With lifelineArg there is lifelineFD, a pipe
// that nobody writes to: the daemon ends when the other end is closed. freshArg is
// serveOptions.fresh.
const (
	lifelineFD  = 5
	lifelineArg = "lifeline"
	freshArg    = "fresh"
)

// startDaemon starts the process that serves the bundle's mount, or its stage, and returns
// when the tree is live. lifeline may be nil.
func startDaemon(ctx context.Context, d *dir, fresh bool, lifeline *os.File) (err error) {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDaemon, err)
	}
	log, err := d.openLog()
	if err != nil {
		return err
	}
	defer log.Close()
	logged := sizeOf(log)
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDaemon, err)
	}
	defer r.Close()
	// A caller's descriptors must not live on in the daemon: who waits for a pipe
	// to close would wait for the mount to end.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) {
		return errors.Join(fmt.Errorf("%w: %w", ErrDaemon, err), w.Close())
	}
	cmd := exec.Command(exe, DaemonCommand, d.path)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w, d.top.fd}
	if lifeline != nil { // the mount is one program's, see Resume
		cmd.Args = append(cmd.Args, lifelineArg)
		cmd.ExtraFiles = append(cmd.ExtraFiles, lifeline)
	}
	if fresh {
		cmd.Args = append(cmd.Args, freshArg)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = startConfined(cmd)
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDaemon, err)
	}
	unlimitFileSize(cmd.Process.Pid)
	answer, err := readAnswer(ctx, r)
	if err == nil && answer.Error == "" {
		return cmd.Process.Release()
	}
	if ctx.Err() != nil {
		_ = cmd.Process.Signal(syscall.SIGTERM)
	}
	werr := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		return answer.err()
	}
	return fmt.Errorf("%w ended before it was ready (%v)%s", ErrDaemon, werr, d.loggedSince(logged))
}

// daemonCapabilities are those that root's daemon keeps: to make and change files of
// any owner in the upper directory, and to mount, to unmount, to register backing
// files and to write trusted.* attributes (CAP_SYS_ADMIN).
var daemonCapabilities = []int{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID,
	unix.CAP_MKNOD, unix.CAP_SETFCAP, unix.CAP_SYS_ADMIN,
}

// startConfined starts root's daemon without the capabilities it has no use for, and
// without means to get any. A plain user's has none, and needs fusermount3's.
func startConfined(cmd *exec.Cmd) error {
	if os.Geteuid() != 0 {
		return cmd.Start()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := sys.KeepCapabilities(daemonCapabilities...)
		if errors.Is(err, unix.EPERM) {
			err = nil // no CAP_SETPCAP: this process is confined already
		}
		if err == nil {
			err = cmd.Start()
		}
		done <- err
	}()
	return <-done
}

// unlimitFileSize lifts, of a process that is to serve a mount (0: this one), the limit on
// the length of files (RLIMIT_FSIZE) that whoever mounts has, as far as it can: the kernel
// holds each program that writes to its own (generic_write_checks).
func unlimitFileSize(pid int) {
	none := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if unix.Prlimit(pid, unix.RLIMIT_FSIZE, &none, nil) == nil {
		return
	}
	var own unix.Rlimit
	if unix.Prlimit(pid, unix.RLIMIT_FSIZE, nil, &own) == nil {
		_ = unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: own.Max, Max: own.Max}, nil)
	}
}

// readyAnswer is what a daemon says when its mount is live, or why it is not.
type readyAnswer struct {
	Error string `json:"error,omitempty"`
	Kind  int    `json:"kind,omitempty"` // 1 + index in daemonErrors; 0: none of them
}

// daemonErrors are the errors of a daemon that whoever started it tells apart.
var daemonErrors = []error{
	fusefs.ErrNoFuseDevice, fusefs.ErrNoFusermount, fusefs.ErrNotSetuid, fusefs.ErrAllowOther,
	fusefs.ErrMountMax, fusefs.ErrMayNotMount,
	fusefs.ErrBusyMountpoint, fusefs.ErrDeadMount, fusefs.ErrNotDirectory, overlay.ErrUnsuitable,
	ErrMounted, ErrNotBundle, ErrUser, cas.ErrNotLayout, cas.ErrBlobNotFound,
	ErrSymlink, layer.ErrDigest, layer.ErrDiffID, layer.ErrFormat, layer.ErrUnsupported,
	unix.ENOSPC, unix.EDQUOT, unix.EROFS, fs.ErrPermission, fs.ErrNotExist,
}

func newAnswer(err error) readyAnswer {
	a := readyAnswer{Error: err.Error()}
	for i, kind := range daemonErrors {
		if errors.Is(err, kind) {
			a.Kind = i + 1
			break
		}
	}
	return a
}

// daemonError is an error that a daemon told of.
type daemonError struct {
	text string
	kind error // may be nil
}

func (e *daemonError) Error() string { return e.text }

func (e *daemonError) Unwrap() error { return e.kind }

func (a readyAnswer) err() error {
	e := &daemonError{text: a.Error}
	if a.Kind > 0 && a.Kind <= len(daemonErrors) {
		e.kind = daemonErrors[a.Kind-1]
	}
	return e
}

// readAnswer waits for the daemon, or for ctx.
func readAnswer(ctx context.Context, r *os.File) (a readyAnswer, err error) {
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Now()) })
	defer stop()
	err = json.NewDecoder(io.LimitReader(r, 64<<10)).Decode(&a)
	return a, err
}

// openLog opens the log of the mount, to append to it.
func (d *dir) openLog() (*os.File, error) {
	const flags = unix.O_WRONLY | unix.O_APPEND
	f, err := d.inner.lasting(logName, flags)
	if err == nil && isLinked(f) { // another file's content, or a copy's of the bundle: not to be written to
		err = errors.Join(f.Close(), d.inner.remove(logName))
		if err == nil {
			f, err = d.inner.lasting(logName, flags)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open log of the mount: %w", err)
	}
	if sizeOf(f) > maxLog {
		if err := f.Truncate(0); err != nil {
			return nil, errors.Join(fmt.Errorf("open log of the mount: %w", err), f.Close())
		}
	}
	return f, nil
}

func sizeOf(f *os.File) int64 {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0
	}
	return st.Size
}

// maxLogged bounds what an error has of a log, in bytes.
const maxLogged = 1 << 10

// loggedSince is how what a daemon has logged begins, for an error: the log of a first
// mount that fails goes with its bundle.
func (d *dir) loggedSince(size int64) string {
	data, _, err := d.inner.read(logName)
	if err != nil || int64(len(data)) <= size {
		return ""
	}
	data = data[size:]
	return ": " + strings.TrimSpace(string(data[:min(len(data), maxLogged)]))
}

// isLinked reports whether a file has other names.
func isLinked(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) != nil || st.Nlink > 1
}
