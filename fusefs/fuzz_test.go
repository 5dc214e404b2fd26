package fusefs

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/umoci-mount/umoci-mount/layer"
)

// requests turns bytes into requests as a kernel would send them, and as none would:
// nodes and handles that were never given out or are gone, names that no lookup makes,
// sizes and flags of every kind.
type requests struct {
	*raw
	data  []byte
	nodes []uint64
	files []uint64
}

func (q *requests) byte() byte {
	if len(q.data) == 0 {
		return 0
	}
	b := q.data[0]
	q.data = q.data[1:]
	return b
}

// number is small, or of any size.
func (q *requests) number() uint64 {
	b := q.byte()
	if b < 0xf0 || len(q.data) < 8 {
		return uint64(b)
	}
	n := binary.LittleEndian.Uint64(q.data)
	q.data = q.data[8:]
	return n
}

// pick is one of those, or any number.
func (q *requests) pick(known []uint64) uint64 {
	b := q.byte()
	if b >= 0xf8 || len(known) == 0 {
		return q.number()
	}
	return known[int(b)%len(known)]
}

var fuzzNames = []string{
	"hello", "dir", "sub", "deep", "big", "new", "link", "a", "b", "..", ".", "", "with/slash", "../canary", "\x00", "x\x00y",
	".wh.hello", ".wh..wh..opq", "user.overlay.whiteout", strings.Repeat("n", 255), strings.Repeat("n", 256), "\xff\xfe",
}

var fuzzAttrs = []string{
	"user.a", "user.overlay.opaque", "user.overlay.redirect", "user.overlay.overlay.x", "user.umoci-mount.ino", "trusted.t", "trusted.umoci-mount.ino",
	"security.capability", "system.posix_acl_access", "system.posix_acl_default", "user.containers.override_stat", "user.", "", "none",
	"user." + strings.Repeat("n", 300),
}

func (q *requests) name() string { return fuzzNames[int(q.byte())%len(fuzzNames)] }
func (q *requests) attr() string { return fuzzAttrs[int(q.byte())%len(fuzzAttrs)] }

func (q *requests) header() fuse.InHeader {
	h := header(q.pick(q.nodes))
	if b := q.byte(); b > 0x80 {
		h.Uid, h.Gid = uint32(b), uint32(q.number())
	}
	return h
}

func (q *requests) entry(st fuse.Status, out *fuse.EntryOut) {
	if st.Ok() && out.NodeId != 0 && len(q.nodes) < 100 {
		q.nodes = append(q.nodes, out.NodeId)
	}
}

func (q *requests) opened(st fuse.Status, fh uint64) {
	if st.Ok() {
		q.files = append(q.files, fh)
	}
}

