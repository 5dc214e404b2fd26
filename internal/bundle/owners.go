package bundle

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// IDs says which owners a mount shows.
type IDs string

// The faces of a mount. Id maps, where there are any, come before all of them.
const (
	IDsDefault  IDs = ""         // root's mounts are real, a plain user's squashed
	IDsReal     IDs = "real"     // the image's ids
	IDsSquashed IDs = "squashed" // everything is the mounting user's
)

// ParseIDs reads the name of a face.
func ParseIDs(s string) (IDs, error) {
	switch ids := IDs(s); ids {
	case IDsDefault, IDsReal, IDsSquashed:
		return ids, nil
	}
	return "", fmt.Errorf("ids %q: want %s or %s", s, IDsReal, IDsSquashed)
}

func (o *StateOptions) mapped() bool { return len(o.UIDMap)+len(o.GIDMap) > 0 }

// squashed reports whether everything is shown as the mounting user's.
func (o *StateOptions) squashed() bool {
	return !o.mapped() && (o.IDs == IDsSquashed || o.IDs == IDsDefault && o.Rootless && PlainUser())
}

// namespaceIDs is how many user ids there are in this process's user namespace:
// 2^32 - 1 in the first one (user_namespaces(7)).
func namespaceIDs() uint64 {
	data, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return 1<<32 - 1 // a kernel without user namespaces
	}
	var n uint64
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 3 {
			size, err := strconv.ParseUint(f[2], 10, 32)
			if err != nil {
				return 0
			}
			n += size
		}
	}
	return n
}

// OwnsIDs reports whether the process can give files to anybody, and what it gives
// them to is the same id for everybody: root, in no user namespace. One that may not
// mount, as in most containers, can work in a user namespace alone, and does not.
func OwnsIDs() bool {
	return os.Geteuid() == 0 && namespaceIDs() == 1<<32-1 && sys.HasCapability(unix.CAP_SYS_ADMIN)
}

// PlainUser reports whether the process has one id: it is no root, or that of a user
// namespace with nobody else in it, or one without a root's means.
func PlainUser() bool {
	return os.Geteuid() != 0 || namespaceIDs() == 1 || !sys.HasCapability(unix.CAP_SYS_ADMIN)
}

// show sets which owners a view of the tree shows.
func (o *StateOptions) show(opt *overlay.Options) {
	self := &overlay.Owner{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	switch {
	case o.mapped():
		opt.IDs = o.idMap()
	case o.squashed():
		opt.Squash = self
	case o.Rootless:
		opt.Root = self
	}
}

func (o *StateOptions) idMap() overlay.IDMap {
	return overlay.IDMap{UIDs: o.UIDMap, GIDs: o.GIDMap, SquashRest: o.Squash}
}

// checkMapped refuses id maps that leave out an owner in the image, unless those are
// to be squashed: shown as somebody else's, they would be repacked right by us and
// wrong by others.
func (o *StateOptions) checkMapped(lower *layer.Image) error {
	if !o.mapped() || o.Squash {
		return nil
	}
	ids := o.idMap()
	for ino := layer.RootIno; int(ino) <= lower.Len(); ino++ {
		a, err := lower.Attr(ino)
		if err != nil {
			return err
		}
		if ids.Has(overlay.Owner{UID: a.UID, GID: a.GID}) {
			continue
		}
		path, err := lower.PathOf(ino)
		if err != nil {
			return err
		}
		return fmt.Errorf("%w: /%s is %d:%d's (--squash shows such files as root's)", ErrUnmapped, path, a.UID, a.GID)
	}
	return nil
}
