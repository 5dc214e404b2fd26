package overlay

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A crash between a copy-up and the change it is for would leave the copy with the old
// mode; and the change alone costs as much as a fifth of the copy-up.
func TestACopyIsMadeWithTheOwnerAndModeThatAreSet(t *testing.T) {
	for _, rootless := range []bool{false, true} {
		if !rootless && unix.Geteuid() != 0 {
			continue
		}
		published := false
		opt := UpperOptions{Rootless: rootless, Fault: func(step string) error {
			switch step {
			case "create":
				published = false
			case "rename":
				published = true
			case "chmod", "chown", "setxattr":
				if published {
					t.Errorf("%s after the copy was published (rootless: %v)", step, rootless)
				}
			}
			return nil
		}}
		x := newFixtureWith(t, newMemLower(modelTree...), opt)
		if err := chmod(x, "a/b/c", 0o711); err != nil {
			t.Fatal(err)
		}
		published = false
		a, err := x.fs.SetAttr(x.mustIno("top"), SetAttr{Valid: SetMode | SetUID | SetGID, Mode: 0o4751, UID: 7, GID: 8})
		if err != nil {
			t.Fatal(err)
		}
		if a.Mode != unix.S_IFREG|0o4751 || a.UID != 7 || a.GID != 8 {
			t.Errorf("rootless %v: mode %o, owner %d:%d", rootless, a.Mode, a.UID, a.GID)
		}
		x.remount()
		if again, err := x.fs.GetAttr(x.mustIno("top")); err != nil || again.Mode != a.Mode || again.UID != 7 || again.GID != 8 {
			t.Errorf("rootless %v: mode %o, owner %d:%d, %v", rootless, again.Mode, again.UID, again.GID, err)
		}
	}
}

func TestASymlinkKeepsItsTimesWhenAStandInTakesItsPlace(t *testing.T) {
	x := newFixtureWith(t, newMemLower(modelTree...), UpperOptions{Rootless: true})
	_, err := x.fs.Symlink(1, "n1", "somewhere", Caller{})
	must(t, err)
	ino := x.mustIno("n1")
	was, err := x.fs.SetAttr(ino, SetAttr{Valid: SetAtime | SetMtime, Atime: Timespec{Sec: 10, Nsec: 1}, Mtime: Timespec{Sec: 20, Nsec: 2}})
	must(t, err)
	must(t, chown(x, "n1", 3))
	a, err := x.fs.GetAttr(ino)
	must(t, err)
	if a.UID != 3 || a.Atime != was.Atime || a.Mtime != was.Mtime {
		t.Errorf("owner %d, times %v and %v, were %v and %v", a.UID, a.Atime, a.Mtime, was.Atime, was.Mtime)
	}
}
