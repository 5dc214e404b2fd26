package overlay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func mustHandle(t *testing.T, x *fixture, p string, flags uint32) *Handle {
	t.Helper()
	h, err := x.fs.Open(x.mustIno(p), flags)
	if err != nil {
		t.Fatalf("open %s: %v", p, err)
	}
	return h
}

func readHandle(t *testing.T, h *Handle) string {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(h, 0, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAnOpenUnlinkedFileStaysReadableAndWritable(t *testing.T) {
	for _, p := range []string{"top", "a/f"} {
		x := newFixture(t, newMemLower(modelTree...))
		h := mustHandle(t, x, p, unix.O_RDWR)
		must(t, onName(x, p, x.fs.Unlink))
		_, err := h.WriteAt([]byte("ZZ"), 1)
		must(t, err)
		if got := readHandle(t, h); !strings.Contains(got, "ZZ") {
			t.Errorf("%s: read %q", p, got)
		}
		if _, err := x.ino(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", p, err)
		}
		must(t, h.Close())
	}
}

func TestAnOpenUnlinkedLowerFileShowsNoLinksAndTakesAttributes(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	h := mustHandle(t, x, "top", unix.O_RDONLY)
	must(t, onName(x, "top", x.fs.Unlink))
	a, err := x.fs.GetAttr(h.Ino())
	must(t, err)
	if a.Nlink != 0 {
		t.Errorf("nlink %d", a.Nlink)
	}
	a, err = x.fs.SetAttr(h.Ino(), SetAttr{Valid: SetMode, Mode: 0o611})
	must(t, err)
	if a.Nlink != 0 || a.Mode&0o777 != 0o611 || a.Ino != h.Ino() {
		t.Errorf("after chmod: %+v", a)
	}
	if got := readHandle(t, h); got != "four" {
		t.Errorf("read %q", got)
	}
	must(t, h.Close())
}

func TestAnOpenRemovedLowerDirectoryTakesAttributes(t *testing.T) {
	for _, rootless := range []bool{false, true} {
		if !rootless && os.Geteuid() != 0 {
			continue
		}
		x := newFixtureWith(t, newMemLower(modelTree...), UpperOptions{Rootless: rootless})
		ino := x.mustIno("a/s")
		must(t, onName(x, "a/s", x.fs.Rmdir))
		must(t, x.fs.SetXattr(ino, "user.k", []byte("v"), 0, false))
		when := Timespec{Sec: 10, Nsec: 1}
		a, err := x.fs.SetAttr(ino, SetAttr{Valid: SetUID | SetMode | SetMtime, UID: 3, Mode: 0o711, Mtime: when})
		must(t, err)
		if a.Nlink != 0 || a.Mode != unix.S_IFDIR|0o711 || a.Ino != ino || a.UID != 3 || a.GID != 8 || a.Mtime != when {
			t.Errorf("rootless %v: %+v", rootless, a)
		}
		if got := x.xattrs("a/s", ino); got != ` user.k="v"` {
			t.Errorf("rootless %v: attributes%s", rootless, got)
		}
		if d, err := x.fs.OpenDir(ino); err != nil || d.Len() != 2 {
			t.Errorf("rootless %v: it is not empty, %v", rootless, err)
		}
		if _, err := x.ino("a/s"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("rootless %v: it is there again: %v", rootless, err)
		}
		x.fs.Forget(ino, 1)
		if n, _ := x.fs.table.get(ino); n != nil {
			t.Errorf("rootless %v: kept", rootless)
		}
		if left := inWork(t, x); left != nil {
			t.Errorf("rootless %v: %q in work/", rootless, left)
		}
	}
}

func TestAFileOpenedReadOnlyBeforeACopyUpSeesLaterWrites(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	r := mustHandle(t, x, "top", unix.O_RDONLY)
	w := mustHandle(t, x, "top", unix.O_WRONLY)
	_, err := w.WriteAt([]byte("FO"), 0)
	must(t, err)
	if got := readHandle(t, r); got != "FOur" {
		t.Errorf("read %q", got)
	}
	if _, ok := r.Upper(); !ok {
		t.Error("the reader does not follow to the upper")
	}
	must(t, w.Close())
	must(t, r.Close())
}

func TestAnEmptyFileOpenedReadOnlySeesWhatATruncateMakesOfIt(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	r := mustHandle(t, x, "z", unix.O_RDONLY)
	_, err := x.fs.SetAttr(x.mustIno("z"), SetAttr{Valid: SetSize, Size: 3})
	must(t, err)
	if got := readHandle(t, r); got != "\x00\x00\x00" {
		t.Errorf("read %q", got)
	}
	if end, err := r.Seek(0, unix.SEEK_HOLE); err != nil || end > 3 {
		t.Errorf("a hole at %d, %v", end, err)
	}
	must(t, r.Close())
}

func TestACopyUpOfOneNameMovesAllHardLinks(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	before := x.mustIno("e/hard")
	must(t, fsWrite(x, "a/f", "1", 0))
	for _, round := range []string{"at once", "remounted"} {
		if x.mustIno("a/f") != before || x.mustIno("e/hard") != before {
			t.Errorf("%s: numbers changed", round)
		}
		if got := x.read(x.mustIno("e/hard")); got != "1ne" {
			t.Errorf("%s: the other name reads %q", round, got)
		}
		a, err := x.fs.GetAttr(before)
		must(t, err)
		if a.Nlink != 2 {
			t.Errorf("%s: nlink %d", round, a.Nlink)
		}
		x.remount()
	}
}

func TestAFileThatIsReplacedAtOneOfItsNamesTakesNoDescriptor(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	must(t, link(x, "top", "e/copy"))
	ino := x.mustIno("e/copy")
	must(t, fsRename(x, "z", "top", 0))
	if n, _ := x.fs.table.get(ino); n.anchor >= 0 {
		t.Error("it is reached by a descriptor")
	}
	if got := x.read(ino); got != "four" {
		t.Errorf("reads %q", got)
	}
}

// A descriptor for each would be one for each object that git writes, as it links a
// temporary file to the final name.
func TestAFileThatLosesOneOfItsNamesTakesNoDescriptor(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	must(t, mkdir(x, "new", Caller{}))
	_, err := x.fs.Mknod(x.mustIno("new"), "tmp", unix.S_IFREG|0o644, 0, Caller{})
	must(t, err)
	for _, names := range [][2]string{{"new/tmp", "a/final"}, {"top", "new/copy"}} {
		must(t, link(x, names[0], names[1]))
	}
	for removed, left := range map[string]string{
		"new/tmp": "a/final", "top": "new/copy", "a/f": "e/hard", "a/b/hard2": "a/b/c/h",
	} {
		ino := x.mustIno(left)
		before := x.read(ino)
		must(t, chmod(x, left, 0o600))
		must(t, onName(x, removed, x.fs.Unlink))
		n, _ := x.fs.table.get(ino)
		if n.anchor >= 0 {
			t.Errorf("%s, without %s, is reached by a descriptor", left, removed)
		}
		a, err := x.fs.SetAttr(ino, SetAttr{Valid: SetMode, Mode: 0o640})
		must(t, err)
		if got := x.read(ino); got != before || a.Nlink != 1 {
			t.Errorf("%s, without %s, has %d links and reads %q", left, removed, a.Nlink, got)
		}
		must(t, onName(x, left, x.fs.Unlink))
		if a, err = x.fs.GetAttr(ino); err != nil || a.Nlink != 0 {
			t.Errorf("%s, removed, has %d links: %v", left, a.Nlink, err)
		}
	}
}

func TestInodeNumbersStayOverCopyUpRenameAndRemount(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	want := map[string]Ino{"n1": x.mustIno("a/b/g"), "n2": x.mustIno("a/b/c"), "n2/h": x.mustIno("a/b/c/h")}
	must(t, fsRename(x, "a/b/g", "n1", 0))
	must(t, fsRename(x, "a/b/c", "n2", 0))
	must(t, chmod(x, "n2/h", 0o640))
	for range 2 {
		for p, ino := range want {
			if got := x.mustIno(p); got != ino {
				t.Errorf("%s: %d, was %d", p, got, ino)
			}
		}
		x.remount()
	}
}

func TestADirectoryMadeOverAWhiteoutIsOpaque(t *testing.T) {
	x := newFixture(t, newMemLower("d d 755", "f d/old 644 x"))
	must(t, removeAll(x, "d"))
	must(t, mkdir(x, "d", Caller{}))
	for range 2 {
		if _, err := x.ino("d/old"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the lower shows through: %v", err)
		}
		x.remount()
	}
}

func TestReaddirWhileEverythingIsRemoved(t *testing.T) {
	lines := []string{"d d 755"}
	for i := range 500 {
		lines = append(lines, "f d/f"+string(rune('a'+i%26))+string(rune('a'+i/26))+" 644 x")
	}
	x := newFixture(t, newMemLower(lines...))
	must(t, removeAll(x, "d"))
	if _, err := x.ino("d"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("d: %v", err)
	}
}

func TestAUsersOverlayAttributesAreEscaped(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	ino := x.mustIno("top")
	names := []string{"user.overlay.opaque", "user.overlay.metacopy", "user.umoci-mount.ino", "user.plain"}
	for _, name := range names {
		must(t, x.fs.SetXattr(ino, name, []byte("y"), 0, false))
	}
	x.remount()
	ino = x.mustIno("top")
	buf := make([]byte, 1024)
	n, err := x.fs.ListXattr(ino, buf, nil)
	must(t, err)
	got := splitNames(buf[:n])
	slices.Sort(got)
	slices.Sort(names)
	if !slices.Equal(got, names) {
		t.Errorf("listed %q", got)
	}
	if got := x.read(ino); got != "four" {
		t.Errorf("read %q", got)
	}
	must(t, x.fs.RemoveXattr(ino, "user.overlay.opaque"))
	if _, err := x.fs.GetXattr(ino, "user.overlay.opaque", nil); !errors.Is(err, ErrNoXattr) {
		t.Errorf("removed attribute: %v", err)
	}
}

func TestAWhiteoutCannotBeMadeByHand(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	if _, err := x.fs.Mknod(1, "w", unix.S_IFCHR|0o666, 0, Caller{}); !errors.Is(err, os.ErrPermission) {
		t.Errorf("mknod c 0 0: %v", err)
	}
}

// Images have such devices where a container kept its own overlayfs in one.
func TestAnImagesOwnWhiteoutsStayUntilTheyAreRemoved(t *testing.T) {
	x := newFixture(t, newMemLower("d d 755", "c d/w 600 0 0", "c d/one 600 0 0", "h d/two d/one"))
	for _, p := range []string{"d/w", "d/one"} {
		for name, err := range map[string]error{
			"chmod": chmod(x, p, 0o644), "chown": chown(x, p, 7), "link": link(x, p, "other-"+filepath.Base(p)),
			"rename": moveAway(x, p),
		} {
			if err != nil && !errors.Is(err, os.ErrPermission) {
				t.Errorf("%s %s: %v", name, p, err)
			}
		}
	}
	must(t, fsRename(x, "d", "e", 0))
	for _, round := range []string{"at once", "remounted"} {
		x.mustIno("e/w")
		x.mustIno("e/one")
		x.mustIno("e/two")
		if t.Failed() {
			t.Fatal(round)
		}
		x.remount()
	}
	must(t, onName(x, "e/one", x.fs.Unlink))
	if a, err := x.fs.GetAttr(x.mustIno("e/two")); err != nil || a.Nlink == 0 {
		t.Errorf("the other name of one that was removed: %d links, %v", a.Nlink, err)
	}
	must(t, onName(x, "e/two", x.fs.Unlink))
	must(t, onName(x, "e/w", x.fs.Unlink))
	must(t, onName(x, "e", x.fs.Rmdir))
}

// moveAway moves an object, and back.
func moveAway(x *fixture, p string) error {
	if err := fsRename(x, p, "away", 0); err != nil {
		return err
	}
	return fsRename(x, "away", p, 0)
}

func TestNamesOf255BytesNotUTF8AndLikeWhiteouts(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	for _, name := range []string{strings.Repeat("n", 255), "\xff\xfe", ".wh.top", ".wh..wh..opq", "#1"} {
		must(t, mkdir(x, name, Caller{}))
		x.remount()
		x.mustIno(name)
	}
	if _, err := x.fs.Lookup(1, strings.Repeat("n", 256)); !errors.Is(err, ErrNameTooLong) {
		t.Errorf("256 bytes: %v", err)
	}
	x.mustIno("top")
}

func TestAnUnnamedFileCanBeLinked(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	h, a, err := x.fs.Tmpfile(x.mustIno("a"), unix.O_RDWR, 0o644, Caller{})
	must(t, err)
	if a.Nlink != 0 {
		t.Errorf("nlink %d", a.Nlink)
	}
	_, err = h.WriteAt([]byte("hello"), 0)
	must(t, err)
	la, err := x.fs.Link(h.Ino(), x.mustIno("a"), "named")
	must(t, err)
	if la.Ino != a.Ino || la.Nlink != 1 {
		t.Errorf("linked: %+v", la)
	}
	must(t, h.Close())
	x.remount()
	if got := x.read(x.mustIno("a/named")); got != "hello" {
		t.Errorf("read %q", got)
	}
}

func TestSetgidDirectoriesPassTheirGroupOn(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	dir := x.mustIno("a/s")
	d, err := x.fs.Mkdir(dir, "d", 0o755, Caller{UID: 3, GID: 3})
	must(t, err)
	h, f, err := x.fs.Create(dir, "f", unix.O_RDWR, 0o644, Caller{UID: 3, GID: 3, Umask: 0o077})
	must(t, err)
	must(t, h.Close())
	if d.GID != 8 || d.Mode&unix.S_ISGID == 0 || f.GID != 8 || f.Mode&0o7777 != 0o600 {
		t.Errorf("directory %d %o, file %d %o", d.GID, d.Mode, f.GID, f.Mode)
	}
}

// testACL gives one user more than others have.
func testACL() []byte {
	acl := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range [][3]uint32{{aclUserObj, 7, ^uint32(0)}, {2, 6, 1234}, {aclGroupObj, 5, ^uint32(0)}, {aclMask, 7, ^uint32(0)}, {aclOther, 0, ^uint32(0)}} {
		acl = binary.LittleEndian.AppendUint16(acl, uint16(e[0]))
		acl = binary.LittleEndian.AppendUint16(acl, uint16(e[1]))
		acl = binary.LittleEndian.AppendUint32(acl, e[2])
	}
	return acl
}

func TestADefaultACLCountsInPlaceOfTheUmask(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	acl := testACL()
	dir := x.mustIno("e")
	must(t, x.fs.SetXattr(dir, xattrACLDefault, acl, 0, false))
	sub, err := x.fs.Mkdir(dir, "sub", 0o777, Caller{Umask: 0o077})
	must(t, err)
	h, f, err := x.fs.Create(dir, "file", unix.O_RDWR, 0o666, Caller{Umask: 0o077})
	must(t, err)
	must(t, h.Close())
	if sub.Mode&0o777 != 0o770 || f.Mode&0o777 != 0o660 {
		t.Errorf("directory %o, file %o", sub.Mode, f.Mode)
	}
	buf := make([]byte, 256)
	n, err := x.fs.GetXattr(sub.Ino, xattrACLDefault, buf)
	if err != nil || !bytes.Equal(buf[:n], acl) {
		t.Errorf("inherited default: %x, %v", buf[:n], err)
	}
	if _, err := x.fs.GetXattr(f.Ino, xattrACLAccess, buf); err != nil {
		t.Errorf("access ACL: %v", err)
	}
}

func TestACopyUpLeavesTheTimesOfDirectories(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	before, err := x.fs.GetAttr(x.mustIno("a/b"))
	must(t, err)
	must(t, chmod(x, "a/b/g", 0o600))
	after, err := x.fs.GetAttr(x.mustIno("a/b"))
	must(t, err)
	if before.Mtime != after.Mtime {
		t.Errorf("mtime %v, was %v", after.Mtime, before.Mtime)
	}
}

func TestARefusedCopyUpLeavesNothing(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	old := x.listing()
	full := false
	x.opt.Fault = func(step string) error {
		if full && step == "copy data" {
			return &os.PathError{Op: "write", Path: "f", Err: unix.ENOSPC}
		}
		return nil
	}
	x.remount()
	full = true
	if err := fsWrite(x, "top", "x", 0); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write: %v", err)
	}
	full = false
	if got := x.listing(); got != old {
		t.Error(diffLines(old, got))
	}
	must(t, fsWrite(x, "top", "x", 0))
}

func TestFreezeHoldsChangesUntilThaw(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	thaw := x.fs.Freeze()
	done := make(chan error)
	ino := x.mustIno("top")
	go func() {
		_, err := x.fs.SetAttr(ino, SetAttr{Valid: SetMode, Mode: 0o600})
		done <- err
	}()
	select {
	case <-done:
		t.Fatal("changed while frozen")
	case <-time.After(50 * time.Millisecond):
	}
	x.mustIno("a/b") // reads go on
	thaw()
	must(t, <-done)
}

func TestAReadOnlyViewWritesNothing(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	must(t, chmod(x, "top", 0o600))
	want := x.listing()
	x.unmount()
	must(t, os.WriteFile(filepath.Join(x.dir, "work", "#debris"), nil, 0o600))
	x.fsOpt.ReadOnly = true
	x.mount()
	if got := x.listing(); got != want {
		t.Error(diffLines(want, got))
	}
	if err := chmod(x, "top", 0o644); !errors.Is(err, ErrReadOnly) {
		t.Errorf("chmod: %v", err)
	}
	if _, err := os.Stat(filepath.Join(x.dir, "work", "#debris")); err != nil {
		t.Errorf("work/ was touched: %v", err)
	}
}

func TestForgottenNodesAreDropped(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	must(t, mkdir(x, "n1", Caller{}))
	ino := x.mustIno("n1")
	x.fs.Forget(ino, 1) // of the lookup
	if n, _ := x.fs.table.get(ino); n == nil {
		t.Fatal("dropped while the kernel has a reference")
	}
	x.fs.Forget(ino, 1) // of mkdir
	if n, _ := x.fs.table.get(ino); n != nil {
		t.Error("kept")
	}
	x.mustIno("n1")
}

func TestADirectoryThatOnlyALinkKeptIsDropped(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	must(t, errors.Join(mkdir(x, "n1", Caller{}), mkdir(x, "n2", Caller{}), mkfile(x, "n1/x"), link(x, "n1/x", "n2/x")))
	dir := x.mustIno("n1")
	x.fs.Forget(dir, 100)
	must(t, fsRename(x, "n2/x", "n2/y", 0))
	x.fs.Forget(x.mustIno("n2/y"), 1)
	if n, _ := x.fs.table.get(dir); n != nil {
		t.Errorf("kept with %d references", n.refs)
	}
}

// References from before a node are not counted, so that the kernel can give back more than
// the node has.
func TestAFileThatWasForgottenAndFoundAgainOutlivesItsName(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	for range 3 {
		x.mustIno("top")
	}
	must(t, fsRename(x, "top", "moved", 0))
	ino := x.mustIno("moved")
	x.fs.Forget(ino, 5)
	x.mustIno("moved")
	must(t, onName(x, "moved", x.fs.Unlink))
	a, err := x.fs.GetAttr(ino)
	must(t, err)
	if got := x.read(ino); got != "four" || a.Nlink != 0 {
		t.Errorf("read %q, %d links", got, a.Nlink)
	}
	x.fs.Forget(ino, 1)
	if n, _ := x.fs.table.get(ino); n != nil {
		t.Error("kept after the last was given back")
	}
}

// Nor do they all come back in order: the kernel can have found a file again before it
// says that it forgot it.
func TestAFileThatIsForgottenLateIsAskedFor(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	knows := true
	x.fs.OnDoubt(func(Ino) bool { return knows })
	ino := x.mustIno("top")
	must(t, chmod(x, "top", 0o600))
	must(t, onName(x, "top", x.fs.Unlink))
	x.fs.Forget(ino, 20) // of long ago
	if got := x.read(ino); got != "four" {
		t.Errorf("read %q", got)
	}
	knows = false
	x.fs.Forget(ino, 1)
	if n, _ := x.fs.table.get(ino); n != nil {
		t.Error("kept though the kernel does not know it")
	}
}

// A copy-up of a file with several names looks for directories that were moved earlier, and
// so meets what the kernel has never heard of.
func TestWhatOnlyACopyUpHasMetIsDroppedAfterItsRemoval(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	must(t, mkdir(x, "made", Caller{}))
	must(t, mkdir(x, "made/in", Caller{}))
	x.remount()
	must(t, chmod(x, "a/f", 0o600))
	for _, p := range []string{"made/in", "made"} {
		dir := x.mustIno(filepath.Dir(p))
		a, err := x.fs.Lookup(dir, filepath.Base(p))
		must(t, err)
		must(t, x.fs.Rmdir(dir, filepath.Base(p)))
		if _, err := x.fs.GetAttr(a.Ino); err != nil {
			t.Errorf("%s, still known to the kernel: %v", p, err)
		}
		n, _ := x.fs.table.get(a.Ino)
		x.fs.Forget(a.Ino, uint64(n.lookups)-1)
		if n, _ := x.fs.table.get(a.Ino); n != nil {
			t.Errorf("%s is kept, with descriptor %d", p, n.anchor)
		}
	}
}
