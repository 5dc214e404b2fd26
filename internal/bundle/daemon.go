package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
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
// the process that startDaemon starts; argv[2] is the bundle. Descriptor 3 is the
// pipe on which it says that it is ready, or why not (readyAnswer).
const DaemonCommand = "serve-mount"

const readyFD = 3

// maxLog is the size in bytes above which a new daemon starts its log anew.
const maxLog = 4 << 20

// lifelineFD is a pipe that nobody writes to, where argv[3] says that there is one
// (lifelineArg): the daemon ends when the other end is closed.
const (
	lifelineFD  = 4
	lifelineArg = "lifeline"
)

// startDaemon starts the process that serves the bundle's mount, and returns when
// the tree is live. lifeline may be nil.
func startDaemon(ctx context.Context, bundle string, lifeline *os.File) (err error) {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDaemon, err)
	}
	log, err := openLog(bundle)
	if err != nil {
		return err
	}
	defer log.Close()
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
	cmd := exec.Command(exe, DaemonCommand, bundle)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{w}
	if lifeline != nil { // the mount is one program's, see Resume
		cmd.Args = append(cmd.Args, lifelineArg)
		cmd.ExtraFiles = append(cmd.ExtraFiles, lifeline)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = startConfined(cmd)
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDaemon, err)
	}
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
	return fmt.Errorf("%w ended before it was ready (%v); its log is %s", ErrDaemon, werr, filepath.Join(bundle, stateDir, logName))
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
	layer.ErrDigest, layer.ErrDiffID, layer.ErrFormat, layer.ErrUnsupported,
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

func openLog(bundle string) (*os.File, error) {
	name := filepath.Join(bundle, stateDir, logName)
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if info, err := os.Stat(name); err == nil && info.Size() > maxLog {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of the mount: %w", err)
	}
	return f, nil
}

// RunDaemon is the hidden command: it serves the bundle's mount until it is
// unmounted, and tells whoever started it when it is ready.
func RunDaemon(ctx context.Context, bundle string, args ...string) error {
	ready := os.NewFile(readyFD, "ready")
	if ready == nil {
		return errors.New("the command is for the program's own use")
	}
	unix.CloseOnExec(readyFD)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	told := false
	tell := func(a readyAnswer) {
		if !told {
			told = true
			_ = json.NewEncoder(ready).Encode(a) //nolint:errcheck // nobody waits then
			_ = ready.Close()
		}
	}
	if slices.Contains(args, lifelineArg) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		unix.CloseOnExec(lifelineFD)
		go func() {
			_, _ = os.NewFile(lifelineFD, "lifeline").Read(make([]byte, 1)) // returns at its end
			cancel()
		}()
	}
	err := Serve(ctx, bundle, ServeOptions{
		Log: log, Ready: func() { tell(readyAnswer{}) }, OwnFace: slices.Contains(args, lifelineArg),
	})
	if err != nil {
		log.Error("mount ended", "error", err)
		tell(newAnswer(err))
	}
	return err
}

// ServeOptions of Serve.
type ServeOptions struct {
	Log   *slog.Logger
	Ready func() // called when the tree is live; may be nil
	// OwnFace shows owners as a new mount without options does, whatever the bundle's
	// own mount shows.
	OwnFace bool
}

// server is everything a mount's process holds.
type server struct {
	bundle string
	point  string // the mountpoint; kept, as the bundle may go
	log    *slog.Logger
	state  *State
	held   *os.File // "mounted", locked
	layout *cas.Layout
	unpin  func() error
	cache  *openCache
	lower  *layer.Image
	fs     *overlay.FS
	fuse   *fusefs.Server
}

