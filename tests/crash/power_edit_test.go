package crash

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// edit does a few things in a tree, one after the other, as a program does them that
// cares for what is on the disk. Each is a line: what, the path, and more.
func edit(root, seed string, lines []string) error {
	n, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	unix.Umask(0o022)
	r := rand.New(rand.NewPCG(n, 3))
	for _, line := range lines {
		f := append(strings.Fields(line), "", "")
		if err := editOne(r, f[0], filepath.Join(root, f[1]), f[2], func(p string) string { return filepath.Join(root, p) }); err != nil {
			return fmt.Errorf("%s: %w", line, err)
		}
	}
	return nil
}

func editOne(r *rand.Rand, what, p, arg string, in func(string) string) error {
	switch what {
	case "create": // of so many bytes; a file that there is, anew
		return withFile(p, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, func(f *os.File) error {
			_, err := f.Write(randomBytes(r, number(arg)))
			return err
		})
	case "over": // 100 bytes there
		return overwrite(r, p, 0, number(arg), func(*os.File) error { return nil })
	case "over-fdatasync":
		return overwrite(r, p, 0, number(arg), func(f *os.File) error { return unix.Fdatasync(int(f.Fd())) })
	case "over-dsync":
		return overwrite(r, p, unix.O_DSYNC, number(arg), func(*os.File) error { return nil })
	case "over-mapped":
		return overwriteMapped(r, p, int(number(arg)))
	case "fsync":
		return withFile(p, os.O_RDONLY, (*os.File).Sync)
	case "fdatasync":
		return withFile(p, os.O_WRONLY, func(f *os.File) error { return unix.Fdatasync(int(f.Fd())) })
	case "truncate":
		return os.Truncate(p, number(arg))
	case "mkdir":
		return os.Mkdir(p, 0o750)
	case "rmdir":
		return unix.Rmdir(p)
	case "unlink":
		return unix.Unlink(p)
	case "rename":
		return os.Rename(p, in(arg))
	case "link":
		return os.Link(p, in(arg))
	case "symlink":
		return os.Symlink(arg, p)
	case "chmod":
		mode, err := strconv.ParseUint(arg, 8, 12)
		return errors.Join(err, unix.Chmod(p, uint32(mode)))
	case "chown":
		return os.Lchown(p, int(number(arg)), -1)
	case "setxattr":
		return unix.Lsetxattr(p, "user.power", []byte(arg), 0)
	}
	return errors.New("unknown edit")
}

// number reads one of an edit's; a wrong one is a mistake of the tests.
func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

func randomBytes(r *rand.Rand, n int64) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return data
}

func withFile(p string, flags int, do func(*os.File) error) error {
	f, err := os.OpenFile(p, flags, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(do(f), f.Close())
}

func overwrite(r *rand.Rand, p string, flags int, off int64, then func(*os.File) error) error {
	return withFile(p, os.O_WRONLY|flags, func(f *os.File) error {
		if _, err := f.WriteAt(randomBytes(r, 100), off); err != nil {
			return err
		}
		return then(f)
	})
}

// overwriteMapped writes 100 bytes through a shared mapping, and asks for them to be on
// the disk.
func overwriteMapped(r *rand.Rand, p string, off int) error {
	return withFile(p, os.O_RDWR, func(f *os.File) error {
		info, err := f.Stat()
		if err != nil {
			return err
		}
		m, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		copy(m[off:], randomBytes(r, 100))
		return errors.Join(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m))
	})
}

// printTree prints what is in a directory, which may be this user's alone.
func printTree(root string) error {
	tree, err := imagetest.ReadTree(root)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(tree)
}
