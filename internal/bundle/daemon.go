package bundle

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/fusefs"
	"github.com/umoci-mount/umoci-mount/internal/sys"
	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// RunDaemon is the hidden command: it serves the bundle's mount until it is
// unmounted, and tells whoever started it when it is ready.
func RunDaemon(ctx context.Context, bundle string, args ...string) error {
	ready := os.NewFile(readyFD, "ready")
	if ready == nil {
		return errors.New("the command is for the program's own use")
	}
	unix.CloseOnExec(readyFD)
	// From the beginning: a process that is killed with the mount made leaves it, dead.
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
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
	unix.CloseOnExec(bundleFD)
	d, err := newDir(bundle, os.NewFile(bundleFD, bundle))
	if err == nil {
		err = serve(ctx, d, serveOptions{
			log: log, ready: func() { tell(readyAnswer{}) }, ownFace: slices.Contains(args, lifelineArg), ownDaemon: true,
			fresh:   slices.Contains(args, freshArg),
			confine: os.Geteuid() == 0, // a plain user's runs fusermount3 at the end
		})
	}
	if err != nil {
		tell(newAnswer(err))
	}
	return err
}

// serveOptions of serve.
type serveOptions struct {
	log   *slog.Logger
	ready func() // called when the tree is live; may be nil
	// ownFace shows owners as a new mount without options does, whatever the bundle's
	// own mount shows.
	ownFace bool
	// fresh serves the bundle's stage, which is published when the tree is live.
	fresh bool
	// ownDaemon says that the standard error is the bundle's log, to be left at the end,
	// and the bundle's directory to be closed.
	ownDaemon bool
	// confine says that this process serves the mount and does nothing else: once the
	// tree is live it is refused all that takes more.
	confine bool
}

// server is everything a mount's process holds.
type server struct {
	dir   *dir
	stage *dir     // what becomes the bundle when the tree is live; nil: it is it
	point string   // the mountpoint's path, as it was
	under *os.File // the mountpoint's own directory
	log   *slog.Logger
	state *State
	held  *os.File // "mounted", locked
	lower lowerTree
	fs    *overlay.FS
	fuse  *fusefs.Server
}

// ballast is counted by the garbage collector as in use, and never touched, so that it
// takes no memory: garbage is collected after each (live + ballast) × gcPercent / 100 bytes
// of it, where a server with little in use would do that several times in a second.
const (
	ballast   = 16 << 20
	gcPercent = 50
)

// serve mounts a bundle as its state says and serves it until it is unmounted, ctx ends,
// or the bundle is removed.
func serve(ctx context.Context, d *dir, opt serveOptions) (err error) {
	unix.Umask(0) // modes are the callers'
	debug.SetGCPercent(gcPercent)
	weight := make([]byte, ballast)
	defer runtime.KeepAlive(weight)
	s := &server{dir: d, point: d.point(), log: opt.log}
	defer func() {
		err = errors.Join(err, s.close())
		if opt.ownDaemon {
			err = errors.Join(err, d.close())
			if err != nil {
				s.log.Error("mount ended", "error", err)
			}
			leaveLog()
		}
		if s.held != nil { // last: whoever waits for the daemon's end waits for this
			err = errors.Join(err, unlock(s.held))
		}
	}()
	if opt.fresh {
		if s.stage, err = d.openStage(); err != nil {
			return err
		}
	}
	if err := s.open(ctx, opt.ownFace); err != nil {
		return err
	}
	if err := s.mount(); err != nil {
		return err
	}
	started := time.Now()
	control := &controlServer{
		log: s.log, freeze: s.fs.Freeze,
		owner: s.owner, edit: (&editing{fs: s.fs, told: s.fuse}).apply,
		unmount: func() error { return d.unmountPoint(s.point, false) },
		status: func() DaemonStatus {
			return DaemonStatus{PID: os.Getpid(), Started: started, Requests: s.fuse.Stats(), Resources: resources()}
		},
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.fuse.Serve()
	}()
	stop, rested := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(rested)
		s.restWhenIdle(stop)
	}()
	defer func() { // before the tree is closed
		close(stop)
		<-rested
	}()
	if err := d.listenControl(control); err != nil {
		return errors.Join(err, s.detach(done))
	}
	defer control.listener.Close()
	// Last, so that a mount that failed leaves nothing in the layout.
	if err := s.holdImage(ctx); err != nil {
		return errors.Join(err, s.detach(done))
	}
	if s.stage != nil {
		if err := d.publish(s.stage); err != nil {
			return errors.Join(err, s.detach(done))
		}
	}
	if opt.confine {
		if err := sys.Confine(); err != nil {
			s.log.Info("the daemon is not confined", "cause", err)
		}
	}
	s.log.Info("mounted", "bundle", d.path, "image", s.state.Manifest.Digest.String(), "pid", os.Getpid())
	if opt.ready != nil {
		opt.ready()
	}
	err = s.wait(ctx, done)
	s.log.Info("unmounted", "bundle", d.path)
	return err
}

