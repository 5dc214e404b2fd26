package imagetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is one object of a tree, as lstat(2) and its companions see it.
type Entry struct {
	Path   string // relative, "." is the root
	Mode   uint32 // st_mode, type included
	UID    uint32
	GID    uint32
	Size   int64 // bytes; 0 of directories, whose size is the file system's affair
	Mtime  time.Time
	Target string // of a symlink
	Nlink  uint64
	Rdev   uint64            // of devices
	Xattrs map[string]string // of all namespaces
	Sum    string            // sha256 of a regular file's content, in hex
	Ino    uint64
	Group  string // of an object with several names in the tree: the first of them
}

// Type is the file type bits of the mode.
func (e *Entry) Type() uint32 { return e.Mode & unix.S_IFMT }

// Tree is what is in a directory, by path.
type Tree map[string]*Entry

// ReadTree walks a directory, without following symlinks, into other file systems
// too. It reads every file.
func ReadTree(root string) (Tree, error) {
	return ReadTreeExcept(root, func(string) bool { return false })
}

// ReadTreeExcept is ReadTree without the paths that skip names, and without what is
// below them: a process may change what is there while the tree is read.
func ReadTreeExcept(root string, skip func(rel string) bool) (Tree, error) {
	t := Tree{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(root, name)
		if relErr != nil {
			return relErr
		}
		switch {
		case skip(rel) && d != nil && d.IsDir():
			return fs.SkipDir
		case skip(rel):
			return nil
		case err != nil:
			return err
		}
		e, err := readEntry(name)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		e.Path = rel
		t[rel] = e
		return nil
	})
	if err != nil {
		return nil, err
	}
	t.group()
	return t, nil
}

// group finds the names of one object.
func (t Tree) group() {
	first := map[uint64]string{}
	count := map[uint64]int{}
	for _, p := range t.Paths() {
		e := t[p]
		if e.Type() == unix.S_IFDIR {
			continue
		}
		if _, ok := first[e.Ino]; !ok {
			first[e.Ino] = p
		}
		count[e.Ino]++
	}
	for _, e := range t {
		if e.Type() != unix.S_IFDIR && count[e.Ino] > 1 {
			e.Group = first[e.Ino]
		}
	}
}

// Paths are the tree's, sorted.
func (t Tree) Paths() []string { return slices.Sorted(maps.Keys(t)) }

func readEntry(name string) (*Entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return nil, err
	}
	e := &Entry{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: uint64(st.Nlink), Ino: st.Ino, //nolint:unconvert // 32 bits on some architectures
		Mtime: time.Unix(st.Mtim.Unix()),
	}
	var err error
	switch e.Type() {
	case unix.S_IFREG:
		e.Size = st.Size
		e.Sum, err = sum(name, st.Size)
	case unix.S_IFLNK:
		e.Size = st.Size
		e.Target, err = os.Readlink(name)
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Rdev = uint64(st.Rdev) //nolint:unconvert // 32 bits on some architectures
	}
	if err != nil {
		return nil, err
	}
	e.Xattrs, err = xattrs(name)
	return e, err
}

// sum hashes a file, and sees that it is as long as stat says.
func sum(name string, size int64) (_ string, err error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return "", err
	}
	if n != size {
		return "", fmt.Errorf("%d bytes read, st_size is %d", n, size)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// hidden attributes belong to the host, not to the tree.
var hidden = []string{"security.selinux", "system.nfs4_acl"}

func xattrs(name string) (map[string]string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(name, list)
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	out := map[string]string{}
	value := make([]byte, 64<<10)
	for _, attr := range strings.Split(string(bytes.TrimSuffix(list[:n], []byte{0})), "\x00") {
		if slices.Contains(hidden, attr) {
			continue
		}
		n, err := unix.Lgetxattr(name, attr, value)
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", attr, err)
		}
		out[attr] = string(value[:n])
	}
	return out, nil
}
