package layer

import (
	"archive/tar"
	"cmp"
	"errors"
	"fmt"
	"io"
	"iter"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// Record is one entry of a layer to be written. Of Whiteout, Opaque and Link at
// most one is set.
type Record struct {
	// Path is what the entry is about: relative, cleaned, "." for the root.
	Path string
	// Whiteout says that Path is gone; nothing but Path counts.
	Whiteout bool
	// Opaque says that all that lower layers have in directory Path is gone;
	// nothing but Path counts. It stands beside the directory's own record.
	Opaque bool
	// Attr is the inode, in the image's ids. Of Mtime the seconds count.
	Attr Attr
	// Link is the path of an earlier record of the same inode: a hard link.
	Link string
	// Symlink is the target of a symbolic link.
	Symlink string
	// Xattrs are the extended attributes by name; no value is empty.
	Xattrs map[string]string
	// Content is read for a regular file with a size: Attr.Size bytes.
	Content io.Reader
}

// DiffOptions says how a layer is written.
type DiffOptions struct {
	// Epoch, where set, is the latest time an entry gets (SOURCE_DATE_EPOCH).
	Epoch *time.Time
	// Skipped is told of each socket, which no tar can hold. May be nil.
	Skipped func(path string)
}

// WriteDiff writes records as the plain tar stream of a layer, which is a
// function of the records and options alone, and returns its table of contents
// for Cache.PutIndex: what a scan of the stream gives.
//
// The records must come in the order of ComparePaths, each path once; another
// order is ErrRecord. A name that would be read as a whiteout is ErrReservedName,
// a body of another length than its size ErrBodySize; both name the path. An
// error of recs ends the writing and is returned.
func WriteDiff(w io.Writer, recs iter.Seq2[Record, error], opt DiffOptions) (toc []byte, err error) {
	pr, pw := io.Pipe()
	type result struct {
		toc []byte
		err error
	}
	scanned := make(chan result, 1)
	go func() {
		b, err := ScanTOC(pr)
		if err == nil {
			_, err = io.Copy(io.Discard, pr) // what follows the end mark
		}
		_ = pr.CloseWithError(err) // never fails
		scanned <- result{b, err}
	}()
	d := diffWriter{tw: tar.NewWriter(io.MultiWriter(w, pw)), opt: opt, linkable: map[string]bool{}}
	err = d.writeAll(recs)
	_ = pw.CloseWithError(err) // never fails; the scanner sees the error or the end
	r := <-scanned
	if err == nil {
		err = r.err
	}
	if err != nil {
		return nil, err
	}
	return r.toc, nil
}

// diffWriter carries the writing of one layer.
type diffWriter struct {
	tw   *tar.Writer
	opt  DiffOptions
	prev *Record // the last one, to check the order
	// linkable are the paths that a hard link can lead to.
	linkable map[string]bool
	buf      []byte // for bodies
}

func (d *diffWriter) writeAll(recs iter.Seq2[Record, error]) error {
	for r, err := range recs {
		if err != nil {
			return err
		}
		if err := d.write(&r); err != nil {
			return fmt.Errorf("write %q to the layer: %w", r.Path, err)
		}
	}
	if err := d.tw.Close(); err != nil {
		return fmt.Errorf("end the layer: %w", err)
	}
	return nil
}

func (d *diffWriter) write(r *Record) error {
	if err := d.check(r); err != nil {
		return err
	}
	prev := *r
	prev.Content = nil
	d.prev = &prev
	if !r.Whiteout && !r.Opaque && r.Attr.Mode&unix.S_IFMT == unix.S_IFSOCK {
		if d.opt.Skipped != nil {
			d.opt.Skipped(r.Path)
		}
		return nil
	}
	h, err := newHeader(r, d.opt.Epoch)
	if err != nil {
		return err
	}
	if err := d.tw.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeDir && h.Typeflag != tar.TypeLink && r.Attr.Nlink != 1 {
		d.linkable[r.Path] = true
	}
	return d.body(h, r)
}

// check refuses what would make a layer that says something else than the
// records do.
func (d *diffWriter) check(r *Record) error {
	clean, err := appendClean(nil, []byte(r.Path))
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrRecord, err)
	case r.Path != "." && (r.Path == "" || string(clean) != r.Path):
		return fmt.Errorf("%w: path is not clean", ErrRecord)
	case r.Path == "." && (r.Whiteout || !r.Opaque && r.Attr.Mode&unix.S_IFMT != unix.S_IFDIR):
		return fmt.Errorf("%w: the root must stay a directory", ErrRecord)
	case r.Whiteout && (r.Opaque || r.Link != ""), r.Opaque && r.Link != "":
		return fmt.Errorf("%w: more than one kind", ErrRecord)
	case IsWhiteoutName(path.Base(r.Path)):
		return ErrReservedName
	case r.Link != "" && !d.linkable[r.Link]:
		return fmt.Errorf("%w: hard link to %q, which is not in the layer before it", ErrRecord, r.Link)
	}
	return d.checkOrder(r)
}

// checkOrder refuses a record that does not come after the one before.
func (d *diffWriter) checkOrder(r *Record) error {
	if d.prev == nil {
		return nil
	}
	c := ComparePaths(d.prev.Path, r.Path)
	if c < 0 {
		return nil
	}
	if c == 0 && r.Opaque != d.prev.Opaque && isDirRecord(r) && isDirRecord(d.prev) {
		return nil
	}
	return fmt.Errorf("%w: comes after %q", ErrRecord, d.prev.Path)
}

// isDirRecord reports whether a record is about a directory that is there.
func isDirRecord(r *Record) bool {
	return r.Opaque || !r.Whiteout && r.Link == "" && r.Attr.Mode&unix.S_IFMT == unix.S_IFDIR
}

// copyBuffer is how much of a body is held in memory, in bytes.
const copyBuffer = 256 << 10

// body writes a regular file's content.
func (d *diffWriter) body(h *tar.Header, r *Record) error {
	if h.Typeflag != tar.TypeReg || r.Whiteout || r.Opaque || h.Size == 0 && r.Content == nil {
		return nil
	}
	if r.Content == nil {
		return fmt.Errorf("%w: no content for %d bytes", ErrRecord, h.Size)
	}
	if d.buf == nil {
		d.buf = make([]byte, copyBuffer)
	}
	// The wrappers keep the buffer in use where either side has a copy of its own.
	n, err := io.CopyBuffer(struct{ io.Writer }{d.tw}, io.LimitReader(r.Content, h.Size), d.buf)
	if err != nil {
		return err
	}
	if n < h.Size {
		return fmt.Errorf("%w: %d bytes of %d", ErrBodySize, n, h.Size)
	}
	var more [1]byte
	switch n, err := io.ReadFull(r.Content, more[:]); {
	case n > 0:
		return fmt.Errorf("%w: more than %d bytes", ErrBodySize, h.Size)
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

// ComparePaths orders cleaned paths by the bytes of their components: the root
// first, a directory before its content, and its content before anything else.
func ComparePaths(a, b string) int {
	if a == "." {
		a = ""
	}
	if b == "." {
		b = ""
	}
	for i := range min(len(a), len(b)) {
		if x, y := a[i], b[i]; x != y {
			return cmp.Compare(pathByte(x), pathByte(y))
		}
	}
	return cmp.Compare(len(a), len(b))
}

// pathByte puts the separator below every byte of a name.
func pathByte(c byte) byte {
	if c == '/' {
		return 0
	}
	return c
}
