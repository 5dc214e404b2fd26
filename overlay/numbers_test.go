package overlay

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// A program with a 32-bit ino_t and off_t fails on what is longer.

func TestNumbersOfUpperObjectsFit32Bits(t *testing.T) {
	seen := map[Ino]uint64{}
	for _, stIno := range []uint64{0, 1, 1<<30 - 1, 1 << 30, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<48 - 1, 1 << 48, 1<<63 - 1} {
		ino := upperIno(stIno)
		if isLower(ino) || ino < layer.InoLimit || ino >= 1<<32 && stIno < 1<<31 || ino >= 1<<53 && stIno < 1<<48 {
			t.Errorf("%#x becomes %#x", stIno, ino)
		}
		if have, ok := seen[ino]; ok {
			t.Errorf("%#x and %#x become %#x", stIno, have, ino)
		}
		seen[ino] = stIno
	}
	x := newFixture(t, newMemLower("d d 755", "f d/lower 644 x"))
	_, err := x.fs.Symlink(x.mustIno("d"), "link", "target", Caller{})
	must(t, err)
	must(t, mkdir(x, "d/dir", Caller{}))
	for range 2 {
		for _, name := range []string{"link", "dir"} {
			var st unix.Stat_t
			must(t, unix.Lstat(filepath.Join(x.dir, "upper/d", name), &st))
			if ino := x.mustIno("d/" + name); ino != upperIno(st.Ino) {
				t.Errorf("%s has number %#x, of %#x", name, ino, st.Ino)
			}
		}
		x.remount()
	}
}

func TestPlacesInListingsFit31Bits(t *testing.T) {
	x := newFixture(t, newMemLower("d d 755", "f d/b 644 x", "f d/y 644 x"))
	for i := range 300 {
		must(t, mkdir(x, fmt.Sprintf("d/dir%d", i), Caller{}))
	}
	d, err := x.fs.OpenDir(x.mustIno("d"))
	must(t, err)
	for i := range d.Len() {
		e, _, err := d.EntryName(i)
		must(t, err)
		if e.Cookie >= 1<<31 {
			t.Errorf("%q has cookie %#x", e.Name, e.Cookie)
		}
	}
}

// sameHash finds two names that have the first hash in common.
func sameHash() (a, b string) {
	of := map[uint64]string{}
	for i := 0; ; i++ {
		b = fmt.Sprintf("name%d", i)
		first := upperCookie(b, 0)
		if a := of[first]; a != "" {
			return a, b
		}
		of[first] = b
	}
}

func TestNamesOfOneHashAreEachListedWhateverGoes(t *testing.T) {
	a, b := sameHash()
	x := newFixture(t, newMemLower("d d 755", "f d/lower 644 x"))
	dir := x.mustIno("d")
	// behind lists what a reader who has got as far as a cookie has before it.
	behind := func(cookie uint64) (names []string, cookies []uint64) {
		d, err := x.fs.OpenDir(dir)
		must(t, err)
		for i := d.After(cookie); i < d.Len(); i++ {
			e, _, err := d.EntryName(i)
			must(t, err)
			names, cookies = append(names, e.Name), append(cookies, e.Cookie)
		}
		return names, cookies
	}
	must(t, mkdir(x, "d/"+b, Caller{}))
	_, cookies := behind(cookieLower)
	passed := cookies[0]
	must(t, mkdir(x, "d/"+a, Caller{}))
	if names, _ := behind(passed); !slices.Contains(names, a) {
		t.Errorf("behind %q is %q, without %q of the same hash", b, names, a)
	}
	names, cookies := behind(cookieLower)
	if len(names) != 2 || cookies[0] >= cookies[1] || cookies[1] >= 1<<31 {
		t.Fatalf("listed %q with %#x", names, cookies)
	}
	must(t, onName(x, "d/"+names[0], x.fs.Rmdir))
	for range 2 {
		if left, at := behind(cookies[0]); !slices.Equal(left, names[1:]) || at[0] != cookies[1] {
			t.Errorf("behind %q is %q at %#x", names[0], left, at)
		}
	}
}
