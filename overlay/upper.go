package overlay

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// UpperOptions says where an upper directory is and what its owner can do.
type UpperOptions struct {
	Upper *os.File // directory that holds the changes
	Work  *os.File // empty directory on the same file system, for preparing them
	// Rootless keeps owners, full modes and device nodes in override_stat
	// attributes, since the caller cannot chown or mknod.
	Rootless bool
	// Volatile leaves out the fsync of a copy-up's data.
	Volatile bool
	// KeepAtime leaves access times as they are when the view is read, as a read-only
	// mount does. Of a symlink it cannot.
	KeepAtime bool
	// FileWhiteouts makes whiteouts as files even where devices can be made.
	FileWhiteouts bool
	// Fault, where set, is asked before each system call that changes the upper;
	// its error is returned in that call's place. For tests.
	Fault func(step string) error
}

// Upper is an upper directory and its work directory, reached by descriptor and
// single names alone. It is safe for concurrent use.
type Upper struct {
	root     int // immutable; owned
	work     int // immutable; owned
	rootless bool
	volatile bool
	noAtime  int // immutable; O_NOATIME for what the view reads, or 0
	fault    func(step string) error
	euid     uint32 // immutable: who owns what is created with no chown
	egid     uint32
	seq      atomic.Uint64 // names in work/

	// fileWhiteouts: whiteouts are empty files with an attribute, since devices
	// cannot be made here. Set while the upper is opened, then immutable.
	fileWhiteouts bool

	whiteoutMu    sync.Mutex
	whiteoutReady bool // protected by whiteoutMu: work/whiteout exists
}

// at is a place in the upper: a name in an open directory or, where name is
// empty, what the descriptor itself refers to.
type at struct {
	dir  int
	name string
}

// path is for system calls that take no directory descriptor. The last
// component must not be followed by them, except for an empty name.
func (a at) path() string { return sys.ProcPath(a.dir, a.name) }

func (a at) String() string {
	if a.name == "" {
		return "(open file)"
	}
	return a.name
}

// emptyPath adds AT_EMPTY_PATH where the place is the descriptor itself.
func (a at) emptyPath(flags int) int {
	if a.name == "" {
		return flags | unix.AT_EMPTY_PATH
	}
	return flags
}

func pathError(op string, a at, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: a.String(), Err: err}
}

// OpenUpper duplicates the descriptors and changes nothing; New clears work/ and
// tries out what the format needs.
func OpenUpper(opt UpperOptions) (_ *Upper, err error) {
	u := &Upper{
		root: -1, work: -1,
		rootless: opt.Rootless, volatile: opt.Volatile, fault: opt.Fault, fileWhiteouts: opt.FileWhiteouts,
		euid: uint32(os.Geteuid()), egid: uint32(os.Getegid()),
	}
	if opt.KeepAtime {
		u.noAtime = unix.O_NOATIME
	}
	defer func() {
		if err != nil {
			u.Close()
		}
	}()
	if u.root, err = dupDir(opt.Upper); err != nil {
		return nil, fmt.Errorf("open upper directory: %w", err)
	}
	if u.work, err = dupDir(opt.Work); err != nil {
		return nil, fmt.Errorf("open work directory: %w", err)
	}
	if _, err := u.getxattr(at{u.root, ""}, xattrFileWhiteouts); err == nil {
		u.fileWhiteouts = true
	}
	return u, nil
}

func dupDir(f *os.File) (int, error) {
	fd, err := unix.Openat(int(f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: f.Name(), Err: err}
	}
	return fd, nil
}

// Close releases the descriptors.
func (u *Upper) Close() error {
	var errs []error
	for _, fd := range []int{u.root, u.work} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	u.root, u.work = -1, -1
	return errors.Join(errs...)
}

// probe tries out what the format needs: a user extended attribute and a whiteout.
func (u *Upper) probe() error {
	f, err := u.stageFile(0o600)
	if err != nil {
		return fmt.Errorf("write to the work directory: %w", err)
	}
	defer u.discard(f.name)
	defer unix.Close(f.fd)
	if err := u.setxattr(f.at, xattrIno, []byte("0"), 0); err != nil {
		return fmt.Errorf("%w: the one of the upper directory stores no user extended attributes "+
			"(move the bundle to ext4, xfs, btrfs or tmpfs): %w", ErrUnsuitable, err)
	}
	err = u.readyWhiteout()
	if err != nil && !u.fileWhiteouts {
		u.fileWhiteouts = true // kernel overlayfs, for one, refuses the device
		err = u.readyWhiteout()
	}
	if err != nil {
		return fmt.Errorf("%w: the one of the upper directory takes no whiteouts "+
			"(move the bundle to ext4, xfs, btrfs or tmpfs): %w", ErrUnsuitable, err)
	}
	if u.fileWhiteouts {
		return u.setxattr(at{u.root, ""}, xattrFileWhiteouts, []byte("1"), 0)
	}
	return nil
}

