package tests

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// requests are the kernel's of a bundle's mount, by kind.
func requests(t *testing.T, b *imagetest.Bundle) map[string]int {
	t.Helper()
	var mounts []struct {
		Bundle   string
		Requests map[string]int
	}
	if err := json.Unmarshal([]byte(env.Must(t, "status", "--json", "--stats")), &mounts); err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if m.Bundle == b.Path {
			return m.Requests
		}
	}
	t.Fatalf("no mount of %s", b.Path)
	return nil
}

// The kernel sends no RELEASE once it knows that OPEN is not answered. What fills a new
// mount opens nothing that would tell it.
func TestFilesMadeInANewMountAreNotReleased(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	layout := imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: []imagetest.Layer{{Text: "dir . 0755\ndir d 0755\nfile d/secret 0600 \"x\"\nfile d/f 0644 \"x\"\n"}}})
	const files = 5
	b := env.Mount(t, layout+":base")
	for i := range files {
		if err := os.WriteFile(filepath.Join(b.Rootfs(), fmt.Sprint("new", i)), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if r := requests(t, b); r["CREATE"] != files || r["RELEASE"] != 0 || r["OPEN"] != 1 {
		t.Errorf("requests: %v", r)
	}
}

func TestAMountWithoutAFileToOpenWorks(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	for name, text := range map[string]string{
		"empty":      "dir . 0755\n",
		"unreadable": "dir . 0755\nfile secret 0000 \"x\"\n",
		"no file":    "dir . 0755\nsymlink link target\n",
	} {
		t.Run(name, func(t *testing.T) {
			layout := imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: []imagetest.Layer{{Text: text}}})
			b := env.Mount(t, layout+":base")
			if err := os.WriteFile(filepath.Join(b.Rootfs(), "new"), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A resumed bundle may have anything where the image has its first file.
func TestWhatAChangePutWhereAFileWasIsNotOpened(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "mkfifo")
	layout := imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: []imagetest.Layer{{Text: "dir . 0755\nfile f 0644 \"x\"\n"}}})
	b := env.Mount(t, layout+":base")
	name := filepath.Join(b.Rootfs(), "f")
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	env.MustCommand(t, "mkfifo", name)
	b.Umount(t)
	b.Remount(t)
	if r := requests(t, b); r["OPEN"] != 0 {
		t.Errorf("requests: %v", r)
	}
}
