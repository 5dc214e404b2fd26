package extract

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// maxRemoveDepth bounds the descriptors that removing holds open. What lies deeper
// is moved up first.
const maxRemoveDepth = 64

// removal takes away what lies in a directory, whatever it is: any depth, modes that
// close it to its owner. No symlink is followed.
type removal struct {
	top   int // descriptor of the directory that deep ones are moved to
	moved int // how many were
}

// removeContent removes all that is in a directory.
func removeContent(fd int) error {
	r := removal{top: fd}
	for {
		before := r.moved
		if err := r.content(fd, 0); err != nil {
			return err
		}
		if r.moved == before {
			return nil
		}
	}
}

// removeAt removes what has a name in a directory; that there is nothing is no
// error.
func removeAt(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	fd, err := openToRemove(dir, name)
	if err != nil {
		return err
	}
	if err := errors.Join(removeContent(fd), unix.Close(fd)); err != nil {
		return err
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// openToRemove opens a directory, and lets its owner in.
func openToRemove(dir int, name string) (int, error) {
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.EACCES) {
		path, perr := openat(dir, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		if perr != nil {
			return -1, err
		}
		cerr := unix.Fchmodat(unix.AT_FDCWD, sys.ProcPath(path, ""), 0o700, 0)
		if cerr = errors.Join(cerr, unix.Close(path)); cerr != nil {
			return -1, errors.Join(err, cerr)
		}
		fd, err = openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	}
	if err != nil {
		return -1, err
	}
	if err := unix.Fchmod(fd, 0o700); err != nil {
		return -1, errors.Join(&os.PathError{Op: "chmod", Path: name, Err: err}, unix.Close(fd))
	}
	return fd, nil
}

func (r *removal) content(fd, depth int) error {
	names, err := readNames(fd)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := r.entry(fd, name, depth); err != nil {
			return err
		}
	}
	return nil
}

func (r *removal) entry(dir int, name string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) { // POSIX has the one, Linux gives the other
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	fd, err := openToRemove(dir, name)
	if err != nil {
		return err
	}
	if depth >= maxRemoveDepth {
		err := r.moveUp(dir, name)
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return &os.PathError{Op: "remove", Path: name, Err: err}
		}
		return nil
	}
	if err := errors.Join(r.content(fd, depth+1), unix.Close(fd)); err != nil {
		return err
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != nil {
		return &os.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// moveUp moves a directory to the top, where the next round meets it.
func (r *removal) moveUp(dir int, name string) error {
	for {
		r.moved++
		err := unix.Renameat2(dir, name, r.top, ".removed-"+strconv.Itoa(r.moved), unix.RENAME_NOREPLACE)
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
}

// readNames lists a directory from its beginning. The descriptor stays open.
func readNames(fd int) ([]string, error) {
	own, err := openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(own), ".")
	names, err := f.Readdirnames(-1)
	return names, errors.Join(err, f.Close())
}

// Remove removes what has a name in a directory, whatever its modes and depth. That
// there is nothing is no error.
func Remove(dir, name string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return errors.Join(removeAt(fd, name), unix.Close(fd))
}
