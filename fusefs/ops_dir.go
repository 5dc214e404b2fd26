package fusefs

import (
	"errors"
	"os"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// OpenDir tells the kernel not to ask: it opens directories by itself from then on,
// and keeps their listings (fuse_file_open takes ENOSYS for FOPEN_CACHE_DIR and
// FOPEN_KEEP_CACHE). It drops a listing at each change that it sends
// (fs/fuse/readdir.c:fuse_readdir_cached compares i_version, which fuse_dir_changed
// bumps), and no other changes exist.
func (o *ops) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	o.stats.count(opOpenDir)
	if o.noOpenDir {
		return fuse.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// listing gives the directory to read from, and the position to go on at. What the
// kernel caches from the start on counts as true at that request: a change of this
// directory is complete when the read begins, as the kernel locks the directory. So a
// read from the start takes a new listing, unless no name changed anywhere since the
// last was taken; a read further on takes what there is, whoever took it.
func (o *ops) listing(op opcode, in *fuse.ReadIn) (*overlay.DirHandle, int, fuse.Status) {
	ino := overlay.Ino(in.NodeId)
	now := o.nameChanges.Load()
	h := o.listings.get(ino, now, in.Offset == 0)
	if h == nil {
		var err error
		if h, err = o.fs.OpenDir(ino); err != nil {
			return nil, 0, o.status(op, in.NodeId, err)
		}
		o.listings.put(ino, now, h)
	}
	return h, h.After(in.Offset), fuse.OK
}

// ReadDir lists names with number and type, but for those that are gone meanwhile.
func (o *ops) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	o.stats.count(opReadDir)
	h, i, st := o.listing(opReadDir, in)
	if !st.Ok() {
		return st
	}
	for ; ; i++ {
		e, ok, err := h.Entry(i)
		if err != nil {
			return o.endListing(opReadDir, in, out, err)
		}
		if ok && e.Ino == 0 {
			continue
		}
		if !ok || !out.AddDirEntry(wireEntry(&e)) {
			return fuse.OK
		}
	}
}

// ReadDirPlus lists names with their attributes: a LOOKUP of each, with its
// reference. "." and ".." go without (the kernel drops them), and so does what comes
// late in a long listing, until somebody asks.
func (o *ops) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	o.stats.count(opReadDirPlus)
	h, i, st := o.listing(opReadDirPlus, in)
	if !st.Ok() {
		return st
	}
	add := o.addPlus
	if !o.listings.withAttributes(overlay.Ino(in.NodeId), i) {
		add = addBare
	}
	for ; ; i++ {
		more, err := add(h, i, out)
		if err != nil {
			return o.endListing(opReadDirPlus, in, out, err)
		}
		if !more {
			return fuse.OK
		}
	}
}

// addPlus adds entry i; more is false when it is past the end or does not fit.
func (o *ops) addPlus(h *overlay.DirHandle, i int, out *fuse.DirEntryList) (more bool, err error) {
	if i < 2 {
		return addBare(h, i, out)
	}
	e, ok, err := h.EntryName(i)
	if err != nil || !ok {
		return false, err
	}
	a, err := o.fs.Lookup(h.Ino(), e.Name)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil // removed since the listing was taken
	}
	if err != nil { // it is broken: a LOOKUP of its own tells
		return addBare(h, i, out)
	}
	e.Ino, e.Mode = a.Ino, a.Mode
	entry := out.AddDirLookupEntry(wireEntry(&e))
	if entry == nil {
		o.fs.Forget(a.Ino, 1)
		return false, nil
	}
	o.fillEntry(entry, &a)
	return true, nil
}

// addBare is addPlus without attributes.
func addBare(h *overlay.DirHandle, i int, out *fuse.DirEntryList) (more bool, err error) {
	e, ok, err := h.Entry(i)
	if ok && e.Ino == 0 {
		return true, err
	}
	return err == nil && ok && out.AddDirLookupEntry(wireEntry(&e)) != nil, err
}

// endListing ends a reply with an error where it has no entries yet; else the
// error comes again with the next request.
func (o *ops) endListing(op opcode, in *fuse.ReadIn, out *fuse.DirEntryList, err error) fuse.Status {
	if len(out.Bytes()) > 0 {
		return fuse.OK
	}
	return o.status(op, in.NodeId, err)
}

func wireEntry(e *overlay.DirEntry) fuse.DirEntry {
	return fuse.DirEntry{Name: e.Name, Ino: uint64(e.Ino), Mode: e.Mode, Off: e.Cookie}
}

// ReleaseDir has nothing to end: a listing belongs to no open.
func (o *ops) ReleaseDir(*fuse.ReleaseIn) { o.stats.count(opReleaseDir) }

func (o *ops) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	o.stats.count(opFsyncDir)
	o.yield()
	return o.status(opFsyncDir, in.NodeId, o.fs.SyncDir(overlay.Ino(in.NodeId)))
}
