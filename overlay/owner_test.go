package overlay

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRootlessOwnersAreWhatTheyWereWrittenAs(t *testing.T) {
	for _, o := range []Owner{{}, {7, 0}, {0, 9}, {1000, 100000}, {math.MaxUint32 - 1, math.MaxUint32}} {
		b := AppendRootlessOwner(nil, o)
		got, err := ParseRootlessOwner(b)
		for _, id := range []*uint32{&got.UID, &got.GID} {
			if *id == keepID && o.UID != keepID && o.GID != keepID {
				*id = 0
			}
		}
		if err != nil || got != o {
			t.Errorf("%v: % x is read as %v, %v", o, b, got, err)
		}
	}
	if b := AppendRootlessOwner(nil, Owner{0, 456}); string(b) != "\x08\xff\xff\xff\xff\x0f\x10\xc8\x03" {
		t.Errorf("0:456 is % x; umoci has another value", b)
	}
	for _, b := range []string{"\x08", "\x18\x01", "\x08\xff\xff\xff\xff\xff\x01", "x", "\x80"} {
		if _, err := ParseRootlessOwner([]byte(b)); !errors.Is(err, ErrRootlessOwner) || !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", b, err)
		}
	}
}

func TestASquashedViewPresentsOwnersAsAnAttribute(t *testing.T) {
	for _, rootless := range []bool{true, false} {
		if !rootless && unix.Geteuid() != 0 {
			continue
		}
		x := newFixtureWith(t, newMemLower(modelTree...), UpperOptions{Rootless: rootless})
		x.unmount()
		x.fsOpt.Squash = &Owner{1000, 1001}
		x.mount()
		ino := x.mustIno("a/f")
		buf := make([]byte, 64)
		must(t, x.fs.SetXattr(ino, XattrRootless, AppendRootlessOwner(nil, Owner{33, 34}), 0, false))
		n, err := x.fs.GetXattr(ino, XattrRootless, buf)
		if want := AppendRootlessOwner(nil, Owner{33, 34}); err != nil || !bytes.Equal(buf[:n], want) {
			t.Errorf("value % x, %v", buf[:n], err)
		}
		a, err := x.fs.GetAttr(ino)
		must(t, err)
		if a.UID != 1000 || a.GID != 1001 || a.Image != (Owner{33, 34}) {
			t.Errorf("owner %d:%d, of the image %v", a.UID, a.GID, a.Image)
		}
		if n, err = x.fs.ListXattr(ino, buf, nil); err != nil || strings.Count(string(buf[:n]), XattrRootless) != 1 {
			t.Errorf("names %q, %v", buf[:n], err)
		}
		if err := x.fs.SetXattr(ino, XattrRootless, nil, unix.XATTR_CREATE, false); !errors.Is(err, unix.EEXIST) {
			t.Errorf("created twice: %v", err)
		}
		must(t, x.fs.SetXattr(ino, XattrRootless, AppendRootlessOwner(nil, Owner{keepID, 5}), unix.XATTR_REPLACE, false))
		if a, err = x.fs.GetAttr(ino); err != nil || a.Image != (Owner{33, 5}) {
			t.Errorf("after a change of the group alone: %v, %v", a.Image, err)
		}
		must(t, x.fs.RemoveXattr(ino, XattrRootless))
		if _, err := x.fs.GetXattr(ino, XattrRootless, buf); !errors.Is(err, ErrNoXattr) {
			t.Errorf("after its removal: %v", err)
		}
		if err := x.fs.SetXattr(ino, XattrRootless, []byte("?"), 0, false); !errors.Is(err, ErrInvalid) {
			t.Errorf("no owner: %v", err)
		}
	}
}

func TestIdsOutsideAMapAreTheOverflowIdOrSquashed(t *testing.T) {
	m := IDMap{UIDs: []IDRange{{0, 1000, 1}, {1, 100000, 99}}}
	for id, want := range map[uint32]uint32{0: 1000, 1: 100000, 99: 100098, 100: overflowID} {
		if got := m.toHost(m.UIDs, id); got != want {
			t.Errorf("%d is shown as %d, want %d", id, got, want)
		}
	}
	if m.Has(Owner{100, 0}) || !m.Has(Owner{99, 12345}) {
		t.Error("what the map has")
	}
	m.SquashRest = true
	if got := m.toHost(m.UIDs, 100); got != 1000 {
		t.Errorf("squashed: %d", got)
	}
}
