package bundle

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/fusefs"
)

// checkMeans fails, before all the work, for what the daemon would fail for after it.
func (m *mounting) checkMeans() error {
	root := os.Geteuid() == 0
	err := fusefs.CheckMeans(&fusefs.Options{DirectMount: root, AllowOther: root || m.opt.State.AllowOther})
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.dir.point(), err)
	}
	return nil
}

// mount mounts on the bundle's directory. Root does so on what is open, whatever becomes of
// its name. What belongs to another user, who can get into it, must not lend that user the
// set-id programs and devices of an image of his choice.
func (s *server) mount() (err error) {
	o := &s.state.Options
	root := os.Geteuid() == 0
	if s.under, err = s.dir.openPoint(); err != nil {
		return err
	}
	var owner unix.Stat_t
	if err := unix.Fstat(int(s.dir.top.fd.Fd()), &owner); err != nil {
		return &os.PathError{Op: "stat", Path: s.dir.path, Err: err}
	}
	at, name := s.dir.pointAt()
	path := s.point
	if root { // fusermount3 knows nothing of our descriptors, and is the user's own
		path = at.path(name)
	}
	s.fuse, err = fusefs.Mount(s.fs, path, fusefs.Options{
		AllowOther: root || o.AllowOther, ReadOnly: o.ReadOnly, FSName: "umoci-mount",
		Log: s.log, Debug: o.Debug, Sleepy: o.IdleSleep,
		DirectMount: root, On: s.under, Untrusted: owner.Uid != 0,
		// The kernel's own reads change access times.
		Passthrough: root && o.Passthrough && !o.ReadOnly,
		// A plain user alone may do all with the tree, as the image's root: the
		// server decides. Whoever else is let in is checked by the kernel.
		DefaultPermissions: root || o.AllowOther,
	})
	if cause := errors.Unwrap(err); root && cause != nil {
		return fmt.Errorf("mount %s: %w", s.point, cause)
	}
	if err == nil && root && owner.Uid != 0 {
		s.log.Info("the bundle is another user's: set-id programs and devices do not work", "user", owner.Uid)
	}
	return err
}
