package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Entry is what a program needs to know of a bundle to be run in its tree.
type Entry struct {
	Path    string   // of the bundle; absolute, without symlinks
	Rootfs  string   // the mountpoint, as mount tables have it
	Mounted bool     // a daemon serves the bundle
	Mapped  bool     // the mount shows the host's ids of maps
	Env     []string // of the image, by config.json
	Args    []string // the image's program and its arguments, by config.json
	Dir     string   // the working directory, by config.json
}

// OpenEntry looks at a bundle, and takes away a mount that a daemon has left which is no
// more. ErrNotBundle.
func OpenEntry(bundle string, log *slog.Logger) (_ *Entry, err error) {
	d, err := lookDir(bundle)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	state, err := d.readState()
	if err != nil {
		return nil, err
	}
	e := &Entry{Path: d.path, Rootfs: d.point(), Dir: "/", Mapped: state.Options.mapped()}
	if e.Mounted, err = d.isServed(); err != nil {
		return nil, err
	}
	if !e.Mounted {
		if err := d.detachStale(log); err != nil {
			return nil, err
		}
	} else {
		m, err := mountAt(e.Rootfs)
		if err == nil && m == nil {
			if err = d.mountedElsewhere(); err == nil {
				err = fmt.Errorf("%s: its mount is about to end: %w", d.path, ErrBusy)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	data, err := d.readConfig()
	if errors.Is(err, fs.ErrNotExist) { // raw unpack makes none
		return e, nil
	}
	var spec rspec.Spec
	if err == nil {
		err = json.Unmarshal(data, &spec)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.file(configName), err)
	}
	if spec.Process != nil {
		e.Env, e.Args, e.Dir = spec.Process.Env, spec.Process.Args, spec.Process.Cwd
	}
	return e, nil
}

// readConfig reads config.json. It is its owner's to change, and runtimes follow a
// symlink there: one that the caller has made is followed.
func (d *dir) readConfig() ([]byte, error) {
	st, err := d.top.stat(configName)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK && st.Uid == uint32(os.Geteuid()) {
		target := d.top.readlink(configName)
		if !filepath.IsAbs(target) {
			target = d.top.path(target)
		}
		return os.ReadFile(target)
	}
	data, _, err := d.top.read(configName)
	return data, err
}

// Resume mounts a bundle as it was mounted last, for as long as somebody has the other
// end of the pipe lifeline. The mount shows the image's ids where the process has them,
// else everything as its own, whatever the bundle's other mounts show.
func Resume(ctx context.Context, bundle string, lifeline *os.File, log *slog.Logger) error {
	d, err := lookDir(bundle)
	if err != nil {
		return err
	}
	state, err := d.readState()
	if err := errors.Join(err, d.close()); err != nil {
		return err
	}
	_, err = Mount(ctx, MountOptions{Bundle: bundle, State: state.Options, Lifeline: lifeline, Log: log})
	return err
}

// Hold is held by each mount namespace that has a copy of a bundle's mount: an unmount
// elsewhere would not end it.
type Hold struct {
	entered *os.File // locked, shared
	notes   *os.File // locked by who reads or writes it
}

// HoldEntered begins a Hold.
func HoldEntered(bundle string) (h *Hold, err error) {
	d, err := lookDir(bundle)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if d.inner.none() {
		return nil, d.notBundle()
	}
	h = &Hold{}
	for name, to := range map[string]**os.File{enteredName: &h.entered, notesName: &h.notes} {
		f, err := d.inner.lasting(name, unix.O_RDWR)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("hold the mount: %w", err), h.Close())
		}
		*to = f
	}
	if isLinked(h.notes) { // what is written to it would be in another file too
		return nil, errors.Join(fmt.Errorf("hold the mount: %s has other names", h.notes.Name()), h.Close())
	}
	if err := unix.Flock(int(h.entered.Fd()), unix.LOCK_SH); err != nil {
		return nil, errors.Join(fmt.Errorf("hold the mount: %w", err), h.Close())
	}
	return h, nil
}

// Notes calls f with a file that all holders share; one at a time is called. Last is
// whether there is no other holder: then this one's hold has ended.
func (h *Hold) Notes(leaving bool, f func(notes *os.File, last bool) error) error {
	if err := unix.Flock(int(h.notes.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("hold the mount: %w", err)
	}
	last := false
	if leaving {
		last = unix.Flock(int(h.entered.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
	}
	return errors.Join(f(h.notes, last), unix.Flock(int(h.notes.Fd()), unix.LOCK_UN))
}

// Close ends the hold.
func (h *Hold) Close() error {
	var errs []error
	for _, f := range []*os.File{h.entered, h.notes} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// checkEntered is a *BusyError while somebody holds copies of the bundle's mount.
func (d *dir) checkEntered(e *mountEntry) error {
	f, err := d.inner.file(enteredName, unix.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for programs in the bundle: %w", err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return &BusyError{Path: e.Point, Holders: findHolders(e)}
	case err != nil:
		return fmt.Errorf("look for programs in the bundle: %w", err)
	}
	return nil
}

// AwaitEnd returns nil when the bundle's mount has ended, however that was, and ctx's
// error when that ends first.
func AwaitEnd(ctx context.Context, bundle string) (err error) {
	d, err := lookDir(bundle)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, conn, err := d.controlCall("status")
		if err != nil {
			if held, herr := d.isMounted(); herr != nil || !held {
				return herr
			}
			time.Sleep(50 * time.Millisecond) // it is about to end, or to answer
			continue
		}
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		err = conn.SetReadDeadline(time.Time{})
		if err == nil {
			_, _ = conn.Read(make([]byte, 1)) // returns when the daemon closes the connection, or ends
		}
		stop()
		if err := errors.Join(err, conn.Close()); err != nil && ctx.Err() == nil {
			return fmt.Errorf("watch the mount daemon: %w", err)
		}
	}
}

// TellError is an error in a form that another process makes one of again (ToldError):
// a line of text, and a number for its kind.
func TellError(err error) (text string, kind int) {
	a := newAnswer(err)
	return a.Error, a.Kind
}

// ToldError is the error that another process told of.
func ToldError(text string, kind int) error { return readyAnswer{Error: text, Kind: kind}.err() }