// restTick is how long a mount is left alone before its daemon gives memory back.
const restTick = 2 * time.Second

// restWhenIdle gives back what a burst of requests has left in memory once it is over:
// the pages of the tree's file, which are the page cache's, and garbage. stop ends it.
func (s *server) restWhenIdle(stop <-chan struct{}) {
	tick := time.NewTicker(restTick)
	defer tick.Stop()
	for last, resting := s.fuse.Requests(), false; ; {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		switch now := s.fuse.Requests(); {
		case now != last:
			last, resting = now, false
		case !resting:
			resting = true
			if err := s.lower.Unload(); err != nil {
				s.log.Warn("give memory back", "error", err)
			}
			debug.FreeOSMemory()
		}
	}
}

// owner is whose an inode is, in the image's ids.
func (s *server) owner(ino overlay.Ino) (overlay.Owner, error) {
	a, err := s.fs.GetAttr(ino)
	return a.Image, err
}

// wait returns when the mount has ended.
func (s *server) wait(ctx context.Context, done <-chan struct{}) (err error) {
	watch, err := watchRemoval(s.dir, s.held)
	if err != nil {
		return errors.Join(err, s.detach(done))
	}
	defer func() { err = errors.Join(err, watch.stop()) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.log.Info("asked to end", "cause", context.Cause(ctx))
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
	at, name := s.dir.pointAt()
	if now, serr := at.stat(name); serr != nil || !s.isMountpoint(now) {
		return err // gone; what has its name now is another's
	}
	if rerr := at.rmdir(name); rerr != nil && !errors.Is(rerr, unix.ENOENT) {
		err = errors.Join(err, rerr)
	}
	return err
}

// isMountpoint reports whether a directory is the one that was mounted on.
func (s *server) isMountpoint(now unix.Stat_t) bool {
	var was unix.Stat_t
	return unix.Fstat(int(s.under.Fd()), &was) == nil && was.Dev == now.Dev && was.Ino == now.Ino
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
	err := s.dir.unmountPoint(s.point, true)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// open opens all that the mount is made of.
func (s *server) open(ctx context.Context, ownFace bool) (err error) {
	from := cmp.Or(s.stage, s.dir)
	if s.state, err = from.readState(); err != nil {
		return err
	}
	if o := &s.state.Options; ownFace {
		o.IDs, o.Squash, o.UIDMap, o.GIDMap = IDsDefault, false, nil, nil
	}
	if s.held, err = s.dir.holdMounted(); err != nil {
		return err
	}
	if err := s.lower.openState(ctx, s.state, "", s.log); err != nil {
		return err
	}
	if s.fs, err = from.openOverlay(s.lower.Image, &s.state.Options, false, s.log); err != nil {
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
	release, err := holdFor(ctx, s.lower.layout, s.dir.path, s.state.Manifest)
	if err != nil {
		return err
	}
	err = s.lower.unpin()
	s.lower.unpin = release
	return err
}

// close ends all but the lock of the mount.
func (s *server) close() error {
	var errs []error
	if s.fs != nil {
		errs = append(errs, s.fs.Close())
	}
	errs = append(errs, s.lower.Close())
	if s.stage != nil {
		errs = append(errs, s.stage.close())
	}
	if s.under != nil {
		errs = append(errs, s.under.Close())
	}
	return errors.Join(errs...)
}

// leaveLog lets go of the log, which keeps the bundle's file system busy.
func leaveLog() {
	null, err := unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // it is busy until the process ends, which is soon
	}
	for _, fd := range []int{1, 2} {
		_ = unix.Dup3(null, fd, 0) // likewise
	}
	_ = unix.Close(null)
}
