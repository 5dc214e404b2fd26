package crash

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// Each command that changes a layout is killed at each of its calls. The layout is then
// as before or as after it, and the command repeated makes of both the same.
func TestALayoutIsAsBeforeOrAfterACommandThatIsKilledAtAnyCall(t *testing.T) {
	s := newSaved(t)
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	t.Setenv("UMOCI_MOUNT_CACHE", filepath.Join(s.dir, "cache"))
	layout := filepath.Join(s.dir, "img")
	files := filepath.Join(t.TempDir(), "files")
	s.must("sh", "-ec", `mkdir -p "$0/d"; head -c 200000 /dev/urandom >"$0/d/f"; tar -C "$0" -cf "$0.tar" d`, files)
	env.Must(t, "config", "--image", s.keepImage("base"), "--tag", "old", "--author", "somebody")
	// What rm leaves without a name is for gc.
	env.Must(t, "config", "--image", s.keepImage("base"), "--tag", "garbage", "--author", "nobody")
	env.Must(t, "rm", "--image", s.keepImage("garbage"))
	for name, args := range map[string][]string{
		"config":    {"config", "--image", s.image("base"), "--config.user", "7:8", "--config.env", "A=b"},
		"tag":       {"tag", "--image", s.image("base"), "second"},
		"rm":        {"rm", "--image", s.image("old")},
		"new":       {"new", "--image", s.image("fresh")},
		"insert":    {"insert", "--image", s.image("base"), "--tag", "more", files, "/into"},
		"whiteout":  {"insert", "--image", s.image("base"), "--whiteout", "/a"},
		"add-layer": {"raw", "add-layer", "--image", s.image("base"), "--tag", "layered", files + ".tar"},
		"gc":        {"gc", "--layout", layout},
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			s.restore()
			before := readIndex(t, layout)
			env.Must(t, args...)
			after, clean := readIndex(t, layout), s.collected()
			killAtEach(t, s.restore, func(int) {
				if r := env.Run(t, "fsck", "--layout", layout); r.Code != 0 {
					t.Errorf("fsck: exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
				}
				switch readIndex(t, layout) {
				case before:
					env.Must(t, args...)
					if got := readIndex(t, layout); got != after {
						t.Errorf("repeated, it makes\n%s\nwant\n%s", got, after)
					}
				case after:
				default:
					t.Errorf("the index is neither of before nor of after:\n%s", readIndex(t, layout))
				}
				if got := s.collected(); got != clean {
					t.Errorf("after a gc the layout has\n%s\nwant\n%s", got, clean)
				}
			}, args...)
		})
	}
}

func TestALayoutThatIsBegunAndKilledAtAnyCallCanBeBegunAgain(t *testing.T) {
	imagetest.NeedRoot(t)
	dir := t.TempDir()
	layout := filepath.Join(dir, "layout")
	clear := func() {
		if err := os.RemoveAll(layout); err != nil {
			t.Fatal(err)
		}
	}
	killAtEach(t, clear, func(int) {
		if _, err := os.Stat(filepath.Join(layout, "oci-layout")); err != nil {
			env.Must(t, "init", "--layout", layout)
		}
		env.Must(t, "new", "--image", layout+":a")
		env.Must(t, "fsck", "--layout", layout)
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("left beside the layout: %v, %v", left, err)
		}
	}, "init", "--layout", layout)
}

func (s *saved) keepImage(tag string) string { return filepath.Join(s.keep, "img") + ":" + tag }

func readIndex(t *testing.T, layout string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// collected lists the layout's files after a gc: nothing that was interrupted is left.
func (s *saved) collected() string {
	s.t.Helper()
	layout := filepath.Join(s.dir, "img")
	env.Must(s.t, "gc", "--layout", layout)
	blobs, err := filepath.Glob(filepath.Join(layout, "blobs/sha256/*"))
	if err != nil {
		s.t.Fatal(err)
	}
	return layoutFiles(s.t, layout) + "\n" + strings.Join(blobs, "\n")
}
