package cas

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// linkedDir is a directory of blobs that is a symbolic link: `skopeo copy
// --dest-shared-blob-dir` stores the blobs of many layouts in one place, and who reads
// such a layout by other programs links blobs/ALGORITHM, or blobs, to that.
type linkedDir struct {
	name string // in the layout
	root *os.Root
}

// openLinked opens the directories of blobs that are links.
func (l *Layout) openLinked() error {
	names := []string{ispec.ImageBlobsDir}
	entries, err := fs.ReadDir(l.root.FS(), ispec.ImageBlobsDir)
	if err == nil {
		names = nil
		for _, e := range entries {
			if e.Type() == fs.ModeSymlink {
				names = append(names, path.Join(ispec.ImageBlobsDir, e.Name()))
			}
		}
	}
	for _, name := range names {
		root, err := l.followLink(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // then its blobs are not there either
		}
		if err != nil {
			return fmt.Errorf("follow %s: %w", filepath.Join(l.path, name), err)
		}
		if root != nil {
			l.linked = append(l.linked, linkedDir{name, root})
		}
	}
	return nil
}

// followLink opens the directory that a symbolic link leads to; nil where the name is
// no link, or is one that neither the caller nor root has made: its owner would choose
// where root writes.
func (l *Layout) followLink(name string) (_ *os.Root, err error) {
	f, err := l.root.OpenFile(name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode().Type() != fs.ModeSymlink || int(st.Uid) != os.Geteuid() && st.Uid != 0 {
		return nil, nil
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return nil, fmt.Errorf("readlink: %w", err)
	}
	target := string(buf[:n])
	if !filepath.IsAbs(target) {
		target = filepath.Join(l.path, path.Dir(name), target)
	}
	return os.OpenRoot(target)
}

// at is the directory that a name of the layout is below, and the name in that.
func (l *Layout) at(name string) (*os.Root, string) {
	for _, d := range l.linked {
		if name == d.name {
			return d.root, "."
		}
		if rest, ok := strings.CutPrefix(name, d.name+"/"); ok {
			return d.root, rest
		}
	}
	return l.root, name
}

// move renames a file of the layout's own directory.
func (l *Layout) move(from, to string) (err error) {
	root, rest := l.at(to)
	if root == l.root {
		return l.root.Rename(from, to)
	}
	src, err := l.root.Open(path.Dir(from))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst, err := root.Open(path.Dir(rest))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if err := unix.Renameat(int(src.Fd()), path.Base(from), int(dst.Fd()), path.Base(rest)); err != nil {
		return &os.LinkError{Op: "renameat", Old: from, New: filepath.Join(root.Name(), rest), Err: err}
	}
	return nil
}

func (l *Layout) closeLinked() error {
	var err error
	for _, d := range l.linked {
		err = errors.Join(err, d.root.Close())
	}
	return err
}
