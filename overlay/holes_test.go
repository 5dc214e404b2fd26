package overlay

import (
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestHolesOfTheLowerStayHoles(t *testing.T) {
	const hole = 8 << 20
	x := newFixture(t, newMemLower("f f 644 x", "s f 8388608 data"))
	ino := x.mustIno("f")
	check := func(when string) {
		t.Helper()
		a, err := x.fs.GetAttr(ino)
		must(t, err)
		if a.Blocks < 1 || a.Blocks > 64 {
			t.Errorf("%s: %d blocks", when, a.Blocks)
		}
		h := mustHandle(t, x, "f", unix.O_RDONLY)
		defer h.Close()
		for _, c := range []struct {
			off    int64
			whence int
			want   int64
		}{{0, unix.SEEK_DATA, hole}, {hole + 1, unix.SEEK_DATA, hole + 1}, {5, unix.SEEK_HOLE, 5}, {hole, unix.SEEK_HOLE, hole + 4}} {
			if pos, err := h.Seek(c.off, c.whence); pos != c.want || err != nil {
				t.Errorf("%s: seek %d from %d is %d, %v", when, c.whence, c.off, pos, err)
			}
		}
		if pos, err := h.Seek(hole+4, unix.SEEK_DATA); !errors.Is(err, ErrNoData) && !errors.Is(err, unix.ENXIO) {
			t.Errorf("%s: data behind the end at %d, %v", when, pos, err)
		}
	}
	check("lower")
	_, err := x.fs.SetAttr(ino, SetAttr{Valid: SetMode, Mode: 0o600})
	must(t, err)
	check("metacopy")
	must(t, mustHandle(t, x, "f", unix.O_RDWR).Close())
	check("copied up")
	var st unix.Stat_t
	must(t, unix.Lstat(filepath.Join(x.dir, "upper/f"), &st))
	if st.Size != hole+4 || st.Blocks > 64 {
		t.Errorf("%d bytes take %d blocks in the upper", st.Size, st.Blocks)
	}
}