// Serve mounts a bundle as its state says and serves it until it is unmounted, a
// signal (SIGINT, SIGTERM) asks for the end, or the bundle is removed.
func Serve(ctx context.Context, bundle string, opt ServeOptions) (err error) {
	unix.Umask(0) // modes are the callers'
	debug.SetGCPercent(50)
	s := &server{bundle: bundle, point: rootfsOf(bundle), log: opt.Log}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(ctx, opt.OwnFace); err != nil {
		return err
	}
	if err := s.mount(); err != nil {
		return err
	}
	started := time.Now()
	control := &controlServer{
		log: s.log, freeze: s.fs.Freeze,
		owner: s.owner, edit: (&editing{fs: s.fs, told: s.fuse}).apply,
		status: func() DaemonStatus {
			return DaemonStatus{PID: os.Getpid(), Started: started, Requests: s.fuse.Stats()}
		},
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.fuse.Serve()
	}()
	if err := listenControl(bundle, control); err != nil {
		return errors.Join(err, s.detach(done))
	}
	defer control.listener.Close()
	// Last, so that a mount that failed leaves nothing in the layout.
	if err := s.holdImage(ctx); err != nil {
		return errors.Join(err, s.detach(done))
	}
	s.log.Info("mounted", "bundle", bundle, "image", s.state.Manifest.Digest.String(), "pid", os.Getpid())
	if opt.Ready != nil {
		opt.Ready()
	}
	err = s.wait(ctx, done)
	s.log.Info("unmounted", "bundle", bundle)
	return err
}

// owner is whose an inode is, in the image's ids.
func (s *server) owner(ino overlay.Ino) (overlay.Owner, error) {
	a, err := s.fs.GetAttr(ino)
	return a.Image, err
}

// wait returns when the mount has ended.
func (s *server) wait(ctx context.Context, done <-chan struct{}) (err error) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	defer signal.Stop(signals)
	watch, err := watchRemoval(s.bundle, s.held)
	if err != nil {
		return errors.Join(err, s.detach(done))
	}
	defer func() { err = errors.Join(err, watch.stop()) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	case sig := <-signals:
		s.log.Info("asked to end", "signal", sig.String())
	case <-watch.gone:
		s.log.Warn("the bundle was removed")
		return errors.Join(s.letRemove(), s.abandon(done))
	}
	return s.detach(done)
}

// letRemove makes way for whoever removes the bundle. It may be inside the tree by now,
// and after a deep descent it would not find out of it again: ".." of a detached root is
// the root. So every listing becomes empty, also those that the kernel has kept.
func (s *server) letRemove() error {
	emptied := make(chan struct{})
	go func() {
		defer close(emptied)
		for ino := layer.RootIno; int(ino) <= s.lower.Len(); ino++ {
			if a, err := s.lower.Attr(ino); err == nil && a.Mode&unix.S_IFMT == unix.S_IFDIR {
				s.fuse.ListingChanged(ino)
			}
		}
	}()
	err := s.unmount()
	<-emptied
	return err
}

// removeLater is how long whoever removes a bundle has for its mountpoint.
const removeLater = 500 * time.Millisecond

// abandon ends the mount of a bundle that is being removed, and removes the mountpoint
// where that could not be: who came to it before anything else was gone found it busy.
func (s *server) abandon(done <-chan struct{}) error {
	err := s.detach(done)
	time.Sleep(removeLater)
	if rerr := unix.Rmdir(s.point); rerr != nil && !errors.Is(rerr, unix.ENOENT) {
		err = errors.Join(err, &os.PathError{Op: "rmdir", Path: s.point, Err: rerr})
	}
	return err
}

// detach takes the mount away from every path, and waits a while for the programs
// that still use it. Those that go on after that see ENOTCONN.
func (s *server) detach(done <-chan struct{}) error {
	err := s.unmount()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		s.log.Warn("programs still use the mount")
	}
	return err
}

