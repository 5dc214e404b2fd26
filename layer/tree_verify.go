package layer

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// Verify reads the whole tree: every section's CRC, then every record and what
// it refers to. It answers ErrChecksum or ErrCorrupt.
func (t *Tree) Verify(ctx context.Context) error {
	if err := t.checkSums(); err != nil {
		return err
	}
	for i := range t.Len() {
		if i%4096 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := t.verifyInode(Ino(i + 1)); err != nil {
			return fmt.Errorf("inode %d: %w", i+1, err)
		}
	}
	return nil
}

func (t *Tree) verifyInode(ino Ino) error {
	var r inodeRow
	if err := t.row(ino, &r); err != nil {
		return err
	}
	if (ino == RootIno) != (r.numNames() == 0) || r.flags&^knownFlags != 0 {
		return ErrCorrupt
	}
	for i := range r.numNames() {
		ref, err := t.nameRef(&r, i)
		if err != nil {
			return err
		}
		if got, err := t.Lookup(ref.parent, ref.name); err != nil || got != ino {
			return ErrCorrupt
		}
	}
	run, err := t.xattrRun(&r)
	if err != nil {
		return err
	}
	for ; len(run) > 0; run = run[xattrSize:] {
		if _, _, err := t.xattr(run); err != nil {
			return err
		}
	}
	switch r.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return t.verifyDir(ino)
	case unix.S_IFLNK:
		_, err = t.Readlink(ino)
	case unix.S_IFREG:
		_, err = t.Extents(ino)
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO:
	default:
		return ErrCorrupt
	}
	return err
}

// verifyDir checks that names are sorted and plain, that types agree, and that
// directories come before what is in them.
func (t *Tree) verifyDir(dir Ino) error {
	n, err := t.NumEntries(dir)
	if err != nil {
		return err
	}
	before := ""
	for i := range n {
		d, err := t.Entry(dir, i)
		if err != nil {
			return err
		}
		a, err := t.Attr(d.Ino)
		if err != nil {
			return ErrCorrupt
		}
		if d.Name <= before || !plainName([]byte(d.Name)) || a.Mode&unix.S_IFMT != d.Mode ||
			d.Mode == unix.S_IFDIR && d.Ino <= dir {
			return ErrCorrupt
		}
		before = d.Name
	}
	return nil
}
