package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// ErrChanging: a file was written to each time it was read.
var ErrChanging = errors.New("the file keeps changing while it is read")

// fileVersion tells states of a file apart.
type fileVersion struct {
	size         int64
	mtime, ctime layer.Timespec
}

// versionedTree is a tree that may be written to while it is read.
type versionedTree interface {
	tree
	version(ino layer.Ino) (fileVersion, error)
}

func (t viewTree) version(ino layer.Ino) (fileVersion, error) {
	a, err := t.fs.GetAttr(ino)
	return versionOf(a), err
}

func versionOf(a overlay.Attr) fileVersion { return fileVersion{a.Size, a.Mtime, a.Ctime} }

const (
	// smallFile is the size in bytes up to which a file is held in memory, so that
	// a read that a writer spoilt can be done again by itself.
	smallFile = 4 << 20
	// readAttempts is how often a file, or a whole layer, is read when writers
	// spoil it.
	readAttempts = 5
)

// recordSource gives the entries of a plan with their content.
type recordSource struct {
	view versionedTree
	buf  []byte // of a small file
	// spoilt says that the consumer stopped in a file that was written to: its
	// error means ErrChanging.
	spoilt bool
}

// records are what layer.WriteDiff takes. ErrChanging names a large file that was
// written to: all may be tried again.
func (s *recordSource) records(ctx context.Context, plan []planned) iter.Seq2[layer.Record, error] {
	return func(yield func(layer.Record, error) bool) {
		for i := range plan {
			err := ctx.Err()
			if err == nil {
				err = s.record(&plan[i], func(r layer.Record) bool { return yield(r, nil) })
			}
			if errors.Is(err, errStop) {
				return
			}
			if err != nil {
				yield(layer.Record{}, fmt.Errorf("read %q: %w", plan[i].path, err))
				return
			}
		}
	}
}

// errStop says that the consumer of the records wants no more.
var errStop = errors.New("stop")

func (s *recordSource) record(p *planned, yield func(layer.Record) bool) error {
	r := layer.Record{Path: p.path, Whiteout: p.whiteout, Link: p.link}
	if p.now != nil {
		r.Attr, r.Symlink, r.Xattrs = p.now.attr, p.now.target, p.now.xattrs
	}
	if p.now == nil || p.link != "" || p.now.typ() != unix.S_IFREG {
		if !yield(r) {
			return errStop
		}
		return nil
	}
	return s.file(&r, yield)
}

// file is a record with content.
func (s *recordSource) file(r *layer.Record, yield func(layer.Record) bool) (err error) {
	f, err := s.view.open(r.Attr.Ino)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for range readAttempts {
		before, err := s.view.version(r.Attr.Ino)
		if err != nil {
			return err
		}
		if r.Attr.Mtime.Sec != before.mtime.Sec {
			r.Attr.Mtime = before.mtime
		}
		r.Attr.Size = before.size
		if before.size > smallFile {
			return s.large(r, f, before, yield)
		}
		if err := s.small(f, before.size); err != nil {
			return err
		}
		after, err := s.view.version(r.Attr.Ino)
		if err != nil {
			return err
		}
		if before == after {
			r.Content = bytes.NewReader(s.buf)
			if !yield(*r) {
				return errStop
			}
			return nil
		}
	}
	return ErrChanging
}

// small reads size bytes; less where the file became shorter, which its version
// tells.
func (s *recordSource) small(f content, size int64) error {
	if int64(cap(s.buf)) < size {
		s.buf = make([]byte, max(size, 64<<10))
	}
	n, err := f.ReadAt(s.buf[:size], 0)
	s.buf = s.buf[:n]
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

// large yields a file that is read as it is written.
func (s *recordSource) large(r *layer.Record, f content, before fileVersion, yield func(layer.Record) bool) error {
	r.Content = io.NewSectionReader(f, 0, before.size)
	more := yield(*r)
	after, err := s.view.version(r.Attr.Ino)
	if err != nil {
		return err
	}
	switch {
	case before == after && more:
		return nil
	case before == after:
		return errStop
	case more:
		return ErrChanging
	}
	s.spoilt = true // the consumer may have stopped for content that ended early
	return errStop
}
