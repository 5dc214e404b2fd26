package overlay

import (
	"cmp"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// DirEntry is one name of a listing.
type DirEntry struct {
	Name string
	Ino  Ino    // 0 where only EntryName was asked
	Mode uint32 // S_IFMT bits; 0 where not known without a look at the object
}

// DirHandle is one open of a directory. Its listing does not change until
// Rewind: entry i stays entry i. Safe for concurrent use.
type DirHandle struct {
	fs  *FS
	ino Ino

	mu     sync.Mutex
	parent Ino        // protected by mu
	merged []DirEntry // protected by mu; the listing, where the directory has an upper
	lower  Ino        // protected by mu; the listing is this lower directory's; 0: merged holds it
	count  int        // protected by mu; of lower
}

// OpenDir opens a directory for listing.
func (fs *FS) OpenDir(ino Ino) (*DirHandle, error) {
	d := &DirHandle{fs: fs, ino: ino}
	if err := d.Rewind(); err != nil {
		return nil, err
	}
	return d, nil
}

// Rewind takes a new listing, as rewinddir(3) asks.
func (d *DirHandle) Rewind() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	fs := d.fs
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	ref, err := fs.dir(d.ino)
	if err != nil {
		return err
	}
	d.merged, d.lower, d.count = nil, 0, 0
	d.parent = fs.parentOf(ref)
	switch {
	case ref.n != nil && ref.n.removed.Load():
		return nil
	case !ref.hasUpper():
		d.lower = ref.lower
		d.count, err = fs.lower.NumEntries(ref.lower)
		return err
	}
	d.merged, err = fs.listMerged(ref)
	return err
}

// parentOf is the number behind "..".
func (fs *FS) parentOf(d dirRef) Ino {
	if d.ino == fs.root.ino {
		return d.ino
	}
	if d.n != nil && d.n.parent != nil {
		return d.n.parent.ino
	}
	for dir := range fs.lower.Names(d.ino) {
		return dir
	}
	return d.ino
}

// listMerged lists a directory that has an upper: the names of both, sorted by
// bytes, less the whiteouts and what they hide. Preconditions: treeMu is held.
func (fs *FS) listMerged(d dirRef) ([]DirEntry, error) {
	fd, err := fs.dirFD(d.n)
	if err != nil {
		return nil, err
	}
	defer fs.dirFDs.release(fd)
	raw, err := fs.upper.readDir(fd.fd)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(raw, func(a, b rawEntry) int { return cmp.Compare(a.name, b.name) })
	count := 0
	if d.lower != 0 {
		if count, err = fs.lower.NumEntries(d.lower); err != nil {
			return nil, err
		}
	}
	out := make([]DirEntry, 0, len(raw)+count)
	for i := 0; i < count; i++ {
		e, err := fs.lower.Entry(d.lower, i)
		if err != nil {
			return nil, err
		}
		for len(raw) > 0 && raw[0].name < e.Name {
			if out, err = fs.appendUpper(out, fd.fd, raw[0]); err != nil {
				return nil, err
			}
			raw = raw[1:]
		}
		if len(raw) > 0 && raw[0].name == e.Name {
			continue // the upper's, in the next round
		}
		out = append(out, DirEntry{Name: e.Name, Ino: e.Ino, Mode: e.Mode})
	}
	for _, e := range raw {
		if out, err = fs.appendUpper(out, fd.fd, e); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// appendUpper adds an upper entry unless it is a whiteout. Its number is looked
// up when it is asked for.
func (fs *FS) appendUpper(out []DirEntry, dirfd int, e rawEntry) ([]DirEntry, error) {
	white, err := fs.entryIsWhiteout(dirfd, e)
	if err != nil || white {
		return out, err
	}
	if fs.upper.rootless && e.typ == unix.S_IFREG {
		e.typ = 0 // may stand in for another type
	}
	return append(out, DirEntry{Name: e.name, Mode: e.typ}), nil
}

// Ino is the directory that is open.
func (d *DirHandle) Ino() Ino { return d.ino }

// EntryName is the entry at position i with no more than what the listing
// itself says; ok is false at the end. Positions 0 and 1 are "." and "..".
func (d *DirHandle) EntryName(i int) (e DirEntry, ok bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case i < 0:
		return e, false, ErrInvalid
	case i == 0:
		return DirEntry{".", d.ino, unix.S_IFDIR}, true, nil
	case i == 1:
		return DirEntry{"..", d.parent, unix.S_IFDIR}, true, nil
	}
	i -= 2
	if d.lower == 0 {
		if i >= len(d.merged) {
			return e, false, nil
		}
		return d.merged[i], true, nil
	}
	if i >= d.count {
		return e, false, nil
	}
	le, err := d.fs.lower.Entry(d.lower, i)
	return DirEntry{le.Name, le.Ino, le.Mode}, err == nil, err
}

// Entry is EntryName with the number and the type.
func (d *DirHandle) Entry(i int) (DirEntry, bool, error) {
	e, ok, err := d.EntryName(i)
	if err != nil || !ok || e.Ino != 0 && e.Mode != 0 {
		return e, ok, err
	}
	id, err := d.fs.identifyName(d.ino, e.Name)
	if isNotExist(err) {
		// Removed since the listing was taken; it keeps its position.
		return DirEntry{e.Name, upperIno(0), e.Mode}, true, nil
	}
	if err != nil {
		return e, false, err
	}
	e.Ino, e.Mode = id.ino, id.typ
	d.mu.Lock()
	if i -= 2; i < len(d.merged) && d.merged[i].Name == e.Name {
		d.merged[i] = e
	}
	d.mu.Unlock()
	return e, true, nil
}

// identifyName finds number and type of a name without making a node.
func (fs *FS) identifyName(dir Ino, name string) (identity, error) {
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	d, err := fs.dir(dir)
	if err != nil {
		return identity{}, err
	}
	if d.hasUpper() && !d.n.removed.Load() {
		p, err := fs.dirPlace(d.n, name)
		if err != nil {
			return identity{}, err
		}
		defer fs.put(p)
		var st unix.Statx_t
		err = fs.upper.stat(p.at, &st)
		white := false
		if err == nil {
			white, err = fs.upper.isWhiteout(p.at, &st)
		}
		if err == nil && !white {
			if n := fs.table.byUpper(st.Ino, false); n != nil {
				return identity{n.ino, n.typ, n.lower}, nil
			}
			m, err := fs.upper.meta(p.at)
			if err != nil {
				return identity{}, err
			}
			return fs.identify(d, name, uint32(st.Mode)&unix.S_IFMT, st.Ino, m)
		}
	}
	f, err := fs.resolve(d, name, false)
	if err == nil && !f.exists() {
		err = errNotFound
	}
	return identity{ino: f.ino, typ: f.typ}, err
}

// Sync is fsync(2) of the directory.
func (d *DirHandle) Sync() error { return d.fs.SyncDir(d.ino) }

// Close ends the handle's use.
func (d *DirHandle) Close() error { return nil }
