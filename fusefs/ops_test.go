package fusefs

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func TestANameThatIsNotThereIsANegativeEntry(t *testing.T) {
	r := newRaw(t, false)
	h := header(1)
	var out fuse.EntryOut
	if st := r.Lookup(nil, &h, "nothing", &out); !st.Ok() {
		t.Fatalf("lookup: %v; only OK with node 0 is cached", st)
	}
	if out.NodeId != 0 || out.EntryValid != forever {
		t.Errorf("node %d for %d s, want a negative entry for ever", out.NodeId, out.EntryValid)
	}
	if st := r.Lookup(nil, &h, strings.Repeat("x", 256), &out); syscall.Errno(st) != syscall.ENAMETOOLONG {
		t.Errorf("a name of 256 bytes: %v", st)
	}
}

func TestEntriesAndAttributesAreValidForEver(t *testing.T) {
	r := newRaw(t, false)
	e := r.lookup("dir/sub/deep")
	if e.EntryValid != forever || e.AttrValid != forever || e.Generation != 0 {
		t.Errorf("entry %d s, attributes %d s, generation %d", e.EntryValid, e.AttrValid, e.Generation)
	}
	if e.Ino != e.NodeId || e.Mode != unix.S_IFREG|0o644 || e.Size != 5 || e.Mtimensec != fixtureTime.Nsec {
		t.Errorf("attributes %+v of node %d", e.Attr, e.NodeId)
	}
}

// read reads as go-fuse does.
func (r *raw) read(fh uint64, off, n int) ([]byte, fuse.Status) {
	r.t.Helper()
	return r.readOf(0, fh, off, n)
}

// readOf is read where the node may count.
func (r *raw) readOf(node, fh uint64, off, n int) ([]byte, fuse.Status) {
	r.t.Helper()
	buf := make([]byte, n)
	res, st := r.Read(nil, &fuse.ReadIn{InHeader: header(node), Fh: fh, Offset: uint64(off), Size: uint32(n)}, buf)
	if !st.Ok() {
		return nil, st
	}
	defer res.Done()
	data, st := res.Bytes(buf)
	return bytes.Clone(data), st
}

func TestReadsGiveTheBytesByEveryWay(t *testing.T) {
	r := newRaw(t, false)
	want := pattern(bigSize)
	for _, name := range []string{"big", "rawbig"} {
		o := r.open(r.lookup(name).NodeId, unix.O_RDONLY)
		for _, at := range []struct{ off, n int }{
			{0, 1}, {4095, 4096}, {0, 65536}, {12345, 1 << 20}, {bigSize - 10, 1 << 20}, {bigSize, 4096}, {bigSize + 5, 10},
		} {
			got, st := r.read(o.Fh, at.off, at.n)
			lo := min(at.off, bigSize)
			if !st.Ok() || !bytes.Equal(got, want[lo:min(lo+at.n, bigSize)]) {
				t.Errorf("%s: %d bytes at %d: %v, %d bytes", name, at.n, at.off, st, len(got))
			}
		}
		r.release(o.Fh)
	}
}

func TestADamagedLayerIsEIOAndALineInTheLog(t *testing.T) {
	r := newRaw(t, false)
	o := r.open(r.lookup("damaged").NodeId, unix.O_RDONLY)
	defer r.release(o.Fh)
	if _, st := r.read(o.Fh, 100, 50); st != fuse.EIO {
		t.Errorf("read: %v, want EIO", st)
	}
	if !strings.Contains(r.log.String(), "offset=100") {
		t.Errorf("log: %s", &r.log)
	}
}

func TestAClosedHandleIsEBADF(t *testing.T) {
	r := newRaw(t, false)
	o := r.open(r.lookup("hello").NodeId, unix.O_RDONLY)
	r.release(o.Fh)
	r.release(o.Fh) // a second time does nothing
	if _, st := r.read(o.Fh, 0, 1); st != fuse.EBADF {
		t.Errorf("read: %v", st)
	}
	if _, st := r.Write(nil, &fuse.WriteIn{Fh: o.Fh}, []byte("x")); st != fuse.EBADF {
		t.Errorf("write: %v", st)
	}
	if st := r.Fsync(nil, &fuse.FsyncIn{Fh: o.Fh}); st != fuse.EBADF {
		t.Errorf("fsync: %v", st)
	}
}

