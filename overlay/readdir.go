package overlay

import (
	"cmp"
	"hash/fnv"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// DirEntry is one name of a listing.
type DirEntry struct {
	Name   string
	Ino    Ino    // 0 where only EntryName was asked, or the name is gone
	Mode   uint32 // S_IFMT bits; 0 where not known without a look at the object
	Cookie uint64 // orders the entries; see After
}

// Cookies. "." and ".." come first, then the names that the lower directory has, by
// their place in it, whether they are still its own or the upper's; then all others,
// by a hash. So a name has one cookie in all listings of its directory, whatever comes
// and goes beside it: reading goes on behind a cookie in any later listing.
//
// A program with a 32-bit off_t fails on a larger cookie (readdir in glibc: EOVERFLOW),
// so that the hash has 29 bits. Names that have it in common take another hash, which is
// above all of the first, and keep to it: who reads the directory can meet them again
// further on, and misses none.
const (
	cookieDot    = 1
	cookieDotDot = 2
	cookieLower  = 3       // of the lower directory's first name; there are fewer than layer.InoLimit
	cookieUpper  = 1 << 30 // the least of a hash
	cookieSecond = 3 << 29 // the least of a second hash
	cookieThird  = 1 << 62 // the least of a third, of 62 bits; off_t is signed
)

// takenHashes says which names of a directory have or had a hash in common with others:
// how many hashes of theirs are not used.
type takenHashes map[string]int

// upperCookie is a cookie of a name that the lower directory does not have.
func upperCookie(name string, taken int) uint64 {
	f := fnv.New64a()
	_, _ = f.Write([]byte(name)) // cannot fail
	h := f.Sum64()
	switch taken {
	case 0:
		return cookieUpper | (h^h>>32)&(1<<29-1)
	case 1:
		return cookieSecond | h*0x9e3779b97f4a7c15>>35 // 2^64 divided by the golden ratio
	}
	return cookieThird | h>>2
}

// DirHandle is the listing of a directory, as it was when it was opened. Safe for
// concurrent use.
type DirHandle struct {
	fs     *FS
	ino    Ino
	parent Ino
	lower  Ino // the listing is this lower directory's; 0: merged holds it
	count  int // of lower

	mu     sync.Mutex
	merged []DirEntry // the listing by cookie, where the directory has an upper; Ino and Mode are protected by mu
}

// OpenDir lists a directory. Once the upper directory was removed, all are empty: who
// removes the bundle has nothing to remove here.
func (fs *FS) OpenDir(ino Ino) (*DirHandle, error) {
	fs.treeMu.RLock()
	defer fs.treeMu.RUnlock()
	ref, err := fs.dir(ino)
	if err != nil {
		return nil, err
	}
	d := &DirHandle{fs: fs, ino: ino, parent: fs.parentOf(ref)}
	if fs.upperGone() {
		fs.leaveRoot(ino)
		return d, nil
	}
	switch {
	case ref.n != nil && ref.n.removed.Load():
	case !ref.hasUpper():
		d.lower = ref.lower
		d.count, err = fs.lower.NumEntries(ref.lower)
	default:
		d.merged, err = fs.listMerged(ref)
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Len is how many entries there are, "." and ".." included.
func (d *DirHandle) Len() int { return 2 + d.count + len(d.merged) }

// After is the position of the first entry behind a cookie; 0 is the start.
func (d *DirHandle) After(cookie uint64) int {
	switch {
	case cookie < cookieLower:
		return int(cookie)
	case d.lower != 0:
		return 2 + int(min(cookie-cookieLower+1, uint64(d.count)))
	}
	i, found := slices.BinarySearchFunc(d.merged, cookie, func(e DirEntry, c uint64) int { return cmp.Compare(e.Cookie, c) })
	if found {
		i++
	}
	return 2 + i
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
// cookie, less the whiteouts and what they hide. Preconditions: treeMu is held.
func (fs *FS) listMerged(d dirRef) ([]DirEntry, error) {
	fd, err := fs.dirFD(d.n)
	if err != nil {
		return nil, err
	}
	defer fs.dirFDs.release(fd)
	raw, err := fs.upper.list(fd.fd, 0)
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
			if out, err = fs.appendUpper(out, fd.fd, raw[0], 0); err != nil {
				return nil, err
			}
			raw = raw[1:]
		}
		cookie := uint64(cookieLower + i)
		if len(raw) > 0 && raw[0].name == e.Name {
			if out, err = fs.appendUpper(out, fd.fd, raw[0], cookie); err != nil {
				return nil, err
			}
			raw = raw[1:]
			continue
		}
		out = append(out, DirEntry{Name: e.Name, Ino: e.Ino, Mode: e.Mode, Cookie: cookie})
	}
	for _, e := range raw {
		if out, err = fs.appendUpper(out, fd.fd, e, 0); err != nil {
			return nil, err
		}
	}
	d.n.orderListing(out)
	return out, nil
}

// orderListing gives the names that have no cookie theirs and sorts by it.
func (n *node) orderListing(list []DirEntry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range list {
		if e := &list[i]; e.Cookie == 0 {
			e.Cookie = upperCookie(e.Name, n.taken[e.Name])
		}
	}
	for again := true; again; {
		slices.SortStableFunc(list, func(a, b DirEntry) int { return cmp.Compare(a.Cookie, b.Cookie) })
		again = n.partLocked(list)
	}
	for i := 1; i < len(list); i++ { // two names of one third hash
		list[i].Cookie = max(list[i].Cookie, list[i-1].Cookie+1)
	}
}

// partLocked gives names that have a cookie in common their next, and reports whether
// there were any. Preconditions: n.mu is held; list is sorted.
func (n *node) partLocked(list []DirEntry) (parted bool) {
	for i := 1; i < len(list); i++ {
		same := list[i-1].Cookie
		if list[i].Cookie != same || same >= cookieThird {
			continue
		}
		if n.taken == nil {
			n.taken = takenHashes{}
		}
		for i--; i < len(list) && list[i].Cookie == same; i++ {
			e := &list[i]
			n.taken[e.Name]++
			e.Cookie = upperCookie(e.Name, n.taken[e.Name])
		}
		parted = true
	}
	return parted
}

// appendUpper adds an upper entry unless it is a whiteout. Its number is looked
// up when it is asked for; so is the cookie, where it is 0, when all are there.
func (fs *FS) appendUpper(out []DirEntry, dirfd int, e rawEntry, cookie uint64) ([]DirEntry, error) {
	white, err := fs.entryIsWhiteout(dirfd, e)
	if err != nil || white {
		return out, err
	}
	if fs.upper.rootless && e.typ == unix.S_IFREG {
		e.typ = 0 // may stand in for another type
	}
	return append(out, DirEntry{Name: e.name, Mode: e.typ, Cookie: cookie}), nil
}

// Ino is the directory that is open.
func (d *DirHandle) Ino() Ino { return d.ino }

// EntryName is the entry at position i with no more than what the listing
// itself says; ok is false at the end. Positions 0 and 1 are "." and "..".
func (d *DirHandle) EntryName(i int) (e DirEntry, ok bool, err error) {
	switch {
	case i < 0:
		return e, false, ErrInvalid
	case i == 0:
		return DirEntry{".", d.ino, unix.S_IFDIR, cookieDot}, true, nil
	case i == 1:
		return DirEntry{"..", d.parent, unix.S_IFDIR, cookieDotDot}, true, nil
	}
	i -= 2
	if d.lower == 0 {
		if i >= len(d.merged) {
			return e, false, nil
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.merged[i], true, nil
	}
	if i >= d.count {
		return e, false, nil
	}
	le, err := d.fs.lower.Entry(d.lower, i)
	return DirEntry{le.Name, le.Ino, le.Mode, uint64(cookieLower + i)}, err == nil, err
}

// Entry is EntryName with the number and the type. A name that was removed since the listing
// was taken keeps its position, and has number 0.
func (d *DirHandle) Entry(i int) (DirEntry, bool, error) {
	e, ok, err := d.EntryName(i)
	if err != nil || !ok || e.Ino != 0 && e.Mode != 0 {
		return e, ok, err
	}
	id, err := d.fs.identifyName(d.ino, e.Name)
	if isNotExist(err) {
		return DirEntry{Name: e.Name, Cookie: e.Cookie}, true, nil
	}
	if err != nil {
		return e, false, err
	}
	e.Ino, e.Mode = id.ino, id.typ
	d.mu.Lock()
	d.merged[i-2] = e
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
