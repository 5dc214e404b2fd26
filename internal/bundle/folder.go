package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// folder is an open directory of a bundle. What is in it is reached by single names, and
// no symlink is followed: the path to a bundle is the caller's word, but what is in it
// may be another user's, who can put any name in another's place at any moment. The zero
// folder is none.
type folder struct{ fd *os.File }

func (f folder) none() bool { return f.fd == nil }

func (f folder) close() error {
	if f.none() {
		return nil
	}
	return f.fd.Close()
}

// path is a name in the directory as system calls take it that know no descriptors. The
// name itself may be a symlink.
func (f folder) path(name string) string { return sys.ProcPath(int(f.fd.Fd()), name) }

// shown is a name in the directory as messages have it.
func (f folder) shown(name string) string { return filepath.Join(f.fd.Name(), name) }

func (f folder) fail(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: f.shown(name), Err: err}
}

// open opens a name, or ErrSymlink. It does not wait for who opens the other end of a
// fifo.
func (f folder) open(name string, flags int, mode uint32) (*os.File, error) {
	var fd int
	err := retried(func() (err error) {
		fd, err = unix.Openat(int(f.fd.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, mode)
		return err
	})
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) && f.isSymlink(name) {
		err = ErrSymlink
	}
	if err != nil {
		return nil, f.fail("open", name, err)
	}
	return os.NewFile(uintptr(fd), f.shown(name)), nil
}

// retried calls fn until no signal interrupts it.
func retried(fn func() error) error {
	for {
		if err := fn(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// folder opens a directory.
func (f folder) folder(name string) (folder, error) {
	d, err := f.open(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	return folder{d}, err
}

// file opens a regular file; mode is that of one it makes.
func (f folder) file(name string, flags int, mode uint32) (*os.File, error) {
	file, err := f.open(name, flags, mode)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(file.Fd()), &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errNotRegular
	}
	if err == nil {
		err = unix.SetNonblock(int(file.Fd()), false)
	}
	if err != nil {
		return nil, errors.Join(f.fail("open", name, err), file.Close())
	}
	return file, nil
}

// lasting opens a file that all commands on a bundle share, and makes it where it is
// missing. What root makes in another user's directory is that user's: he could not use
// his bundle else. What was there is not given away.
func (f folder) lasting(name string, flags int) (*os.File, error) {
	file, err := f.file(name, flags|unix.O_CREAT|unix.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return f.file(name, flags|unix.O_CREAT, 0o600)
	}
	var dir unix.Stat_t
	if err == nil && os.Geteuid() == 0 && unix.Fstat(int(f.fd.Fd()), &dir) == nil && dir.Uid != 0 {
		_ = file.Chown(int(dir.Uid), int(dir.Gid)) // on NFS root may not, nor to an id outside its namespace
	}
	return file, err
}

// errNotRegular: a file of a bundle is a directory, a fifo or the like.
var errNotRegular = errors.New("is no regular file")

// maxDocument bounds what is read of a file of a bundle, in bytes.
const maxDocument = 64 << 20

// read reads a regular file, and says whose it is.
func (f folder) read(name string) (data []byte, owner uint32, err error) {
	file, err := f.file(name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return nil, 0, f.fail("stat", name, err)
	}
	data, err = io.ReadAll(io.LimitReader(file, maxDocument+1))
	if err == nil && len(data) > maxDocument {
		err = f.fail("read", name, unix.EFBIG)
	}
	return data, st.Uid, err
}

// stat is fstatat(2) of the name itself.
func (f folder) stat(name string) (st unix.Stat_t, err error) {
	err = unix.Fstatat(int(f.fd.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, f.fail("stat", name, err)
}

// exists reports whether there is anything of a name, also a symlink to nothing.
func (f folder) exists(name string) bool {
	_, err := f.stat(name)
	return err == nil
}

func (f folder) isSymlink(name string) bool {
	st, err := f.stat(name)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK
}

// readlink is the target of a symlink; "" where there is none.
func (f folder) readlink(name string) string {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.fd.Fd()), name, buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// mkdir makes a directory where there is none.
func (f folder) mkdir(name string, mode uint32) error {
	err := unix.Mkdirat(int(f.fd.Fd()), name, mode)
	if errors.Is(err, unix.EEXIST) {
		switch st, serr := f.stat(name); {
		case serr != nil:
			return serr
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			err = ErrSymlink
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			err = nil
		}
	}
	return f.fail("mkdir", name, err)
}

// remove removes a file. That there is none is an error.
func (f folder) remove(name string) error {
	return f.fail("remove", name, unix.Unlinkat(int(f.fd.Fd()), name, 0))
}

// rmdir removes an empty directory.
func (f folder) rmdir(name string) error {
	return f.fail("rmdir", name, unix.Unlinkat(int(f.fd.Fd()), name, unix.AT_REMOVEDIR))
}

// removeAll removes whatever has a name, and all below. That there is nothing is no
// error.
func (f folder) removeAll(name string) error {
	root, err := os.OpenRoot(f.path(""))
	if err != nil {
		return err
	}
	return errors.Join(root.RemoveAll(name), root.Close())
}

func (f folder) rename(from, to string) error { return f.move(from, f, to) }

// move gives a name to another directory of the bundle.
func (f folder) move(name string, to folder, as string) error {
	return f.fail("rename", name, unix.Renameat(int(f.fd.Fd()), name, int(to.fd.Fd()), as))
}

// replace writes a file in one durable step, with a mode of which the umask takes its
// part. A symlink of its name is replaced too. Preconditions: the bundle is locked; what
// has the name of the new file then was left by a killed command.
func (f folder) replace(name string, data []byte, mode uint32) (err error) {
	temp := "." + name + ".new"
	if err := f.remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write %s: %w", f.shown(name), err)
	}
	w, err := f.file(temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", f.shown(name), err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", f.shown(name), err), f.remove(temp))
		}
	}()
	if _, err = io.Copy(w, bytes.NewReader(data)); err == nil {
		err = w.Sync()
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	if err = f.rename(temp, name); err != nil {
		return err
	}
	return f.fd.Sync()
}

// names are those in the directory.
func (f folder) names() (list []string, err error) {
	d, err := f.folder(".") // a descriptor of its own: that of f keeps its place
	if err != nil {
		return nil, err
	}
	list, err = d.fd.Readdirnames(-1)
	return list, errors.Join(err, d.close())
}
