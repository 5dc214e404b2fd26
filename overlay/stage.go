package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// staged is a file being prepared in the work directory.
type staged struct {
	at     // no name: made with none
	fd int // read-write; owned by the caller
}

// stageName is a name in work/ that is not in use: the directory is emptied when
// the file system is opened, and the counter does not repeat.
func (u *Upper) stageName() string {
	return "#" + strconv.FormatUint(u.seq.Add(1), 16)
}

func (u *Upper) stageFile(mode uint32) (staged, error) {
	if err := u.step("create"); err != nil {
		return staged{}, err
	}
	a := at{u.work, u.stageName()}
	fd, err := unix.Openat(a.dir, a.name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, mode)
	if err != nil {
		return staged{}, pathError("create", a, err)
	}
	return staged{a, fd}, nil
}

// unlinkStaged takes a staged object's name, and returns a descriptor of it (O_PATH).
func (u *Upper) unlinkStaged(s staged, o *object) (int, error) {
	fd, err := u.open(s.at, unix.O_PATH)
	if err != nil {
		return -1, err
	}
	flags := 0
	if o.typ() == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
	}
	if err := u.unlink(s.at, flags); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// discard removes a name in work/ with everything below it. It reports nothing:
// what it leaves is removed when the upper is opened next.
func (u *Upper) discard(name string) {
	a := at{u.work, name}
	if u.step("unlink") != nil {
		return
	}
	switch err := unix.Unlinkat(a.dir, a.name, 0); {
	case err == nil, errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.EPERM):
		_ = u.removeTree(a)
	}
}

// removeTree removes a directory and everything below it.
func (u *Upper) removeTree(a at) error {
	err := unix.Unlinkat(a.dir, a.name, unix.AT_REMOVEDIR)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return pathError("rmdir", a, err)
	}
	fd, err := u.open(a, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := u.emptyDir(fd); err != nil {
		return err
	}
	return pathError("rmdir", a, unix.Unlinkat(a.dir, a.name, unix.AT_REMOVEDIR))
}

// emptyDir removes everything in an open directory.
func (u *Upper) emptyDir(fd int) error {
	entries, err := u.readDir(fd)
	if err != nil {
		return err
	}
	for _, e := range entries {
		a := at{fd, e.name}
		err := unix.Unlinkat(a.dir, a.name, 0)
		if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
			err = u.removeTree(a)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("clear %q: %w", e.name, err)
		}
	}
	return nil
}

// cleanWork removes what a crash left in work/.
func (u *Upper) cleanWork() error {
	u.whiteoutMu.Lock()
	defer u.whiteoutMu.Unlock()
	u.whiteoutReady = false
	return u.emptyDir(u.work)
}

// rawEntry is a name in an upper directory as getdents(2) gives it.
type rawEntry struct {
	name string
	typ  uint32 // S_IFMT bits; 0 where the file system does not tell
	ino  uint64
}

// readDir lists an open directory, without "." and "..", in no order. It is for what
// nobody sees as a read: the access time stays.
func (u *Upper) readDir(fd int) ([]rawEntry, error) { return u.list(fd, unix.O_NOATIME) }

// list is readDir with O_NOATIME or 0.
func (u *Upper) list(fd, noAtime int) ([]rawEntry, error) {
	// A new open file description: the position of fd may be in use elsewhere.
	dirfd, err := u.open(at{fd, "."}, unix.O_RDONLY|unix.O_DIRECTORY|noAtime)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dirfd)
	var out []rawEntry
	buf := make([]byte, 32<<10)
	for {
		var n int
		err := retryEINTR(func() (err error) { n, err = unix.Getdents(dirfd, buf); return err })
		if err != nil {
			return nil, &os.PathError{Op: "getdents", Path: ".", Err: err}
		}
		if n == 0 {
			return out, nil
		}
		out = appendDirents(out, buf[:n])
	}
}

// appendDirents parses struct linux_dirent64 records (getdents64(2)): u64 ino,
// s64 offset, u16 record length, u8 type, name with a NUL.
func appendDirents(out []rawEntry, b []byte) []rawEntry {
	const nameOff = 19
	for len(b) > nameOff {
		reclen := int(le16(b[16:]))
		if reclen <= nameOff || reclen > len(b) {
			return out
		}
		name := b[nameOff:reclen]
		for i, c := range name {
			if c == 0 {
				name = name[:i]
				break
			}
		}
		if s := string(name); s != "." && s != ".." {
			out = append(out, rawEntry{name: s, typ: uint32(b[18]) << 12, ino: le64(b)})
		}
		b = b[reclen:]
	}
	return out
}

// le16 and le64 read the kernel's native order, which is little-endian on every
// architecture the project is built for.
func le16(b []byte) uint16 { return uint16(b[0]) | uint16(b[1])<<8 }

func le64(b []byte) uint64 {
	var v uint64
	for i := 7; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}
