package bundle

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// maxAccounts bounds what is read of a passwd or group file, in bytes.
const maxAccounts = 16 << 20

// owner fills in UID and GID where the change names an owner as chown(1) takes one:
// numbers, or names in the tree's own /etc/passwd and /etc/group. "USER" leaves the
// group, "USER:" takes the user's own, ":GROUP" leaves the user. A number that is a
// name is the name.
func (c *editing) owner(ch *Edit) error {
	if ch.Owner == "" {
		return nil
	}
	who, group, both := strings.Cut(ch.Owner, ":")
	if who == "" && group == "" {
		return fmt.Errorf("owner %q names nobody: %w", ch.Owner, overlay.ErrInvalid)
	}
	if who != "" {
		uid, gid, err := c.account("etc/passwd", who)
		if err != nil {
			return err
		}
		ch.UID = &uid
		if both && group == "" {
			if gid == nil {
				return fmt.Errorf("owner %q: user %d has no group in /etc/passwd: %w", ch.Owner, uid, overlay.ErrInvalid)
			}
			ch.GID = gid
		}
	}
	if group != "" {
		gid, _, err := c.account("etc/group", group)
		if err != nil {
			return err
		}
		ch.GID = &gid
	}
	return nil
}

// account finds a user (with its group) or a group by name or number.
func (c *editing) account(file, name string) (id uint32, gid *uint32, err error) {
	text, err := c.readFile(file)
	if err != nil {
		return 0, nil, fmt.Errorf("read /%s of the image: %w", file, err)
	}
	number, nerr := strconv.ParseUint(name, 10, 32)
	if file == "etc/group" {
		groups, err := user.ParseGroupFilter(strings.NewReader(text), func(g user.Group) bool { return g.Name == name })
		if err != nil {
			return 0, nil, err
		}
		if len(groups) > 0 {
			return uint32(groups[0].Gid), nil, nil
		}
	} else {
		users, err := user.ParsePasswdFilter(strings.NewReader(text), func(u user.User) bool {
			return u.Name == name || nerr == nil && uint64(u.Uid) == number
		})
		if err != nil {
			return 0, nil, err
		}
		for _, u := range users {
			own := uint32(u.Gid)
			return uint32(u.Uid), &own, nil
		}
	}
	if nerr != nil || number == 1<<32-1 {
		return 0, nil, fmt.Errorf("%w: %q is no number and not in /%s", ErrUser, name, file)
	}
	return uint32(number), nil, nil
}

// readFile reads a file of the tree; empty where there is none.
func (c *editing) readFile(name string) (string, error) {
	w := &pathWalk{fs: c.fs}
	defer w.close()
	a, err := w.find(0, name, true)
	if isMissing(err) || err == nil && a.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	h, err := c.fs.Open(a.Ino, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(io.NewSectionReader(h, 0, maxAccounts))
	if cerr := h.Close(); err == nil {
		err = cerr
	}
	return string(data), err
}

func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, overlay.ErrNotDir)
}
