package overlay

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// readNames are objects that are read in several ways.
var readNames = []string{"", "d", "d/sub", "d/file", "meta"}

func atimeFixture(t *testing.T) *fixture {
	t.Helper()
	x := newFixture(t, newMemLower("d d 755", "f d/lower 644 x", "f meta 644 data"))
	must(t, mkdir(x, "d/sub", Caller{}))
	h, _, err := x.fs.Create(x.mustIno("d"), "file", unix.O_RDWR, 0o644, Caller{})
	must(t, err)
	_, err = h.WriteAt([]byte("data"), 0)
	must(t, err)
	must(t, h.Close())
	_, err = x.fs.SetAttr(x.mustIno("meta"), SetAttr{Valid: SetMode, Mode: 0o600})
	must(t, err)
	return x
}

// atimes makes all of them long ago and says which use changes.
func (x *fixture) atimes(use func()) map[string]bool {
	x.t.Helper()
	long := []unix.Timespec{{Sec: 978307200}, {Nsec: unix.UTIME_OMIT}}
	for _, p := range readNames {
		must(x.t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(x.dir, "upper", p), long, unix.AT_SYMLINK_NOFOLLOW))
	}
	use()
	changed := map[string]bool{}
	for _, p := range readNames {
		var st unix.Stat_t
		must(x.t, unix.Lstat(filepath.Join(x.dir, "upper", p), &st))
		if st.Atim != long[0] {
			changed[p] = true
		}
	}
	return changed
}

func TestAReadOnlyMountChangesNoAccessTimes(t *testing.T) {
	x := atimeFixture(t)
	x.opt.KeepAtime = true
	for _, x.fsOpt.ReadOnly = range []bool{false, true} {
		changed := x.atimes(func() {
			x.remount()
			x.listing()
		})
		if len(changed) > 0 {
			t.Errorf("changed of %v", changed)
		}
	}
}

func TestALookChangesNoAccessTimes(t *testing.T) {
	x := atimeFixture(t)
	x.remount()
	changed := x.atimes(func() {
		for _, p := range readNames[1:] {
			x.mustIno(p)
		}
		if err := onName(x, "d", x.fs.Rmdir); err == nil {
			t.Error("removed a directory that is not empty")
		}
	})
	if len(changed) > 0 {
		t.Errorf("changed of %v", changed)
	}
}

func TestAReadChangesAccessTimesWhereTheHostsDoes(t *testing.T) {
	x := atimeFixture(t)
	host := x.atimes(func() {
		_, err := os.ReadFile(filepath.Join(x.dir, "upper/d/file"))
		must(t, err)
		_, err = os.ReadDir(filepath.Join(x.dir, "upper/d"))
		must(t, err)
	})
	changed := x.atimes(func() {
		d, err := x.fs.OpenDir(x.mustIno("d"))
		must(t, err)
		if d.Len() != 5 {
			t.Errorf("%d names", d.Len())
		}
		x.read(x.mustIno("d/file"))
	})
	for _, p := range readNames {
		if changed[p] != host[p] {
			t.Errorf("%q: changed %t, by the host %t", p, changed[p], host[p])
		}
	}
}

func TestAFileOfAnotherIsOpenedAllTheSame(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs another user")
	}
	x := atimeFixture(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	must(t, unix.Setfsuid(65534)) // this thread's alone; takes CAP_FOWNER too
	defer func() { must(t, unix.Setfsuid(0)) }()
	root := at{x.fs.upper.root, "."}
	if fd, err := x.fs.upper.openAs(root, unix.O_RDONLY|unix.O_NOATIME); err == nil {
		_ = unix.Close(fd)
		t.Fatal("another user opened it with O_NOATIME")
	}
	fd, err := x.fs.upper.open(root, unix.O_RDONLY|unix.O_NOATIME)
	must(t, err)
	must(t, unix.Close(fd))
}
