package fusefs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// dir is an open directory. A position in its listing is the offset on the wire:
// entry i stands at offset i, and the offset after it is i+1.
type dir struct {
	h *overlay.DirHandle

	mu sync.Mutex
	// taken is nameChanges when the listing was taken; protected by mu.
	taken uint64
}

// OpenDir lets the kernel keep the listing across opens. It drops it by itself
// at each change that it sends (fs/fuse/readdir.c:fuse_readdir_cached compares
// i_version, which fuse_dir_changed bumps), and no other changes exist.
func (o *ops) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	o.stats.count(opOpenDir)
	taken := o.nameChanges.Load()
	h, err := o.fs.OpenDir(overlay.Ino(in.NodeId))
	if err != nil {
		return o.status(opOpenDir, in.NodeId, err)
	}
	out.Fh = o.dirs.add(&dir{h: h, taken: taken})
	out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// rewind takes a new listing for a read from the start, unless no name changed
// since the last was taken. It matters beyond what rewinddir(3) asks: what the
// kernel caches from here on counts as true at this request. A change of this
// directory is complete when the read begins, as the kernel locks the directory.
func (o *ops) rewind(d *dir) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := o.nameChanges.Load()
	if now == d.taken {
		return nil
	}
	if err := d.h.Rewind(); err != nil {
		return err
	}
	d.taken = now
	return nil
}

// dirAt is the directory to read from, at the start of a listing if so asked.
func (o *ops) dirAt(op opcode, in *fuse.ReadIn) (*dir, fuse.Status) {
	d := o.dirs.get(in.Fh)
	if d == nil {
		return nil, fuse.EBADF
	}
	if in.Offset > 0 {
		return d, fuse.OK
	}
	return d, o.status(op, in.NodeId, o.rewind(d))
}

// ReadDir lists names with number and type.
func (o *ops) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	o.stats.count(opReadDir)
	d, st := o.dirAt(opReadDir, in)
	if !st.Ok() {
		return st
	}
	for i := int(in.Offset); ; i++ {
		e, ok, err := d.h.Entry(i)
		if err != nil {
			return o.endListing(opReadDir, in, out, err)
		}
		if !ok || !out.AddDirEntry(wireEntry(&e, i)) {
			return fuse.OK
		}
	}
}

// ReadDirPlus lists names with their attributes: a LOOKUP of each, with its
// reference. "." and ".." go without (the kernel drops them).
func (o *ops) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	o.stats.count(opReadDirPlus)
	d, st := o.dirAt(opReadDirPlus, in)
	if !st.Ok() {
		return st
	}
	for i := int(in.Offset); ; i++ {
		more, err := o.addPlus(d.h, i, out)
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
		e, ok, err := h.Entry(i)
		return ok && out.AddDirLookupEntry(wireEntry(&e, i)) != nil, err
	}
	e, ok, err := h.EntryName(i)
	if err != nil || !ok {
		return false, err
	}
	a, err := o.fs.Lookup(h.Ino(), e.Name)
	if err != nil {
		// Gone since the listing was taken, or broken: it is listed with no
		// attributes, and a LOOKUP of its own tells.
		if e, ok, err = h.Entry(i); err != nil {
			return false, err
		}
		return ok && out.AddDirLookupEntry(wireEntry(&e, i)) != nil, nil
	}
	e.Ino, e.Mode = a.Ino, a.Mode
	entry := out.AddDirLookupEntry(wireEntry(&e, i))
	if entry == nil {
		o.fs.Forget(a.Ino, 1)
		return false, nil
	}
	o.fillEntry(entry, &a)
	return true, nil
}

// endListing ends a reply with an error where it has no entries yet; else the
// error comes again with the next request.
func (o *ops) endListing(op opcode, in *fuse.ReadIn, out *fuse.DirEntryList, err error) fuse.Status {
	if len(out.Bytes()) > 0 {
		return fuse.OK
	}
	return o.status(op, in.NodeId, err)
}

func wireEntry(e *overlay.DirEntry, i int) fuse.DirEntry {
	return fuse.DirEntry{Name: e.Name, Ino: uint64(e.Ino), Mode: e.Mode, Off: uint64(i) + 1}
}

func (o *ops) ReleaseDir(in *fuse.ReleaseIn) {
	o.stats.count(opReleaseDir)
	if d := o.dirs.remove(in.Fh); d != nil {
		o.closeDir(d)
	}
}

func (o *ops) closeDir(d *dir) {
	if err := d.h.Close(); err != nil {
		o.logFailure(opReleaseDir, uint64(d.h.Ino()), err)
	}
}

func (o *ops) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	o.stats.count(opFsyncDir)
	d := o.dirs.get(in.Fh)
	if d == nil {
		return fuse.EBADF
	}
	return o.status(opFsyncDir, in.NodeId, d.h.Sync())
}
