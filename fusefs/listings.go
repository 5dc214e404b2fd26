package fusefs

import (
	"sync"
	"sync/atomic"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// Bounds of what is kept of listings. A listing of a directory without an upper
// takes no memory to speak of; another takes some 80 bytes an entry.
const (
	maxListings       = 256
	maxListingEntries = 1 << 18 // of all together, but for one that is larger alone
)

// plusEntries is how many entries of a directory come with their attributes whether or
// not anybody wants them. Attributes cost the kernel an inode each.
const plusEntries = 10_000

// listings are those that the kernel has begun to read. Nobody tells when it has
// ended, so the ones that were taken first go first; one that is needed again is
// taken again, and its cookies are the same.
type listings struct {
	mu      sync.Mutex
	of      map[overlay.Ino]listing // protected by mu
	order   []overlay.Ino           // protected by mu; by age; may name some that are gone
	entries int                     // protected by mu; the sum

	bare atomic.Bool // attributes were held back once
}

type listing struct {
	h     *overlay.DirHandle
	taken uint64 // ops.nameChanges at that time
	bare  bool   // entries went without attributes
	plus  bool   // and then somebody looked one up
}

// get is the listing of a directory; nil for none, or for one that was taken before
// the last change of a name if it has to be fresh.
func (l *listings) get(ino overlay.Ino, now uint64, fresh bool) *overlay.DirHandle {
	l.mu.Lock()
	defer l.mu.Unlock()
	have, ok := l.of[ino]
	if !ok || fresh && have.taken != now {
		return nil
	}
	return have.h
}

// put keeps a listing, in place of an older one of the same directory.
func (l *listings) put(ino overlay.Ino, taken uint64, h *overlay.DirHandle) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of = make(map[overlay.Ino]listing)
	}
	if old, ok := l.of[ino]; ok {
		l.entries -= old.h.Len()
	} else {
		l.order = append(l.order, ino)
	}
	l.of[ino] = listing{h: h, taken: taken}
	l.entries += h.Len()
	for len(l.order) > 1 && (len(l.order) > maxListings || l.entries > maxListingEntries) {
		first := l.order[0]
		l.order = l.order[1:]
		if first == ino {
			l.order = append(l.order, ino)
			continue
		}
		l.entries -= l.of[first].h.Len()
		delete(l.of, first)
	}
}

// withAttributes reports whether entries of a listing from the i-th on are to come with
// their attributes.
func (l *listings) withAttributes(ino overlay.Ino, i int) bool {
	if i < plusEntries {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	have, ok := l.of[ino]
	if !ok || have.plus {
		return have.plus
	}
	have.bare = true
	l.of[ino] = have
	l.bare.Store(true)
	return false
}

// lookedUp says that a name in a directory was looked up, which is what whoever wants
// attributes does where a listing came without.
func (l *listings) lookedUp(dir overlay.Ino) {
	if !l.bare.Load() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if have, ok := l.of[dir]; ok && have.bare {
		have.plus = true
		l.of[dir] = have
	}
}
