package bundle

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// In a directory as /tmp anybody can put something beside a mountpoint.
func TestWhatAStrangerPutBesideIsNoBundle(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making files of others takes root")
	}
	const user, other = 1234, 1235
	for name, c := range map[string]struct {
		beside, point int  // owners; -1: not there
		link          bool // beside is a symlink to a bundle of root's
		taken         bool
	}{
		"root's, of a user's mountpoint":       {beside: 0, point: user, taken: true},
		"root's, and the mountpoint is gone":   {beside: 0, point: -1, taken: true},
		"the mountpoint's owner's":             {beside: user, point: user, taken: true},
		"a user's, of root's mountpoint":       {beside: user, point: 0},
		"a user's, of another's mountpoint":    {beside: user, point: other},
		"a user's, and there is no mountpoint": {beside: user, point: -1},
		"a symlink to root's":                  {beside: 0, point: 0, link: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			point, beside := filepath.Join(dir, "m"), filepath.Join(dir, ".m.umoci-mount")
			at := beside
			if c.link {
				at = filepath.Join(dir, "elsewhere")
				if err := os.Symlink(at, beside); err != nil {
					t.Fatal(err)
				}
			}
			err := os.MkdirAll(filepath.Join(at, stateDir), 0o755)
			err = errors.Join(err, os.WriteFile(filepath.Join(at, stateDir, stateName), nil, 0o644), os.Chown(at, c.beside, c.beside))
			if c.point >= 0 {
				err = errors.Join(err, os.Mkdir(point, 0o755), os.Chown(point, c.point, c.point))
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := Locate(point); (got == beside) != c.taken || !c.taken && got != point {
				t.Errorf("located at %s", got)
			}
			if _, err := RawMount(MountOptions{Bundle: point}); errors.Is(err, ErrExists) == c.taken || err == nil != c.taken {
				t.Errorf("raw unpack: %v", err)
			}
		})
	}
}
