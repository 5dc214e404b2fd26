package bundle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/fusefs"
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

// unseenWait is the longest wait before another try where nobody is seen to use a mount that
// the kernel says is busy: a file that is closed, or a mount namespace that is made, is not
// done with at once.
const unseenWait = 135 * time.Millisecond

// daemonEnd is how long Umount waits for the daemon after the kernel let go, and copyWait
// how long before it looks for mount namespaces that have a copy of the mount.
const (
	daemonEnd = 30 * time.Second
	copyWait  = time.Second
)

// Umount unmounts a bundle and waits for its daemon's end. *BusyError names who
// keeps it from that; nothing has changed then, but for a mount that programs of other
// mount namespaces use copies of (Copied).
func Umount(ctx context.Context, bundle string, opt UmountOptions) (err error) {
	d, err := openDir(bundle)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if _, err := d.readState(); err != nil {
		return err
	}
	mounted, err := d.isMounted()
	if err != nil {
		return err
	}
	e, err := mountAt(d.point())
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
			err = d.unmount(e, opt.Lazy || !mounted)
		}
	case !opt.Lazy:
		err = d.unmountElsewhere()
	}
	if err != nil {
		return err
	}
	if !opt.Lazy {
		if err := d.endCopied(ctx); err != nil {
			return err
		}
	}
	if opt.Discard {
		return d.discard()
	}
	return nil
}

// endAlone unmounts, and ends the daemon if it does not end by itself.
func (d *dir) endAlone(ctx context.Context, e *mountEntry) error {
	if e != nil {
		if err := d.flushMount(slog.New(slog.DiscardHandler)); err != nil {
			return err
		}
		if err := d.unmount(e, false); err != nil {
			return err
		}
	}
	short, cancel := context.WithTimeout(ctx, aloneWait)
	defer cancel()
	err := d.waitEnd(short)
	if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return d.kill()
}

// mountedElsewhere says who serves a bundle whose mount this mount namespace does not
// have, or not any more; nil where the daemon is about to end.
func (d *dir) mountedElsewhere() error {
	pid, err := d.daemonPID()
	if err != nil || pid == 0 {
		return err
	}
	if its := mountNamespace(procDir(pid)); its != "" && its == mountNamespace("/proc/self") {
		if found, err := d.endCopies(); found || err != nil {
			return err
		}
		return fmt.Errorf("%s was unmounted, but a program still uses the mount, or a copy of it: end that, or the daemon, process %d: %w",
			d.path, pid, ErrBusy)
	}
	return fmt.Errorf("%s is mounted in another mount namespace, as by exec: end the programs there, or the daemon, process %d: %w",
		d.path, pid, ErrBusy)
}

// unmountElsewhere ends a mount that this mount namespace does not have, where none but
// the daemon is in the one that has it: its programs have ended, and nobody can unmount
// it there any more. nil where the daemon is about to end.
func (d *dir) unmountElsewhere() error {
	pid, err := d.daemonPID()
	if err != nil || pid == 0 {
		return err
	}
	table, err := os.ReadFile(filepath.Join(procDir(pid), "mountinfo"))
	ns := mountNamespace(procDir(pid))
	e := topAt(parseMountinfo(table), d.point())
	if err != nil || ns == "" || e == nil { // another process namespace's, or user's
		return d.mountedElsewhere()
	}
	others := holders([]int{pid, os.Getpid()}, func(dir string) string {
		if mountNamespace(dir) == ns {
			return "mount namespace"
		}
		return holdsInNamespace(dir, "", e)
	})
	if len(others) > 0 {
		return &BusyError{Path: e.Point, Holders: others}
	}
	st, conn, err := d.controlCall("unmount")
	switch {
	case err == nil:
		return conn.Close()
	case st.Errno == int(unix.EBUSY):
		return &BusyError{Path: e.Point, Holders: findHolders(e)}
	case st.Error != "":
		return fmt.Errorf("unmount %s: %w", e.Point, err)
	}
	return nil // it ended before it could answer
}

// discard removes the changes; the next mount starts from the image.
func (d *dir) discard() error {
	if err := d.clearUpper(); err != nil || d.rawName() == "" {
		return err
	}
	if err := d.parent.removeAll(filepath.Base(d.path)); err != nil { // there is nothing else to it
		return fmt.Errorf("throw away changes: %w", err)
	}
	return nil
}

// unmount asks the kernel. It flushes what is cached first.
func (d *dir) unmount(e *mountEntry, lazy bool) error {
	err := d.unmountPoint(e.Point, lazy)
	for wait := 5 * time.Millisecond; errors.Is(err, unix.EBUSY); wait *= 3 {
		busy := &BusyError{Path: e.Point, Holders: findHolders(e)}
		if len(busy.Holders) > 0 || wait > unseenWait {
			return busy
		}
		time.Sleep(wait)
		err = d.unmountPoint(e.Point, lazy)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", e.Point, err)
	}
	return nil
}

// unmountPoint takes away what is mounted at the mountpoint, whose path is point.
func (d *dir) unmountPoint(point string, lazy bool) error {
	if os.Geteuid() != 0 {
		return fusermountUnmount(point, lazy)
	}
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	at, name := d.pointAt()
	return unix.Unmount(at.path(name), flags)
}

// fusermountUnmount unmounts as a plain user.
func fusermountUnmount(point string, lazy bool) error {
	path, err := fusefs.FusermountPath()
	if err != nil {
		return err
	}
	args := []string{"-u", "-q", point}
	if lazy {
		args = append([]string{"-z"}, args...)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err == nil {
		return nil
	}
	name := filepath.Base(path)
	if e, merr := mountAt(point); merr == nil && e != nil && !lazy {
		return fmt.Errorf("%s: %w", name, unix.EBUSY)
	}
	return fmt.Errorf("%s: %s: %w", name, strings.TrimSpace(string(out)), err)
}

// endCopied is waitEnd, and endCopies where that takes long.
func (d *dir) endCopied(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, copyWait)
	defer cancel()
	err := d.waitEnd(short)
	if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, err := d.endCopies(); err != nil {
		return err
	}
	return d.waitEnd(ctx)
}

// endCopies ends the daemon of a mount that this mount namespace does not have any more,
// where it finds unused copies of it in others. *BusyError where a program uses one.
func (d *dir) endCopies() (found bool, err error) {
	c := findCopy(d.point())
	if c == nil {
		return false, nil
	}
	if users := findUsers(c.Device); len(users) > 0 {
		return true, &BusyError{Path: c.Point, Holders: users, Copied: true}
	}
	return true, d.kill()
}

// kill ends the daemon as it is: all that was acknowledged is in the upper directory.
func (d *dir) kill() error {
	pid, err := d.daemonPID()
	if err != nil || pid == 0 {
		return err
	}
	return unix.Kill(pid, unix.SIGKILL)
}

// daemonPID is the process that serves the bundle; 0 where it is about to end. It is the
// kernel's word, not the answer's.
func (d *dir) daemonPID() (pid int, err error) {
	_, conn, err := d.controlCall("status")
	if err != nil {
		return 0, nil //nolint:nilerr // it ends: that is waited for
	}
	pid, err = listenerOf(conn)
	return pid, errors.Join(err, conn.Close())
}

func procDir(pid int) string { return filepath.Join("/proc", strconv.Itoa(pid)) }

// waitEnd waits for the end of the bundle's daemon.
func (d *dir) waitEnd(ctx context.Context) error {
	deadline := time.Now().Add(daemonEnd)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		held, err := d.isMounted()
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
