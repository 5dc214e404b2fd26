package bundle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// UmountOptions of Umount.
type UmountOptions struct {
	Lazy    bool // detach at once; the daemon ends when the last user does
	Discard bool // throw the changes away
	// Alone says that nobody of another mount namespace is to use the mount. One that was
	// made meanwhile, for whatever purpose, has a copy of each mount, which would keep
	// the daemon for as long as it lasts.
	Alone bool
}

// aloneWait is how long a daemon may take to end by itself where it is to be alone.
const aloneWait = 300 * time.Millisecond

// daemonEnd is how long Umount waits for the daemon after the kernel let go.
const daemonEnd = 30 * time.Second

// Umount unmounts a bundle and waits for its daemon's end. *BusyError names who
// keeps it from that; nothing has changed then.
func Umount(ctx context.Context, bundle string, opt UmountOptions) (err error) {
	d, err := openDir(bundle)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if _, err := readState(d.path); err != nil {
		return err
	}
	mounted, err := isMounted(d.path)
	if err != nil {
		return err
	}
	point := rootfsOf(d.path)
	e, err := mountAt(point)
	if err != nil {
		return err
	}
	if e == nil && !mounted {
		if opt.Discard {
			return d.discard()
		}
		return fmt.Errorf("%s: %w", d.path, ErrNotMounted)
	}
	switch {
	case opt.Alone && mounted:
		err = d.endAlone(ctx, e)
	case e != nil:
		if mounted && !opt.Lazy {
			err = d.checkEntered(e)
		}
		if err == nil {
			err = unmount(e, opt.Lazy || !mounted)
		}
	case !opt.Lazy:
		err = d.mountedElsewhere()
	}
	if err != nil {
		return err
	}
	if !opt.Lazy {
		if err := waitUnlocked(ctx, d.state(mountedName)); err != nil {
			return err
		}
	}
	if opt.Discard {
		return d.discard()
	}
	return nil
}

// endAlone unmounts, and ends the daemon if it does not end by itself: all that was
// acknowledged is in the upper directory.
func (d *dir) endAlone(ctx context.Context, e *mountEntry) error {
	if e != nil {
		if err := flushMount(d.path, slog.New(slog.DiscardHandler)); err != nil {
			return err
		}
		if err := unmount(e, false); err != nil {
			return err
		}
	}
	short, cancel := context.WithTimeout(ctx, aloneWait)
	defer cancel()
	err := waitUnlocked(short, d.state(mountedName))
	if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	st, conn, err := controlCall(d.path, "status")
	if err != nil {
		return nil //nolint:nilerr // it ends: that is waited for
	}
	return errors.Join(conn.Close(), unix.Kill(st.PID, unix.SIGKILL))
}

// mountedElsewhere says who serves a bundle whose mount this mount namespace does not
// have; nil where the daemon is about to end.
func (d *dir) mountedElsewhere() error {
	st, conn, err := controlCall(d.path, "status")
	if err != nil {
		return nil //nolint:nilerr // it ends: that is waited for
	}
	if err := conn.Close(); err != nil {
		return err
	}
	return fmt.Errorf("%s is mounted in another mount namespace, as by exec: end the programs there, or the daemon, process %d: %w",
		d.path, st.PID, ErrBusy)
}

// discard removes the changes; the next mount starts from the image.
func (d *dir) discard() error {
	if isRaw(d.path) { // there is nothing else to it
		if err := os.RemoveAll(d.path); err != nil {
			return fmt.Errorf("throw away changes: %w", err)
		}
		return nil
	}
	for _, name := range []string{upperName, workName} {
		if err := os.RemoveAll(d.file(name)); err != nil {
			return fmt.Errorf("throw away changes: %w", err)
		}
	}
	return nil
}

// unmount asks the kernel. It flushes what is cached first.
func unmount(e *mountEntry, lazy bool) error {
	var err error
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		err = unix.Unmount(e.Point, flags)
	} else {
		err = fusermountUnmount(e.Point, lazy)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY):
		return &BusyError{Path: e.Point, Holders: findHolders(e)}
	}
	return fmt.Errorf("unmount %s: %w", e.Point, err)
}

// fusermountUnmount unmounts as a plain user.
func fusermountUnmount(point string, lazy bool) error {
	args := []string{"-u", "-q", point}
	if lazy {
		args = append([]string{"-z"}, args...)
	}
	for _, name := range []string{"fusermount3", "fusermount"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		out, err := exec.Command(path, args...).CombinedOutput()
		if err == nil {
			return nil
		}
		if e, merr := mountAt(point); merr == nil && e != nil && !lazy {
			return fmt.Errorf("%s: %w", name, unix.EBUSY)
		}
		return fmt.Errorf("%s: %s: %w", name, strings.TrimSpace(string(out)), err)
	}
	return errors.New("fusermount3 not found: install the fuse3 package")
}

// waitUnlocked waits until no process holds the lock file.
func waitUnlocked(ctx context.Context, name string) error {
	deadline := time.Now().Add(daemonEnd)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		held, err := isMounted(filepath.Dir(filepath.Dir(name)))
		if err != nil || !held {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w did not end within %v of the unmount", ErrDaemon, daemonEnd)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}
