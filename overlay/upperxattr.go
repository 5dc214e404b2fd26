package overlay

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// Names in the upper that are ours or overlayfs'. docs/upper-format.md.
const (
	ovlPrefix     = "user.overlay."
	ovlEscape     = "user.overlay.overlay."
	xattrOpaque   = "user.overlay.opaque"   // "y": nothing of the lower shows through
	xattrRedirect = "user.overlay.redirect" // absolute path in the lower tree
	xattrMetacopy = "user.overlay.metacopy" // empty: the data is still the lower's

	xattrWhiteout = "user.overlay.whiteout" // on an empty file: it is a whiteout

	ownPrefix          = "user.umoci-mount."
	ownEscape          = "user.umoci-mount.escaped."
	ownTrustedPrefix   = "trusted.umoci-mount."
	xattrIno           = "user.umoci-mount.ino"            // decimal number of the lower inode
	xattrInoTrusted    = "trusted.umoci-mount.ino"         // the same, on what takes no user attributes
	xattrFilling       = "user.umoci-mount.filling"        // on a metacopy file that data is being moved into: what that undoes (kept)
	xattrFileWhiteouts = "user.umoci-mount.file-whiteouts" // on the upper root: there may be whiteouts that are files
	xattrRoot          = "user.umoci-mount.root"           // on the upper root: it has the lower root's attributes

	xattrOverride  = "user.containers.override_stat"
	overridePrefix = "user.containers.override_" // + name: an attribute a plain user cannot store
)

// upperMeta is what an upper object's private attributes say.
type upperMeta struct {
	lower    Ino // lower inode it is a copy of; 0: none recorded
	opaque   bool
	metacopy bool
	filling  *kept
	redirect string
	override *overrideStat
}

func (u *Upper) getxattr(a at, name string) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := u.getxattrInto(a, name, buf)
		if errors.Is(err, unix.ERANGE) {
			n, err = u.getxattrInto(a, name, nil)
			if err != nil {
				return nil, err
			}
			buf = make([]byte, n+64)
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

func (u *Upper) getxattrInto(a at, name string, buf []byte) (n int, err error) {
	n, err = sys.Getxattr(a.dir, a.name, name, buf)
	return n, pathError("getxattr "+name, a, err)
}

func (u *Upper) setxattr(a at, name string, value []byte, flags int) error {
	if err := u.step("setxattr"); err != nil {
		return err
	}
	return pathError("setxattr "+name, a, sys.Setxattr(a.dir, a.name, name, value, flags))
}

func (u *Upper) removexattr(a at, name string) error {
	if err := u.step("removexattr"); err != nil {
		return err
	}
	return pathError("removexattr "+name, a, sys.Removexattr(a.dir, a.name, name))
}

// listxattr is the NUL-separated list of stored names; empty where the object
// takes none.
func (u *Upper) listxattr(a at) ([]byte, error) {
	buf := make([]byte, 512)
	for {
		n, err := sys.Listxattr(a.dir, a.name, buf)
		switch err { //nolint:errorlint // a raw errno
		case nil:
			return buf[:n], nil
		case unix.ERANGE:
			buf = make([]byte, min(2*len(buf), 64<<10+1))
		case unix.EOPNOTSUPP:
			return nil, nil
		default:
			return nil, pathError("listxattr", a, err)
		}
	}
}

// splitNames yields the names of a NUL-separated list.
func splitNames(list []byte) []string {
	if len(list) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00")
}

// meta reads the private attributes. Most objects have none: one system call.
func (u *Upper) meta(a at) (upperMeta, error) {
	var m upperMeta
	list, err := u.listxattr(a)
	if err != nil || len(list) == 0 {
		return m, err
	}
	for _, name := range splitNames(list) {
		switch name {
		case xattrOpaque, xattrRedirect, xattrIno, xattrInoTrusted, xattrOverride, xattrFilling:
		case xattrMetacopy:
			m.metacopy = true
			continue
		default:
			continue
		}
		v, err := u.getxattr(a, name)
		if err != nil {
			return m, err
		}
		switch name {
		case xattrOpaque:
			m.opaque = string(v) == "y"
		case xattrRedirect:
			m.redirect = string(v)
		case xattrFilling:
			if m.filling, err = parseKept(string(v)); err != nil {
				return m, pathError("read upper", a, err)
			}
		case xattrOverride:
			if !u.rootless {
				continue
			}
			o, err := parseOverrideStat(string(v))
			if err != nil {
				return m, pathError("read upper", a, err)
			}
			m.override = &o
		default:
			n, err := strconv.ParseUint(string(v), 10, 48)
			if err != nil {
				return m, pathError("read upper", a, err)
			}
			m.lower = Ino(n)
		}
	}
	return m, nil
}

// setLower records which lower inode the object is a copy of. What takes no
// user attribute (symlinks, devices, fifos, sockets) has a trusted one where the
// caller may set it; elsewhere the number is lost with the mount.
func (u *Upper) setLower(a at, typ uint32, ino Ino) error {
	v := strconv.AppendUint(nil, uint64(ino), 10)
	if typ == unix.S_IFREG || typ == unix.S_IFDIR {
		return u.setxattr(a, xattrIno, v, 0)
	}
	if u.rootless {
		return nil
	}
	err := u.setxattr(a, xattrInoTrusted, v, 0)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// storedXattr is the name in the upper for a name of the view.
func (u *Upper) storedXattr(name string) string {
	switch {
	case strings.HasPrefix(name, ovlPrefix):
		return ovlEscape + name[len(ovlPrefix):]
	case strings.HasPrefix(name, ownPrefix):
		return ownEscape + name
	case strings.HasPrefix(name, ownTrustedPrefix):
		return ownEscape + name
	case !u.rootless:
		return name
	case strings.HasPrefix(name, overridePrefix):
		return ownEscape + name
	case strings.HasPrefix(name, "security."), strings.HasPrefix(name, "trusted."):
		return overridePrefix + name
	}
	return name
}

// viewXattr is the name in the view for a stored name; ok is false for one that
// the view hides.
func (u *Upper) viewXattr(stored string) (name string, ok bool) {
	switch {
	case strings.HasPrefix(stored, ovlEscape):
		return ovlPrefix + stored[len(ovlEscape):], true
	case strings.HasPrefix(stored, ownEscape):
		return stored[len(ownEscape):], true
	case strings.HasPrefix(stored, ovlPrefix), strings.HasPrefix(stored, ownPrefix),
		strings.HasPrefix(stored, ownTrustedPrefix):
		return "", false
	case !u.rootless:
		return stored, true
	case stored == xattrOverride:
		return "", false
	case strings.HasPrefix(stored, overridePrefix):
		return stored[len(overridePrefix):], true
	}
	return stored, true
}