func TestWritesInPiecesLandOneAfterAnother(t *testing.T) {
	r := newRaw(t, false)
	c := r.create("new", unix.O_RDWR)
	defer r.release(c.Fh)
	n, st := r.Writev(nil, &fuse.WriteIn{Fh: c.Fh, Offset: 3}, [][]byte{[]byte("ab"), nil, []byte("cde")})
	if n != 5 || !st.Ok() {
		t.Fatalf("writev: %d, %v", n, st)
	}
	if got, _ := r.read(c.Fh, 0, 100); string(got) != "\x00\x00\x00abcde" {
		t.Errorf("read %q", got)
	}
}

// openDir opens a directory for listing.
func (r *raw) openDir(node uint64) fuse.OpenOut {
	r.t.Helper()
	var out fuse.OpenOut
	if st := r.OpenDir(nil, &fuse.OpenIn{InHeader: header(node)}, &out); !st.Ok() {
		r.t.Fatal(st)
	}
	return out
}

// list reads a directory to its end, size bytes a request.
func (r *raw) list(node, fh uint64, size int) []fuse.DirEntry {
	r.t.Helper()
	var all []fuse.DirEntry
	for off := uint64(0); ; {
		out := fuse.NewDirEntryList(make([]byte, size), off)
		in := fuse.ReadIn{InHeader: header(node), Fh: fh, Offset: off, Size: uint32(size)}
		if st := r.ReadDir(nil, &in, out); !st.Ok() {
			r.t.Fatal(st)
		}
		got, err := fuse.ParseDirEntries(out.Bytes())
		if err != nil {
			r.t.Fatal(err)
		}
		if len(got) == 0 {
			return all
		}
		all = append(all, got...)
		off = got[len(got)-1].Off
	}
}

func names(list []fuse.DirEntry) []string {
	var out []string
	for _, e := range list {
		out = append(out, e.Name)
	}
	return out
}

func TestAListingInSmallPiecesIsComplete(t *testing.T) {
	r := newRaw(t, false)
	node := r.lookup("many").NodeId
	d := r.openDir(node)
	if d.OpenFlags != fuse.FOPEN_CACHE_DIR|fuse.FOPEN_KEEP_CACHE {
		t.Errorf("open flags %#x", d.OpenFlags)
	}
	all := r.list(node, d.Fh, 300)
	r.ReleaseDir(&fuse.ReleaseIn{Fh: d.Fh})
	if len(all) != manyFiles+2 || all[0].Name != "." || all[1].Name != ".." || all[0].Ino != node {
		t.Fatalf("%d names, first %v", len(all), all[:2])
	}
	for i, e := range all[2:] {
		if e.Name != fmt.Sprintf("name-%05d", i) || e.Mode != unix.S_IFREG {
			t.Fatalf("entry %d is %v", i, &e)
		}
	}
}

