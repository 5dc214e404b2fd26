package bundle

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/fusefs"
	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// openOverlay joins the lower tree and the bundle's upper. What is read only is in the
// image's ids, as a repack takes it.
func (d *dir) openOverlay(lower *layer.Image, o *StateOptions, readOnly bool, log *slog.Logger) (*overlay.FS, error) {
	opt := overlay.Options{ReadOnly: readOnly, Log: log}
	if !readOnly {
		o.show(&opt)
	}
	return d.joinUpper(lower, o, opt)
}

// joinUpper is openOverlay with other options.
func (d *dir) joinUpper(lower *layer.Image, o *StateOptions, opt overlay.Options) (*overlay.FS, error) {
	upper, err := d.top.folder(upperName)
	if err != nil {
		return nil, fmt.Errorf("open upper directory: %w", err)
	}
	defer upper.close()
	work, err := d.top.folder(workName)
	if err != nil {
		return nil, fmt.Errorf("open work directory: %w", err)
	}
	defer work.close()
	u, err := overlay.OpenUpper(overlay.UpperOptions{
		Upper: upper.fd, Work: work.fd, Rootless: o.Rootless, Volatile: o.Volatile, KeepAtime: opt.ReadOnly || o.ReadOnly,
	})
	if err != nil {
		return nil, err
	}
	tree, err := overlay.New(lower, u, opt)
	if err != nil {
		return nil, errors.Join(err, u.Close())
	}
	return tree, nil
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
