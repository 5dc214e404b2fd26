package build

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// point is something of the host that a step sees in its root file system.
type point struct {
	source string // "": made by the runtime
	target string // absolute, in the image
	dir    bool
}

// points makes the mountpoints that an image lacks, and takes them away after a step, so
// that no layer has them. The times of the directories they are in stay what they were.
type points struct {
	rootfs string
	root   *os.Root // nil: closed
	made   []madePoint
}

func (p *points) open() (err error) {
	p.root, err = os.OpenRoot(p.rootfs)
	return err
}

// close lets go of the root file system, which could not be unmounted else.
func (p *points) close() error {
	if p.root == nil {
		return nil
	}
	err := p.root.Close()
	p.root = nil
	return err
}

type madePoint struct{ path, parent string }

// resolve is where a path leads in the image, without symlinks, also where the end of
// it is missing.
func (p *points) resolve(name string) (string, error) {
	at, links := ".", 0
	for rest := strings.Split(name, "/"); len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		info, err := p.root.Lstat(next)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err != nil || info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > 40 {
			return "", &fs.PathError{Op: "look up", Path: name, Err: unix.ELOOP}
		}
		target, err := p.root.Readlink(next)
		if err != nil {
			return "", err
		}
		if path.IsAbs(target) {
			at = "."
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return at, nil
}

// make sees to it that something is there to mount on, and gives its path.
func (p *points) make(pt point) (string, error) {
	name, err := p.resolve(pt.target)
	if err != nil {
		return "", fmt.Errorf("find %s in the image: %w", pt.target, err)
	}
	var above []string
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		above = append([]string{dir}, above...)
	}
	for _, dir := range above {
		if err := p.add(dir, true); err != nil {
			return "", fmt.Errorf("make %s in the image: %w", pt.target, err)
		}
	}
	if err := p.add(name, pt.dir); err != nil {
		return "", fmt.Errorf("make %s in the image: %w", pt.target, err)
	}
	return "/" + name, nil
}

func (p *points) add(name string, dir bool) error {
	if _, err := p.root.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := path.Dir(name)
	return p.keepTimes(parent, func() error {
		var err error
		if dir {
			err = p.root.Mkdir(name, 0o755)
		} else {
			var f *os.File
			if f, err = p.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); err == nil {
				err = f.Close()
			}
		}
		if err == nil {
			p.made = append(p.made, madePoint{name, parent})
		}
		return err
	})
}

// keepTimes gives a directory the times that it had before fn.
func (p *points) keepTimes(dir string, fn func() error) error {
	info, err := p.root.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.ErrUnsupported
	}
	if err := fn(); err != nil {
		return err
	}
	return p.root.Chtimes(dir, time.Unix(st.Atim.Unix()), time.Unix(st.Mtim.Unix()))
}

// undo takes the mountpoints away. What a step has put something into stays.
func (p *points) undo() error {
	if p.root == nil {
		return nil // the tree is thrown away
	}
	var errs []error
	for i := len(p.made) - 1; i >= 0; i-- {
		m := p.made[i]
		err := p.keepTimes(m.parent, func() error { return p.root.Remove(m.path) })
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) {
			continue
		}
		errs = append(errs, err)
	}
	p.made = nil
	return errors.Join(errs...)
}