func TestAListingIsStableWhileNamesGoAndFreshFromTheStart(t *testing.T) {
	r := newRaw(t, false)
	node := r.lookup("dir").NodeId
	d := r.openDir(node)
	defer r.ReleaseDir(&fuse.ReleaseIn{Fh: d.Fh})

	first := fuse.NewDirEntryList(make([]byte, 100), 0)
	if st := r.ReadDir(nil, &fuse.ReadIn{InHeader: header(node), Fh: d.Fh, Size: 100}, first); !st.Ok() {
		t.Fatal(st)
	}
	got, err := fuse.ParseDirEntries(first.Bytes())
	if err != nil || len(got) != 3 {
		t.Fatalf("%v, %v", names(got), err)
	}
	h := header(node)
	if st := r.Unlink(nil, &h, "a"); !st.Ok() {
		t.Fatal(st)
	}
	rest := fuse.NewDirEntryList(make([]byte, 4096), got[2].Off)
	if st := r.ReadDir(nil, &fuse.ReadIn{InHeader: header(node), Fh: d.Fh, Offset: got[2].Off, Size: 4096}, rest); !st.Ok() {
		t.Fatal(st)
	}
	after, err := fuse.ParseDirEntries(rest.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if all := append(names(got), names(after)...); !slices.Equal(all, []string{".", "..", "a", "b", "sub"}) {
		t.Errorf("a listing with a removal in its middle: %v", all)
	}
	if fresh := names(r.list(node, d.Fh, 4096)); !slices.Equal(fresh, []string{".", "..", "b", "sub"}) {
		t.Errorf("read again from the start: %v", fresh)
	}
}

// What the kernel caches counts as true at the read, not at the open.
func TestAListingReadAfterAChangeSinceTheOpenHasTheChange(t *testing.T) {
	r := newRaw(t, false)
	d := r.openDir(1)
	defer r.ReleaseDir(&fuse.ReleaseIn{Fh: d.Fh})
	r.release(r.create("brandnew", unix.O_WRONLY).Fh)
	if all := names(r.list(1, d.Fh, 4096)); !slices.Contains(all, "brandnew") {
		t.Errorf("a file made between open and read is missing: %v", all)
	}
}

// readPlus reads one reply of READDIRPLUS, and returns where the next one begins.
func (r *raw) readPlus(node, fh, off uint64, size int) uint64 {
	r.t.Helper()
	out := fuse.NewDirEntryList(make([]byte, size), off)
	in := fuse.ReadIn{InHeader: header(node), Fh: fh, Offset: off, Size: uint32(size)}
	if st := r.ReadDirPlus(nil, &in, out); !st.Ok() {
		r.t.Fatal(st)
	}
	return out.Offset
}

// The reply that ends because the next entry does not fit must not keep that
// entry's reference.
func TestReadDirPlusReferencesWhatItListsAndNoMore(t *testing.T) {
	r := newRaw(t, false)
	var nodes []uint64
	for i := range 20 {
		c := r.create(fmt.Sprintf("zz-%02d", i), unix.O_WRONLY)
		r.release(c.Fh)
		nodes = append(nodes, c.NodeId)
	}
	d := r.openDir(1)
	replies := 0
	for off, next := uint64(0), r.readPlus(1, d.Fh, 0, 700); next != off; replies++ {
		off, next = next, r.readPlus(1, d.Fh, next, 700)
	}
	r.ReleaseDir(&fuse.ReleaseIn{Fh: d.Fh})
	if replies < 5 {
		t.Errorf("%d replies", replies)
	}
	for i, node := range nodes {
		h := header(1)
		if st := r.Unlink(nil, &h, fmt.Sprintf("zz-%02d", i)); !st.Ok() {
			t.Fatal(st)
		}
		r.Forget(node, 2) // CREATE's and READDIRPLUS's
		var out fuse.AttrOut
		if st := r.GetAttr(nil, &fuse.GetAttrIn{InHeader: header(node)}, &out); syscall.Errno(st) != syscall.ESTALE {
			t.Fatalf("zz-%02d is still referenced: %v", i, st)
		}
	}
}

func TestARemovedFileStaysAsLongAsTheKernelKnowsIt(t *testing.T) {
	r := newRaw(t, false)
	h := header(1)
	node := r.lookup("hello").NodeId
	if st := r.Rename(nil, &fuse.RenameIn{InHeader: h, Newdir: 1}, "hello", "moved"); !st.Ok() {
		t.Fatal(st)
	}
	if st := r.Unlink(nil, &h, "moved"); !st.Ok() {
		t.Fatal(st)
	}
	var out fuse.AttrOut
	r.Forget(node, 100) // late, of an inode that it has found again since
	if st := r.GetAttr(nil, &fuse.GetAttrIn{InHeader: header(node)}, &out); !st.Ok() || out.Nlink != 0 {
		t.Errorf("while the kernel knows it: %v, %d links", st, out.Nlink)
	}
	r.kernel.without = node
	r.Forget(node, 1)
	if st := r.GetAttr(nil, &fuse.GetAttrIn{InHeader: header(node)}, &out); st.Ok() && out.Nlink == 0 {
		t.Errorf("afterwards: %v, %d links", st, out.Nlink)
	}
}

func TestOnlyWhatMayAnswersENOSYS(t *testing.T) {
	r := newRaw(t, false)
	h := header(1)
	c := r.create("f", unix.O_RDWR)
	defer r.release(c.Fh)
	d := r.openDir(1)
	defer r.ReleaseDir(&fuse.ReleaseIn{Fh: d.Fh})
	in := header(c.NodeId)
	if _, st := r.Write(nil, &fuse.WriteIn{Fh: c.Fh}, []byte("data")); !st.Ok() {
		t.Fatal(st)
	}
	answers := map[string]fuse.Status{
		"StatFs":    r.StatFs(nil, &h, &fuse.StatfsOut{}),
		"Statx":     r.Statx(nil, &fuse.StatxIn{InHeader: in}, &fuse.StatxOut{}),
		"Fsync":     r.Fsync(nil, &fuse.FsyncIn{InHeader: in, Fh: c.Fh}),
		"FsyncDir":  r.FsyncDir(nil, &fuse.FsyncIn{InHeader: h, Fh: d.Fh}),
		"Fallocate": r.Fallocate(nil, &fuse.FallocateIn{InHeader: in, Fh: c.Fh, Length: 10}),
		"Lseek":     r.Lseek(nil, &fuse.LseekIn{InHeader: in, Fh: c.Fh, Whence: unix.SEEK_DATA}, &fuse.LseekOut{}),
		"SetXAttr":  r.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: in}, "user.x", []byte("1")),
	}
	for name, st := range answers {
		if !st.Ok() {
			t.Errorf("%s: %v", name, st)
		}
	}
	if st := r.Ioctl(nil, &fuse.IoctlIn{InHeader: in}, nil, &fuse.IoctlOut{}, nil); syscall.Errno(st) != syscall.ENOTTY {
		t.Errorf("Ioctl: %v", st)
	}
	for name, st := range map[string]fuse.Status{
		"Flush":  r.Flush(nil, &fuse.FlushIn{}),
		"Access": r.Access(nil, &fuse.AccessIn{}),
		"SetLk":  r.SetLk(nil, &fuse.LkIn{}),
	} {
		if st != fuse.ENOSYS {
			t.Errorf("%s: %v, want ENOSYS on purpose", name, st)
		}
	}
}

