package fusefs

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// some reads one reply of READDIR: its names, and where the next one begins.
func (r *raw) some(node, off uint64, size int) (list []fuse.DirEntry, next uint64) {
	r.t.Helper()
	out := fuse.NewDirEntryList(make([]byte, size), off)
	if st := r.ReadDir(nil, &fuse.ReadIn{InHeader: header(node), Offset: off, Size: uint32(size)}, out); !st.Ok() {
		r.t.Fatal(st)
	}
	list, err := fuse.ParseDirEntries(out.Bytes())
	if err != nil {
		r.t.Fatal(err)
	}
	return list, out.Offset
}

func TestReadersOfAChangingDirectorySeeEachLastingNameOnce(t *testing.T) {
	r := newRaw(t, false)
	node := r.lookup("many").NodeId
	h := header(node)
	for i := range 40 {
		var out fuse.CreateOut
		if st := r.Create(nil, &fuse.CreateIn{InHeader: h, Flags: unix.O_WRONLY, Mode: 0o644}, fmt.Sprint("lasting", i), &out); !st.Ok() {
			t.Fatal(st)
		}
		r.release(out.Fh)
	}
	seen := map[string]int{}
	rounds := 0
	for list, off := r.some(node, 0, 400); len(list) > 0; rounds++ {
		for _, e := range list {
			seen[e.Name]++
		}
		// Names come and go before and behind this reader, and another one starts.
		var out fuse.CreateOut
		if st := r.Create(nil, &fuse.CreateIn{InHeader: h, Flags: unix.O_WRONLY, Mode: 0o644}, fmt.Sprint("passing", rounds), &out); !st.Ok() {
			t.Fatal(st)
		}
		r.release(out.Fh)
		if st := r.Unlink(nil, &h, fmt.Sprintf("name-%05d", rounds*3)); !st.Ok() {
			t.Fatal(st)
		}
		if rounds > 5 {
			if st := r.Unlink(nil, &h, fmt.Sprint("passing", rounds-5)); !st.Ok() {
				t.Fatal(st)
			}
		}
		r.some(node, 0, 300)
		if rounds%7 == 0 { // and this one's listing is forgotten
			for i := range overlay.Ino(2 * maxListings) {
				h, err := r.ops.fs.OpenDir(1)
				if err != nil {
					t.Fatal(err)
				}
				r.listings.put(1000+i, 0, h)
			}
		}
		list, off = r.some(node, off, 400)
	}
	for i := range 40 {
		if name := fmt.Sprint("lasting", i); seen[name] != 1 {
			t.Errorf("%s was listed %d times", name, seen[name])
		}
	}
	for i := range manyFiles {
		if name := fmt.Sprintf("name-%05d", i); seen[name] > 1 || seen[name] == 0 && (i%3 != 0 || i >= 3*rounds) {
			t.Errorf("%s was listed %d times", name, seen[name])
		}
	}
}

func TestANameThatGoesWhileItsDirectoryIsReadIsNotListed(t *testing.T) {
	r := newRaw(t, false)
	var dir fuse.EntryOut
	h := header(1)
	if st := r.Mkdir(nil, &fuse.MkdirIn{InHeader: h, Mode: 0o755}, "going", &dir); !st.Ok() {
		t.Fatal(st)
	}
	h = header(dir.NodeId)
	for i := range 20 {
		var out fuse.EntryOut
		if st := r.Mknod(nil, &fuse.MknodIn{InHeader: h, Mode: unix.S_IFREG | 0o644}, fmt.Sprint("name", i), &out); !st.Ok() {
			t.Fatal(st)
		}
	}
	for _, plus := range []bool{false, true} {
		first, off := r.some(dir.NodeId, 0, 200)
		gone := map[string]bool{}
		for i := range 20 {
			gone[fmt.Sprint("name", i)] = i%3 == 0
		}
		for _, e := range first {
			gone[e.Name] = false
		}
		left := 0
		for name, goes := range gone {
			if !goes {
				left++
			} else if st := r.Unlink(nil, &h, name); !st.Ok() && st != fuse.ENOENT {
				t.Fatal(st)
			}
		}
		if plus {
			if nodes, _ := r.plusNodes(dir.NodeId, off); len(first)+len(nodes) > left {
				t.Errorf("%d entries of READDIRPLUS behind %d, of %d that are there", len(nodes), len(first), left)
			}
			continue
		}
		rest, _ := r.some(dir.NodeId, off, 4096)
		stale := 0
		for _, e := range rest {
			if gone[e.Name] {
				stale++ // one may have been looked at, and was too long for the first reply
			}
		}
		if stale > 1 {
			t.Errorf("%d that are gone are listed: %v", stale, rest)
		}
	}
}

