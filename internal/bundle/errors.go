package bundle

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrNotBundle: the directory was not made by this program.
	ErrNotBundle = errors.New("not a umoci-mount bundle")
	// ErrExists: the directory holds a bundle, or part of one, of something else.
	ErrExists = errors.New("already exists")
	// ErrMounted: the bundle is mounted.
	ErrMounted = errors.New("already mounted")
	// ErrNotMounted: the bundle is not mounted.
	ErrNotMounted = errors.New("not mounted")
	// ErrInUse: another command is working on the bundle.
	ErrInUse = errors.New("another command is using the bundle")
	// ErrBusy: programs have files of the mount open; see *BusyError.
	ErrBusy = errors.New("mount is busy")
	// ErrUnmapped: the id maps leave out an owner, in the image or of the host.
	ErrUnmapped = errors.New("an owner is outside the id maps")
	// ErrRootTarget: an image's root directory would be no directory any more.
	ErrRootTarget = errors.New("/ of an image is always a directory")
	// ErrOtherImage: the bundle's changes belong to another image.
	ErrOtherImage = errors.New("the bundle was made from another image")
	// ErrOtherLayout: the base image is not in the layout.
	ErrOtherLayout = errors.New("the bundle's base image is not in this layout")
	// ErrUser: the image's user is not in its /etc/passwd.
	ErrUser = errors.New("unknown user in the image")
	// ErrSymlink: a name in the bundle is a symlink, which could lead anywhere.
	ErrSymlink = errors.New("is a symbolic link, and none is followed in a bundle")
	// ErrDaemon: the server of the mount did not come up, or ended.
	ErrDaemon = errors.New("mount daemon")
)

// Holder is a process that keeps a mount busy.
type Holder struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	How     string `json:"how"` // "cwd", "root", "exe", "fd 7", "map", "mount namespace"
}

// BusyError says who keeps a mount from being unmounted.
type BusyError struct {
	Path    string
	Holders []Holder
	Copied  bool // it is unmounted, and the holders use copies of it in other mount namespaces
}

func (e *BusyError) Unwrap() error { return ErrBusy }

func (e *BusyError) Error() string {
	if len(e.Holders) == 0 {
		return fmt.Sprintf("%s is busy: a program outside this one's view has files open in it", e.Path)
	}
	var names []string
	for _, h := range e.Holders {
		names = append(names, fmt.Sprintf("%d %s (%s)", h.PID, h.Command, h.How))
	}
	if e.Copied {
		return fmt.Sprintf("%s is unmounted, but used in other mount namespaces that have a copy of it: by %s",
			e.Path, strings.Join(names, ", "))
	}
	return fmt.Sprintf("%s is busy: held by %s", e.Path, strings.Join(names, ", "))
}