func TestExtendedAttributesByTheWire(t *testing.T) {
	r := newRaw(t, false)
	h := header(r.lookup("labelled").NodeId)
	if n, st := r.GetXAttr(nil, &h, "user.two", nil); n != 2 || !st.Ok() {
		t.Errorf("size: %d, %v", n, st)
	}
	buf := make([]byte, 64)
	if n, st := r.GetXAttr(nil, &h, "user.two", buf); string(buf[:n]) != "22" || !st.Ok() {
		t.Errorf("value: %q, %v", buf[:n], st)
	}
	if _, st := r.GetXAttr(nil, &h, "user.two", buf[:1]); st != fuse.ERANGE {
		t.Errorf("short buffer: %v", st)
	}
	if _, st := r.GetXAttr(nil, &h, "security.capability", nil); st != fuse.ENODATA {
		t.Errorf("no such attribute: %v", st)
	}
	if n, st := r.ListXAttr(nil, &h, buf); string(buf[:n]) != "user.one\x00user.two\x00" || !st.Ok() {
		t.Errorf("list: %q, %v", buf[:n], st)
	}
	if st := r.RemoveXAttr(nil, &h, "user.one"); !st.Ok() {
		t.Errorf("remove: %v", st)
	}
	if st := r.RemoveXAttr(nil, &h, "user.one"); st != fuse.ENODATA {
		t.Errorf("remove again: %v", st)
	}
}

func TestASetattrOfNothingDropsPrivileges(t *testing.T) {
	r := newRaw(t, false)
	node := r.lookup("suid").NodeId
	var out fuse.AttrOut
	if st := r.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: header(node)}}, &out); !st.Ok() {
		t.Fatal(st)
	}
	if out.Mode != unix.S_IFREG|0o777 {
		t.Errorf("mode %o", out.Mode)
	}
}

func TestDeviceNumbersSurviveTheWire(t *testing.T) {
	r := newRaw(t, false)
	for _, dev := range []uint64{unix.Mkdev(1, 3), unix.Mkdev(259, 1<<20-1), unix.Mkdev(4095, 256)} {
		var out fuse.EntryOut
		in := fuse.MknodIn{InHeader: header(1), Mode: unix.S_IFBLK | 0o600, Rdev: uint32(dev)}
		name := fmt.Sprintf("dev-%x", dev)
		if st := r.Mknod(nil, &in, name, &out); !st.Ok() {
			t.Fatal(st)
		}
		if uint64(out.Rdev) != dev {
			t.Errorf("device %#x comes back as %#x", dev, out.Rdev)
		}
		var sx fuse.StatxOut
		if st := r.Statx(nil, &fuse.StatxIn{InHeader: header(out.NodeId)}, &sx); !st.Ok() {
			t.Fatal(st)
		}
		if unix.Mkdev(sx.RdevMajor, sx.RdevMinor) != dev || sx.Mask&unix.STATX_BTIME == 0 {
			t.Errorf("statx: device %d:%d, mask %#x", sx.RdevMajor, sx.RdevMinor, sx.Mask)
		}
	}
}

func TestRequestsAreCountedByTheKernelsNames(t *testing.T) {
	r := newRaw(t, false)
	r.lookup("dir/sub/deep")
	r.release(r.open(r.lookup("hello").NodeId, unix.O_RDONLY).Fh)
	got := r.stats.snapshot()
	if got["LOOKUP"] != 4 || got["OPEN"] != 1 || got["RELEASE"] != 1 || len(got) != 3 {
		t.Errorf("counted %v", got)
	}
	for op := range opcodes {
		if op.String() == "" {
			t.Errorf("opcode %d has no name", op)
		}
	}
}