func TestListingsAreForgottenByAge(t *testing.T) {
	r := newRaw(t, false)
	h, err := r.ops.fs.OpenDir(1)
	if err != nil {
		t.Fatal(err)
	}
	var l listings
	for ino := range overlay.Ino(3 * maxListings) {
		l.put(ino, 1, h)
		l.put(ino, 2, h)
	}
	if len(l.of) != maxListings || len(l.order) != maxListings || l.entries != maxListings*h.Len() {
		t.Errorf("%d listings, %d in order, %d entries", len(l.of), len(l.order), l.entries)
	}
	if l.get(0, 2, false) != nil || l.get(3*maxListings-1, 2, true) == nil || l.get(3*maxListings-1, 3, true) != nil {
		t.Error("the oldest is there, or the newest is not, or an outdated one counts as fresh")
	}
}

// plusNodes reads one reply of READDIRPLUS: the number that each entry has, 0 where it
// came without attributes, and where the next reply begins.
func (r *raw) plusNodes(node, off uint64) (nodes []uint64, next uint64) {
	r.t.Helper()
	out := fuse.NewDirEntryList(make([]byte, 32<<10), off)
	if st := r.ReadDirPlus(nil, &fuse.ReadIn{InHeader: header(node), Offset: off, Size: 32 << 10}, out); !st.Ok() {
		r.t.Fatal(st)
	}
	const entryOut, dirent = 128, 24 // struct fuse_entry_out, fuse_dirent without its name
	for b := out.Bytes(); len(b) > 0; {
		nodes = append(nodes, binary.NativeEndian.Uint64(b))
		name := binary.NativeEndian.Uint32(b[entryOut+16:])
		b = b[entryOut+dirent+(name+7)&^7:]
	}
	return nodes, out.Offset
}

func TestALongListingHasAttributesWhereTheyAreWanted(t *testing.T) {
	r := newRaw(t, false)
	h := header(1)
	var dir fuse.EntryOut
	if st := r.Mkdir(nil, &fuse.MkdirIn{InHeader: h, Mode: 0o755}, "long", &dir); !st.Ok() {
		t.Fatal(st)
	}
	h = header(dir.NodeId)
	const names = plusEntries + 1000
	for i := range names {
		var out fuse.EntryOut
		if st := r.Mknod(nil, &fuse.MknodIn{InHeader: h, Mode: unix.S_IFREG | 0o644}, fmt.Sprint("name", i), &out); !st.Ok() {
			t.Fatal(st)
		}
	}
	with, without := 0, 0
	var lateFrom uint64 // the first page that has no attributes
	for off := uint64(0); ; {
		nodes, next := r.plusNodes(dir.NodeId, off)
		if len(nodes) == 0 {
			break
		}
		for _, n := range nodes {
			if n != 0 {
				with++
			} else {
				without++
			}
		}
		if without > 2 && lateFrom == 0 {
			lateFrom = off
		}
		off = next
	}
	if with+without != names+2 || with < plusEntries || without < 500 {
		t.Fatalf("%d entries with attributes, %d without", with, without)
	}
	var out fuse.EntryOut
	if st := r.Lookup(nil, &h, "name7", &out); !st.Ok() {
		t.Fatal(st)
	}
	if nodes, _ := r.plusNodes(dir.NodeId, lateFrom); len(nodes) == 0 || nodes[0] == 0 {
		t.Error("no attributes after somebody wanted one")
	}
}