// one sends one request.
func (q *requests) one() {
	var entry fuse.EntryOut
	h := q.header()
	switch q.byte() % 26 {
	case 0:
		q.entry(q.Lookup(nil, &h, q.name(), &entry), &entry)
	case 1:
		q.GetAttr(nil, &fuse.GetAttrIn{InHeader: h, Flags_: uint32(q.byte()), Fh_: q.pick(q.files)}, new(fuse.AttrOut))
	case 2:
		in := &fuse.SetAttrIn{}
		in.InHeader, in.Valid, in.Fh, in.Size = h, uint32(q.number()), q.pick(q.files), q.number()&0xfffff
		in.Atime, in.Mtime, in.Atimensec, in.Mtimensec = q.number(), q.number(), uint32(q.number()), uint32(q.number())
		in.Mode, in.Uid, in.Gid = uint32(q.number()), uint32(q.number()), uint32(q.number())
		q.SetAttr(nil, in, new(fuse.AttrOut))
	case 3:
		_, _ = q.Readlink(nil, &h)
	case 4:
		q.entry(q.Symlink(nil, &h, "../../"+q.name(), q.name(), &entry), &entry)
	case 5:
		q.entry(q.Mknod(nil, &fuse.MknodIn{InHeader: h, Mode: uint32(q.number()) << 8, Rdev: uint32(q.number())}, q.name(), &entry), &entry)
	case 6:
		q.entry(q.Mkdir(nil, &fuse.MkdirIn{InHeader: h, Mode: uint32(q.number()), Umask: uint32(q.byte())}, q.name(), &entry), &entry)
	case 7:
		q.Unlink(nil, &h, q.name())
	case 8:
		q.Rmdir(nil, &h, q.name())
	case 9, 10:
		q.Rename(nil, &fuse.RenameIn{InHeader: h, Newdir: q.pick(q.nodes), Flags: uint32(q.byte()) % 9}, q.name(), q.name())
	case 11:
		q.entry(q.Link(nil, &fuse.LinkIn{InHeader: h, Oldnodeid: q.pick(q.nodes)}, q.name(), &entry), &entry)
	case 12:
		var out fuse.CreateOut
		st := q.Create(nil, &fuse.CreateIn{InHeader: h, Flags: uint32(q.number()), Mode: uint32(q.number())}, q.name(), &out)
		q.entry(st, &out.EntryOut)
		q.opened(st, out.Fh)
	case 13, 14:
		var out fuse.OpenOut
		q.opened(q.Open(nil, &fuse.OpenIn{InHeader: h, Flags: uint32(q.number()), Mode: uint32(q.byte())}, &out), out.Fh)
	case 15:
		_, _ = q.readOf(h.NodeId, q.pick(q.files), int(q.number()&0x7fffffff), int(q.number()&0xffff))
	case 16:
		data := make([]byte, q.number()&0xffff)
		_, _ = q.Write(nil, &fuse.WriteIn{InHeader: h, Fh: q.pick(q.files), Offset: q.number() & 0xffffff}, data)
	case 17:
		q.Release(nil, &fuse.ReleaseIn{InHeader: h, Fh: q.pick(q.files)})
	case 18:
		q.Fallocate(nil, &fuse.FallocateIn{InHeader: h, Fh: q.pick(q.files), Offset: q.number() & 0xfffff, Length: q.number() & 0xfffff, Mode: uint32(q.number())})
	case 19:
		q.Lseek(nil, &fuse.LseekIn{InHeader: h, Fh: q.pick(q.files), Offset: q.number(), Whence: uint32(q.byte())}, new(fuse.LseekOut))
	case 20:
		_, _ = q.CopyFileRange(nil, &fuse.CopyFileRangeIn{
			InHeader: h, FhIn: q.pick(q.files), OffIn: q.number(), NodeIdOut: q.pick(q.nodes), FhOut: q.pick(q.files), OffOut: q.number() & 0xfffff, Len: q.number() & 0xfffff,
		})
	case 21:
		_, _ = q.GetXAttr(nil, &h, q.attr(), make([]byte, q.number()&0xffff))
		_, _ = q.ListXAttr(nil, &h, make([]byte, q.number()&0xffff))
	case 22:
		q.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: h, Flags: uint32(q.byte())}, q.attr(), make([]byte, q.number()&0x1ffff))
	case 23:
		q.RemoveXAttr(nil, &h, q.attr())
	case 24:
		in := &fuse.ReadIn{InHeader: h, Offset: q.number(), Size: uint32(q.number())}
		list := fuse.NewDirEntryList(make([]byte, q.number()&0xfff), in.Offset)
		if q.byte()&1 == 0 {
			q.ReadDir(nil, in, list)
		} else {
			q.ReadDirPlus(nil, in, list)
		}
	case 25:
		q.Forget(h.NodeId, q.number())
		q.Fsync(nil, &fuse.FsyncIn{InHeader: h, Fh: q.pick(q.files)})
		q.FsyncDir(nil, &fuse.FsyncIn{InHeader: h})
	}
}

// Whatever is asked, in whatever order: nothing panics, no handle stays, nothing
// outside the upper directory is touched, and the file system goes on.
func FuzzRequests(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x0d\x02\x0f\x00\x00\x10"))
	f.Add([]byte(strings.Repeat("\x00\x00\x06\x05\x00\x00\x0c\x05\x05", 20)))
	for op := range byte(26) {
		for mode := range byte(2) {
			f.Add([]byte{mode, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, op, 1, 2, 3, 0, 0, 13, 2, 0, 0, op, 0, 0, 0, 1, 2})
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		q := &requests{raw: newRaw(t, false), data: data[:min(len(data), 2000)], nodes: []uint64{uint64(layer.RootIno)}}
		if q.byte()&1 == 0 {
			q.openByNode()
			t.Cleanup(q.OnUnmount)
		}
		outside := filepath.Join(t.TempDir(), "canary")
		if err := os.WriteFile(outside, []byte("alive"), 0o600); err != nil {
			t.Fatal(err)
		}
		for n := 0; len(q.data) > 0 && n < 300; n++ {
			q.one()
		}
		for _, fh := range q.files {
			q.Release(nil, &fuse.ReleaseIn{Fh: fh})
		}
		if got, err := os.ReadFile(outside); err != nil || string(got) != "alive" {
			t.Errorf("a file outside is %q, %v", got, err)
		}
		h := header(uint64(layer.RootIno))
		var out fuse.EntryOut
		if st := q.Lookup(nil, &h, "surely-not-there", &out); !st.Ok() {
			t.Errorf("a lookup after it: %v", st)
		}
	})
}
