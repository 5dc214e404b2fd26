package imagecmds

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

func TestCatFollowsSymlinksWithinTheImage(t *testing.T) {
	layout := imagetest.Layout(t, imagetest.Image{Tag: "t", Layers: []imagetest.Layer{{Text: `
dir a/b 0755
file a/b/f 0644 "content\n"
file g 0644 "g"
symlink abs /a/b/f
symlink rel a/b/f
symlink dir a/b
symlink out ../../../../g
symlink a/b/up ../../g
symlink loop loop
symlink nowhere nothing
file empty 0644 ""
fifo p 0600
`}}})
	for path, want := range map[string]string{
		"/a/b/f": "content\n", "a/b/f": "content\n", "abs": "content\n", "/rel": "content\n", "dir/f": "content\n",
		"dir/../../g": "g", "dir/../b/f": "content\n", "../../g": "g", "out": "g", "a/b/up": "g", "dir/up": "g", "/": "", "empty": "",
	} {
		if path == "/" {
			continue
		}
		if got := env.Must(t, "cat", "--image", layout+":t", path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if got := env.Must(t, "cat", "--image", layout+":t", "g", "rel", "g"); got != "gcontent\ng" {
		t.Errorf("three files: %q", got)
	}
	for path, code := range map[string]int{"nothing": 3, "nowhere": 3, "g/": 3, "g/x": 3, "/": 1, "p": 1, "loop": 1, "dir": 1} {
		if s := mustFail(t, code, "cat", "--image", layout+":t", path); !strings.Contains(s, filepath.Join("/", path)) {
			t.Errorf("%s: the message does not name it: %s", path, s)
		}
	}
	mustFail(t, 2, "cat", "--image", layout+":t")
	mustFail(t, 2, "cat", "g")
	mustFail(t, 3, "cat", "--image", layout+":no", "g")
}

func TestTreeListsWhatIsExtracted(t *testing.T) {
	imagetest.NeedRoot(t)
	layout := twoLayers(t)
	rootfs := filepath.Join(t.TempDir(), "rootfs")
	env.Must(t, "raw", "unpack", "--extract", "--image", layout+":t", rootfs)
	disk := imagetest.MustReadTree(t, rootfs)
	var list []struct {
		Path, Type, Link, Device string
		Mode, UID, GID           uint32
		Nlink                    uint64
		Size                     int64
		Xattrs                   map[string][]byte
	}
	if err := json.Unmarshal([]byte(env.Must(t, "tree", "--json", "--image", layout+":t")), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != len(disk) {
		t.Errorf("%d entries, extracted were %d", len(list), len(disk))
	}
	for _, l := range list {
		rel := strings.TrimPrefix(l.Path, "/")
		if rel == "" {
			rel = "."
		}
		e := disk[rel]
		if e == nil {
			t.Errorf("%q was not extracted", l.Path)
			continue
		}
		if l.Mode != e.Mode || l.UID != e.UID || l.GID != e.GID || l.Link != e.Target || l.Nlink != e.Nlink ||
			e.Sum != "" && l.Size != e.Size || len(l.Xattrs) != len(e.Xattrs) || (l.Device != "") != (e.Rdev != 0) {
			t.Errorf("%q: listed as %+v, is %+v", l.Path, l, e)
		}
	}
	lines := strings.Split(strings.TrimSuffix(env.Must(t, "tree", "--image", layout+":t"), "\n"), "\n")
	if len(lines) != len(disk) {
		t.Errorf("%d lines for %d entries", len(lines), len(disk))
	}
	if s := mustFail(t, 3, "tree", "--image", layout+":t", "etc/link/"); !strings.Contains(s, "not a directory") {
		t.Errorf("a file as a directory gives %s", s)
	}
}

func TestTreeShowsOneLineAFile(t *testing.T) {
	layout := twoLayers(t)
	for _, c := range []struct {
		args []string
		want []string // parts of the lines
	}{
		{[]string{"etc"}, []string{"drwxr-xr-x   2     0:0           4096 2017-07-14 02:40:00 /etc",
			"/etc/again", "-rw-------   1     3:0              3 2017-07-14 02:40:04 /etc/conf", "lrwxrwxrwx   1     5:6", "/etc/passwd"}},
		{[]string{"--depth", "0", "etc"}, []string{"/etc"}},
		{[]string{"null"}, []string{"crw-rw-rw-   1     0:0            1:3 "}},
		{[]string{"bin/tool"}, []string{"-rwsr-sr-x   1     0:0         200000 "}},
		{[]string{"--depth", "0", "tmp"}, []string{"drwxrwxrwt"}},
	} {
		lines := strings.Split(strings.TrimSuffix(env.Must(t, append([]string{"tree", "--image", layout + ":t"}, c.args...)...), "\n"), "\n")
		if len(lines) != len(c.want) {
			t.Errorf("%v: %d lines, want %d:\n%s", c.args, len(lines), len(c.want), strings.Join(lines, "\n"))
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(lines[i], want) {
				t.Errorf("%v: %q, want %q in it", c.args, lines[i], want)
			}
		}
	}
	if out := env.Must(t, "tree", "--image", layout+":t"); !strings.Contains(out, `"/odd name\nwith\x01 bytes"`) {
		t.Errorf("an odd name is not quoted:\n%s", out)
	}
}

func TestDiffComparesTwoImages(t *testing.T) {
	layout := imagetest.Layout(t,
		imagetest.Image{Tag: "a", Layers: []imagetest.Layer{{Text: base}}},
		imagetest.Image{Tag: "b", Layers: []imagetest.Layer{{Text: base}, {Text: above}}},
		imagetest.Image{Tag: "same", Layers: []imagetest.Layer{{Text: base}, {Text: "file x 0644 x"}, {Text: "whiteout x"}}},
		// The same files in other layers: their content is read and compared.
		imagetest.Image{Tag: "other", Layers: []imagetest.Layer{{Text: "dir first 0755"}, {Text: base}, {Text: "whiteout first"}}},
	)
	got := env.Must(t, "diff", "--image", layout+":a", "b")
	lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
	wantLines := []string{
		"A /dangling", "C /etc/conf", "D /gone", "D /hidden/below", "A /hidden/new", `A "/odd name\nwith\x01 bytes"`,
		"C /to-dir", "A /to-dir/x", "C /to-file",
	}
	var real []string
	for _, l := range lines { // directories whose link count or time differs are of no interest here
		if l != "C /" && l != "C /etc" && l != "C /hidden" {
			real = append(real, l)
		}
	}
	slices.Sort(real)
	slices.Sort(wantLines)
	if !slices.Equal(real, wantLines) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(real, "\n"), strings.Join(wantLines, "\n"))
	}
	for _, to := range []string{"a", ":a", layout + ":a", "same", "other"} {
		if out := env.Must(t, "diff", "--image", layout+":a", to); out != "" {
			t.Errorf("to %s differs\n%s", to, out)
		}
	}
	var changes []struct{ Kind, Path, Type string }
	if err := json.Unmarshal([]byte(env.Must(t, "diff", "--json", "--image", layout+":b", "a")), &changes); err != nil || len(changes) != len(lines)+1 {
		t.Errorf("back there are %d changes, forth %d (%v)", len(changes), len(lines), err) // what was in gone is named then
	}
	if out := env.Must(t, "diff", "--json", "--image", layout+":a", "a"); out != "[]\n" {
		t.Errorf("nothing is %q", out)
	}
	mustFail(t, 3, "diff", "--image", layout+":a", "no")
	mustFail(t, 2, "diff", "--image", layout+":a", ":-")
	mustFail(t, 2, "diff", "--platform", "linux/amd64", "bundle")
}

func TestReadingAnImageMountsNothingAndChangesNothing(t *testing.T) {
	layout := twoLayers(t)
	before := imagetest.MustReadTree(t, layout)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	env.Must(t, "cat", "--image", layout+":t", "etc/conf")
	env.Must(t, "tree", "--image", layout+":t")
	env.Must(t, "diff", "--image", layout+":t", "t")
	env.Must(t, "fsck", "--layout", layout)
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(mounts), layout) != strings.Count(string(after), layout) {
		t.Error("something is mounted")
	}
	now := imagetest.MustReadTree(t, layout)
	delete(now, ".lock-umoci-mount") // came with the first lock, and stays
	imagetest.SameTree(t, "layout", before, now, imagetest.CompareOptions{IgnoreTime: func(path string) bool { return path == "." }})
}
