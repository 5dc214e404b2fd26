package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"syscall"
	"time"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// Editor makes changes in a bundle's tree: through the mount's daemon where the
// bundle is mounted, else in its upper directory.
type Editor struct {
	conn net.Conn // to the daemon; nil: not mounted
	enc  *json.Encoder
	dec  *json.Decoder

	dir   *dir
	lower lowerTree
	fs    *overlay.FS
}

// editLimit is how long a daemon may take for one change.
const editLimit = 5 * time.Minute

// OpenEditor opens a bundle to be changed. ErrNotBundle, ErrInUse.
func OpenEditor(ctx context.Context, bundle string, log *slog.Logger) (*Editor, error) {
	c := &Editor{}
	if err := c.open(ctx, bundle, log); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// DialEditor is OpenEditor for a bundle that is mounted: other commands may be working
// on it.
func DialEditor(bundle string) (*Editor, error) {
	d, err := lookDir(bundle)
	if err != nil {
		return nil, err
	}
	c := &Editor{}
	if err := errors.Join(c.dial(d), d.close()); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Editor) open(ctx context.Context, bundle string, log *slog.Logger) (err error) {
	d, err := openDir(bundle)
	if err != nil {
		return err
	}
	c.dir = d
	served, err := d.isServed()
	if err != nil {
		return err
	}
	if served {
		// The daemon keeps changes apart; other commands may go on.
		c.dir = nil
		return errors.Join(c.dial(d), d.close())
	}
	state, err := d.readState()
	if err != nil {
		return err
	}
	if state.Options.ReadOnly {
		return fmt.Errorf("%s was mounted with --read-only: %w", d.path, overlay.ErrReadOnly)
	}
	if err := c.lower.openState(ctx, state, "", log); err != nil {
		return err
	}
	if err := d.makeUpper(); err != nil { // after umount --discard there is none
		return err
	}
	c.fs, err = d.openOverlay(c.lower.Image, &state.Options, false, log)
	return err
}

func (c *Editor) dial(d *dir) error {
	_, conn, err := d.controlCall("status")
	if err != nil {
		return err
	}
	c.conn, c.enc, c.dec = conn, json.NewEncoder(conn), json.NewDecoder(conn)
	return nil
}

// Apply makes one change. An error has the errno that a program would have got.
// It is for one goroutine at a time.
func (c *Editor) Apply(ch Edit) error {
	if c.conn == nil {
		return (&editing{fs: c.fs}).apply(&ch)
	}
	_, err := c.ask(controlRequest{Op: "edit", Edit: &ch})
	return err
}

// Owner is whose an inode is, in the image's ids. The bundle has to be mounted.
func (c *Editor) Owner(ino uint64) (uid, gid uint32, err error) {
	if c.conn == nil {
		return 0, 0, ErrNotMounted
	}
	st, err := c.ask(controlRequest{Op: "owner", Edit: &Edit{Ino: ino}})
	if err == nil && st.Owner == nil {
		err = errors.New("the mount daemon is of another version of the program: mount again")
	}
	if err != nil {
		return 0, 0, err
	}
	return st.Owner.UID, st.Owner.GID, nil
}

// ask asks the daemon.
func (c *Editor) ask(req controlRequest) (st DaemonStatus, err error) {
	if err = c.conn.SetDeadline(time.Now().Add(editLimit)); err == nil {
		if err = c.enc.Encode(req); err == nil {
			err = c.dec.Decode(&st)
		}
	}
	switch {
	case err != nil:
		return st, fmt.Errorf("ask the mount daemon: %w", err)
	case st.Errno != 0:
		return st, &daemonError{text: st.Error, kind: syscall.Errno(st.Errno)}
	case st.Error != "":
		return st, readyAnswer{Error: st.Error, Kind: st.Kind}.err()
	}
	return st, nil
}

// Close releases all of it.
func (c *Editor) Close() error {
	var errs []error
	if c.conn != nil {
		errs = append(errs, c.conn.Close())
	}
	if c.fs != nil {
		errs = append(errs, c.fs.Close())
	}
	errs = append(errs, c.lower.Close())
	if c.dir != nil {
		errs = append(errs, c.dir.close())
	}
	return errors.Join(errs...)
}