// unmount takes the mount away from every path. That it is gone already is no error.
func (s *server) unmount() error {
	var err error
	if os.Geteuid() == 0 {
		err = unix.Unmount(s.point, unix.MNT_DETACH)
	} else {
		err = fusermountUnmount(s.point, true)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// open opens all that the mount is made of.
func (s *server) open(ctx context.Context, ownFace bool) (err error) {
	if s.state, err = readState(s.bundle); err != nil {
		return err
	}
	if o := &s.state.Options; ownFace {
		o.IDs, o.Squash, o.UIDMap, o.GIDMap = IDsDefault, false, nil, nil
	}
	name := filepath.Join(s.bundle, stateDir, mountedName)
	if s.held, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return fmt.Errorf("lock mount: %w", err)
	}
	if err := unix.Flock(int(s.held.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%s: %w", s.bundle, ErrMounted)
	}
	if s.layout, err = cas.Open(s.state.Layout); err != nil {
		return err
	}
	if s.unpin, err = s.layout.Pin(); err != nil {
		return err
	}
	o := &s.state.Options
	if s.cache, err = newCache(o.CacheDir, s.log); err != nil {
		return err
	}
	if s.lower, err = s.cache.Open(ctx, sources(ctx, s.layout, s.state.Layers), indexOptions(o, nil)); err != nil {
		return err
	}
	if s.fs, err = openOverlay(s.bundle, s.lower, o, false, s.log); err != nil {
		return err
	}
	s.fs.OnRemoval(func() {
		// Whoever removes the bundle finds an empty directory then, which can be removed.
		if err := s.unmount(); err != nil {
			s.log.Warn("detach from a bundle that is being removed", "error", err)
		}
	})
	return nil
}

// holdImage says in the layout what the mount needs, in place of the pin, which would
// keep gc off for as long as the mount lives.
func (s *server) holdImage(ctx context.Context) error {
	release, err := holdFor(ctx, s.layout, s.bundle, s.state.Manifest)
	if err != nil {
		return err
	}
	err = s.unpin()
	s.unpin = release
	return err
}

// openOverlay joins the lower tree and the bundle's upper.
func openOverlay(bundle string, lower *layer.Image, o *StateOptions, readOnly bool, log *slog.Logger) (*overlay.FS, error) {
	upper, err := os.Open(filepath.Join(bundle, upperName))
	if err != nil {
		return nil, fmt.Errorf("open upper directory: %w", err)
	}
	defer upper.Close()
	work, err := os.Open(filepath.Join(bundle, workName))
	if err != nil {
		return nil, fmt.Errorf("open work directory: %w", err)
	}
	defer work.Close()
	u, err := overlay.OpenUpper(overlay.UpperOptions{Upper: upper, Work: work, Rootless: o.Rootless, Volatile: o.Volatile})
	if err != nil {
		return nil, err
	}
	opt := overlay.Options{ReadOnly: readOnly, Log: log}
	if !readOnly { // what a repack reads is in the image's ids
		o.show(&opt)
	}
	tree, err := overlay.New(lower, u, opt)
	if err != nil {
		return nil, errors.Join(err, u.Close())
	}
	return tree, nil
}

func (s *server) mount() error {
	o := &s.state.Options
	root := os.Geteuid() == 0
	var err error
	s.fuse, err = fusefs.Mount(s.fs, s.point, fusefs.Options{
		AllowOther: root || o.AllowOther, ReadOnly: o.ReadOnly, FSName: "umoci-mount",
		Log: s.log, Debug: o.Debug, Sleepy: o.IdleSleep, DirectMount: root, Passthrough: root && !o.NoPassthrough,
		// A plain user alone may do all with the tree, as the image's root: the
		// server decides. Whoever else is let in is checked by the kernel.
		DefaultPermissions: root || o.AllowOther,
	})
	return err
}

func (s *server) close() error {
	var errs []error
	if s.fs != nil {
		errs = append(errs, s.fs.Close())
	}
	if s.lower != nil {
		errs = append(errs, s.lower.Close())
	}
	if s.cache != nil {
		errs = append(errs, s.cache.close())
	}
	if s.unpin != nil {
		errs = append(errs, s.unpin())
	}
	if s.layout != nil {
		errs = append(errs, s.layout.Close())
	}
	if s.held != nil { // last: whoever waits for the daemon's end waits for this
		errs = append(errs, s.held.Close())
	}
	return errors.Join(errs...)
}
