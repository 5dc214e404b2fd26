package imagecmds

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// What a command, and the daemon that it leaves, may take of memory and time for any of
// the images: a few times what they do.
const (
	attackMemory = 600 << 20
	attackTime   = time.Minute
)

// attack runs umoci-mount on an image, in bounds.
func attack(t *testing.T, args ...string) imagetest.Result {
	t.Helper()
	script := fmt.Sprintf(`ulimit -d %d; exec "$0" "$@"`, attackMemory>>10)
	start := time.Now()
	r := env.Command(t, nil, "sh", append([]string{"-ec", script, env.Bin}, args...)...)
	if took := time.Since(start); took > attackTime {
		t.Errorf("%v: took %v", args, took)
	}
	return r
}

// attackFails is attack for an image that is refused.
func attackFails(t *testing.T, args ...string) {
	t.Helper()
	if r := attack(t, args...); r.Code != imagetest.CodeImage {
		t.Errorf("%v: exit %d, want %d\n%s%s", args, r.Code, imagetest.CodeImage, r.Stdout, r.Stderr)
	}
}

// attackWorks is attack for an image that can be used.
func attackWorks(t *testing.T, args ...string) {
	t.Helper()
	if r := attack(t, args...); r.Code != 0 {
		t.Fatalf("%v: exit %d\n%s%s", args, r.Code, r.Stdout, r.Stderr)
	}
}

func TestHostileImagesTouchNothingOutside(t *testing.T) {
	imagetest.NeedRoot(t)
	for _, a := range imagetest.Attacks() {
		t.Run(a.Name, func(t *testing.T) {
			dir := t.TempDir()
			outside := filepath.Join(dir, "outside")
			if err := os.Mkdir(outside, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
				t.Fatal(err)
			}
			img := imagetest.Image{Tag: "t"}
			for _, b := range a.Layers(t, outside) {
				img.Layers = append(img.Layers, imagetest.Layer{Tar: b})
			}
			layout := imagetest.Layout(t, img)
			before := imagetest.MustReadTree(t, dir)
			extractAttack(t, &a, dir, "unpack", "--extract", "--image", layout+":t", filepath.Join(dir, "bundle"))
			extractAttack(t, &a, dir, "unpack", "--extract", "--rootless", "--image", layout+":t", filepath.Join(dir, "bundle2"))
			extractAttack(t, &a, dir, "raw", "unpack", "--extract", "--image", layout+":t", filepath.Join(dir, "rootfs"))
			mountAttack(t, &a, layout+":t", filepath.Join(dir, "mounted"))
			if !a.Refuse { // once more, over what is there now
				extractAttack(t, &a, dir, "raw", "unpack", "--extract", "--image", layout+":t", filepath.Join(dir, "rootfs"))
			}
			for _, name := range []string{"bundle", "bundle2", "rootfs", "mounted"} {
				if a.Refuse {
					missing(t, filepath.Join(dir, name))
				}
				removeTree(t, dir, name)
			}
			imagetest.SameTree(t, "what was there before", before, imagetest.MustReadTree(t, dir), imagetest.CompareOptions{
				IgnoreTime: func(path string) bool { return path == "." },
			})
		})
	}
}

// mountAttack mounts an image, looks at everything in it, and changes what is there.
func mountAttack(t *testing.T, a *imagetest.Attack, image, bundle string) {
	t.Helper()
	imagetest.NeedFuse(t)
	if a.Refuse {
		attackFails(t, "mount", "--image", image, bundle)
		return
	}
	attackWorks(t, "mount", "--image", image, bundle)
	rootfs := filepath.Join(bundle, "rootfs")
	for _, name := range a.Inside {
		if _, err := os.Lstat(filepath.Join(rootfs, name)); err != nil {
			t.Errorf("mounted: %v", err)
		}
	}
	env.MustCommand(t, "sh", "-ec", `cd "$0"; find . -type f -exec cat {} + >/dev/null; chmod -R u+rwX .; find . -delete`, rootfs)
	env.Must(t, "repack", "--image", image+"-emptied", bundle)
	env.Must(t, "umount", bundle)
}

func extractAttack(t *testing.T, a *imagetest.Attack, dir string, args ...string) {
	t.Helper()
	if a.Refuse {
		attackFails(t, args...)
		return
	}
	attackWorks(t, args...)
	rootfs := args[len(args)-1]
	if args[0] == "unpack" {
		rootfs = filepath.Join(rootfs, "rootfs")
	}
	for _, name := range a.Inside {
		if _, err := os.Lstat(filepath.Join(rootfs, name)); err != nil {
			t.Errorf("%v: %v", args[:2], err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "outside/secret")); err != nil || string(b) != "secret" {
		t.Errorf("%v: the secret outside is %q (%v)", args[:2], b, err)
	}
}

// removeTree removes a tree that may be deeper than os.RemoveAll has descriptors.
func removeTree(t *testing.T, dir, name string) {
	t.Helper()
	env.MustCommand(t, "rm", "-rf", filepath.Join(dir, name))
}

// A destination that others have prepared, as it is with raw unpack.
func TestExtractionFollowsNoSymlinkInItsDestination(t *testing.T) {
	imagetest.NeedRoot(t)
	layout := imagetest.Layout(t, imagetest.Image{Tag: "t", Layers: []imagetest.Layer{{Text: "dir etc 0755\nfile etc/f 0644 x\nfile g 0644 x\nfifo p 0600\nsymlink s x"}}})
	dir := t.TempDir()
	outside, rootfs := filepath.Join(dir, "outside"), filepath.Join(dir, "rootfs")
	for _, d := range []string{outside, rootfs} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"etc": outside, "g": outside + "/g", "p": outside + "/p", "s": outside + "/s"} {
		if err := os.Symlink(target, filepath.Join(rootfs, name)); err != nil {
			t.Fatal(err)
		}
	}
	env.Must(t, "raw", "unpack", "--extract", "--image", layout+":t", rootfs)
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside there is %v (%v)", entries, err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(rootfs, "etc/f"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		t.Errorf("etc/f: mode %#o (%v)", st.Mode, err)
	}
}
