package crash

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// workerVar makes the test binary one of the children that work in a mounted tree: a
// plain user's mount is open to that user's processes alone.
const workerVar = "UMOCI_MOUNT_CRASH_WORKER"

// worker is main of a child:
//
//	write ROOT SHADOW SEED   changes ROOT, and SHADOW after each change that ROOT has
//	                         acknowledged, until one fails; prints that one
//	compare ROOT SHADOW OP   fails unless the trees are equal, without or with OP,
//	                         which was under way when the daemon was killed
//	inodes ROOT              prints path and inode number of everything
//	hostile ROOT SEED OUT    asks for odd things
//	edit ROOT SEED LINE...   does what the lines say
//	tree ROOT                prints the tree
//	disk DIR KB LOG          serves a disk that notes what is written to it
func worker(args []string) int {
	var err error
	switch args[0] {
	case "write":
		err = write(args[1], args[2], args[3])
	case "compare":
		err = compare(args[1], args[2], args[3])
	case "inodes":
		err = inodes(args[1])
	case "hostile":
		err = hostile(args[1], args[2], args[3])
	case "edit":
		err = edit(args[1], args[2], args[3:])
	case "tree":
		err = printTree(args[1])
	case "disk":
		err = serveDisk(args[1], args[2], args[3])
	default:
		err = fmt.Errorf("unknown work %q", args)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// op is one change. All but a write either happen or do not.
type op struct {
	Name string
	P, Q string
	N    uint64 // seed of data, or a mode
}

func (o op) apply(root string) error {
	p, q := filepath.Join(root, o.P), filepath.Join(root, o.Q)
	switch o.Name {
	case "write":
		return writeAt(p, o.N)
	case "create":
		f, err := os.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
		if err != nil {
			return err
		}
		return f.Close()
	case "truncate":
		return os.Truncate(p, int64(o.N%100_000))
	case "mkdir":
		return os.Mkdir(p, 0o750)
	case "rmdir":
		return unix.Rmdir(p)
	case "unlink":
		return unix.Unlink(p)
	case "rename":
		return os.Rename(p, q)
	case "exchange":
		return unix.Renameat2(unix.AT_FDCWD, p, unix.AT_FDCWD, q, unix.RENAME_EXCHANGE)
	case "link":
		return os.Link(p, q)
	case "symlink":
		return os.Symlink(o.Q, p)
	case "chmod":
		return os.Chmod(p, os.FileMode(0o700|o.N%0o100))
	case "setxattr":
		return unix.Lsetxattr(p, "user.test", strconv.AppendUint(nil, o.N, 10), 0)
	}
	return errors.New("unknown operation")
}

// writeAt writes a run of one seed's bytes into a file, in one write and with the
// close that makes a plain user's data safe. A longer file keeps its end.
func writeAt(p string, n uint64) error {
	data, off := writeData(n)
	return writeBytes(p, data, off)
}

func writeData(n uint64) (data []byte, off int64) {
	r := rand.New(rand.NewPCG(n, 0))
	data = make([]byte, 1+r.IntN(60_000))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return data, int64(r.IntN(100_000))
}

// writtenOf is how much of a write that did not end is in a file.
func writtenOf(p string, n uint64) ([]byte, error) {
	data, off := writeData(n)
	have := make([]byte, len(data))
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	got, err := f.ReadAt(have, off)
	if err != nil && err != io.EOF {
		return nil, err
	}
	k := 0
	for k < got && have[k] == data[k] {
		k++
	}
	return data[:k], nil
}

func writeBytes(p string, data []byte, off int64) error {
	f, err := os.OpenFile(p, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, off)
	return errors.Join(err, f.Close())
}

var opNames = []string{"write", "write", "write", "create", "create", "truncate", "mkdir", "rmdir", "unlink", "rename",
	"rename", "exchange", "link", "symlink", "chmod", "setxattr"}

// randomOp is a change of paths that there mostly are.
func randomOp(r *rand.Rand, shadow string) (op, error) {
	var paths []string
	err := filepath.WalkDir(shadow, func(p string, _ os.DirEntry, err error) error {
		if rel := strings.TrimPrefix(p, shadow+"/"); err == nil && rel != p {
			paths = append(paths, rel)
		}
		return err
	})
	if err != nil || len(paths) == 0 {
		return op{}, errors.Join(err, errors.New("nothing left"))
	}
	have := func() string { return paths[r.IntN(len(paths))] }
	fresh := func() string {
		dir := have()
		if info, err := os.Lstat(filepath.Join(shadow, dir)); err != nil || !info.IsDir() {
			dir = filepath.Dir(dir)
		}
		return filepath.Join(dir, "n"+strconv.Itoa(r.IntN(30)))
	}
	o := op{Name: opNames[r.IntN(len(opNames))], P: have(), N: r.Uint64()}
	switch o.Name {
	case "create", "mkdir":
		o.P = fresh()
	case "symlink":
		o.P, o.Q = fresh(), have()
	case "link":
		o.Q = fresh()
	case "rename":
		if o.Q = fresh(); r.IntN(2) == 0 {
			o.Q = have()
		}
	case "exchange":
		o.Q = have()
	}
	return o, nil
}

// refused are the answers that a local disk gives too.
var refused = []error{unix.EEXIST, unix.ENOENT, unix.ENOTDIR, unix.EISDIR, unix.ENOTEMPTY, unix.EINVAL, unix.EPERM,
	unix.ELOOP, unix.EOPNOTSUPP, unix.EACCES}

func write(root, shadow, seed string) error {
	n, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	unix.Umask(0)
	r := rand.New(rand.NewPCG(n, 1))
	for {
		o, err := randomOp(r, shadow)
		if err != nil {
			return err
		}
		err = o.apply(root)
		if err != nil && !slices.ContainsFunc(refused, func(e error) bool { return errors.Is(err, e) }) {
			return json.NewEncoder(os.Stdout).Encode(o) // the end of the daemon
		}
		if o.Name == "link" && errors.Is(err, unix.EPERM) {
			continue // the file is another's: fs.protected_hardlinks (may_linkat)
		}
		serr := o.apply(shadow)
		if (err == nil) != (serr == nil) {
			return fmt.Errorf("%+v: the mount says %v, a local disk %w", o, err, serr)
		}
	}
}

func compare(root, shadow, last string) error {
	difference, err := differences(root, shadow)
	if err != nil || difference == "" {
		return err
	}
	var o op
	if err := json.Unmarshal([]byte(last), &o); err != nil {
		return err
	}
	finish := o.apply
	if o.Name == "write" { // a write may be cut anywhere
		data, err := writtenOf(filepath.Join(root, o.P), o.N)
		if err != nil {
			return err
		}
		_, off := writeData(o.N)
		finish = func(shadow string) error { return writeBytes(filepath.Join(shadow, o.P), data, off) }
	}
	if err := finish(shadow); err != nil {
		return fmt.Errorf("without %+v, which fails here with %w: %s", o, err, difference)
	}
	with, err := differences(root, shadow)
	if err == nil && with != "" {
		err = fmt.Errorf("without %+v: %s\nwith it: %s", o, difference, with)
	}
	return err
}

func differences(root, shadow string) (string, error) {
	want, err := imagetest.ReadTree(shadow)
	if err != nil {
		return "", err
	}
	got, err := imagetest.ReadTree(root)
	if err != nil {
		return "", err
	}
	if os.Geteuid() != 0 { // the local disk cannot have the image's owners
		for _, tree := range []imagetest.Tree{want, got} {
			for _, e := range tree {
				e.UID, e.GID = 0, 0
			}
		}
	}
	var out []string
	for _, d := range imagetest.Compare(want, got, imagetest.CompareOptions{DirNlink: true, IgnoreTime: func(string) bool { return true }}) {
		out = append(out, d.String())
	}
	return strings.Join(out, "\n"), nil
}

func inodes(root string) error {
	return filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		fmt.Printf("%d %o %q\n", st.Ino, st.Mode&unix.S_IFMT, strings.TrimPrefix(p, root))
		return nil
	})
}