// step is called before each change of the upper.
func (u *Upper) step(name string) error {
	if u.fault == nil {
		return nil
	}
	return u.fault(name)
}

const statMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME

// stat is statx(2) without following. That there is nothing is errNotFound: most
// lookups in an upper directory end so, and allocate nothing for it.
func (u *Upper) stat(a at, st *unix.Statx_t) error {
	err := sys.Statx(a.dir, a.name, a.emptyPath(unix.AT_SYMLINK_NOFOLLOW), statMask, st)
	switch err { //nolint:errorlint // a raw errno
	case nil:
		return nil
	case unix.ENOENT:
		return errNotFound
	}
	return pathError("stat", a, err)
}

// open opens without following; flags are those of open(2). O_NOATIME is left out
// where it is not allowed: with neither the owner nor CAP_FOWNER.
func (u *Upper) open(a at, flags int) (int, error) {
	flags |= u.noAtime
	fd, err := u.openAs(a, flags)
	if flags&unix.O_NOATIME != 0 && errors.Is(err, unix.EPERM) {
		return u.openAs(a, flags&^unix.O_NOATIME)
	}
	return fd, err
}

func (u *Upper) openAs(a at, flags int) (int, error) {
	flags |= unix.O_CLOEXEC | unix.O_NOCTTY
	var fd int
	err := retryEINTR(func() (err error) {
		if a.name == "" {
			fd, err = unix.Open(a.path(), flags, 0)
		} else {
			fd, err = unix.Openat(a.dir, a.name, flags|unix.O_NOFOLLOW, 0)
		}
		return err
	})
	if err != nil {
		return -1, pathError("open", a, err)
	}
	return fd, nil
}

func retryEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR { //nolint:errorlint // a raw errno
			return err
		}
	}
}

func (u *Upper) readlink(a at) (string, error) {
	buf := make([]byte, unix.PathMax+1)
	n, err := unix.Readlinkat(a.dir, a.name, buf)
	if err != nil {
		return "", pathError("readlink", a, err)
	}
	return string(buf[:n]), nil
}

func (u *Upper) chown(a at, uid, gid int) error {
	if err := u.step("chown"); err != nil {
		return err
	}
	return pathError("chown", a, unix.Fchownat(a.dir, a.name, uid, gid, a.emptyPath(unix.AT_SYMLINK_NOFOLLOW)))
}

// chmod changes anything but a symlink. fchmodat(2) follows, and fchmodat2(2) is younger
// than the kernels served: where it is not there, an O_PATH descriptor leads to the name.
func (u *Upper) chmod(a at, mode uint32) error {
	if err := u.step("chmod"); err != nil {
		return err
	}
	if a.name == "" {
		err := unix.Fchmod(a.dir, mode)
		if errors.Is(err, unix.EBADF) {
			err = unix.Chmod(a.path(), mode)
		}
		return pathError("chmod", a, err)
	}
	err := unix.Fchmodat(a.dir, a.name, mode, unix.AT_SYMLINK_NOFOLLOW)
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EPERM) {
		return pathError("chmod", a, err)
	}
	fd, err := u.open(a, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return pathError("chmod", a, unix.Chmod(at{dir: fd}.path(), mode))
}

func (u *Upper) utimes(a at, atime, mtime unix.Timespec) error {
	if err := u.step("utimes"); err != nil {
		return err
	}
	ts := []unix.Timespec{atime, mtime}
	err := unix.UtimesNanoAt(a.dir, a.name, ts, a.emptyPath(unix.AT_SYMLINK_NOFOLLOW))
	if a.name == "" && errors.Is(err, unix.EINVAL) { // before Linux 5.8
		err = unix.UtimesNanoAt(unix.AT_FDCWD, a.path(), ts, 0)
	}
	return pathError("utimes", a, err)
}

func (u *Upper) unlink(a at, flags int) error {
	if err := u.step("unlink"); err != nil {
		return err
	}
	return pathError("unlink", a, unix.Unlinkat(a.dir, a.name, flags))
}

func (u *Upper) rename(from, to at, flags uint) error {
	if err := u.step("rename"); err != nil {
		return err
	}
	return pathError("rename", to, unix.Renameat2(from.dir, from.name, to.dir, to.name, flags))
}

func (u *Upper) link(from, to at) error {
	if err := u.step("link"); err != nil {
		return err
	}
	if from.name == "" {
		return pathError("link", to, unix.Linkat(unix.AT_FDCWD, from.path(), to.dir, to.name, unix.AT_SYMLINK_FOLLOW))
	}
	return pathError("link", to, unix.Linkat(from.dir, from.name, to.dir, to.name, 0))
}

// toTimespec converts statx's form.
func toTimespec(t unix.StatxTimestamp) Timespec { return Timespec{Sec: t.Sec, Nsec: t.Nsec} }

func toUnix(t Timespec) unix.Timespec { return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)} }

var timeOmit = unix.Timespec{Nsec: unix.UTIME_OMIT}
