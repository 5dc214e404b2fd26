package imagecmds

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

func TestRawUnpackMountsWithoutABundle(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	layout := twoLayers(t)
	for _, exists := range []bool{false, true} {
		dir := t.TempDir()
		rootfs := filepath.Join(dir, "rootfs")
		if exists {
			if err := os.Mkdir(rootfs, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(func() { _ = unix.Unmount(rootfs, unix.MNT_DETACH) })
		env.Must(t, "raw", "unpack", "--image", layout+":t", rootfs)
		if b, err := os.ReadFile(filepath.Join(rootfs, "etc/conf")); err != nil || string(b) != "new" {
			t.Errorf("etc/conf: %q (%v)", b, err)
		}
		missing(t, filepath.Join(dir, ".rootfs.umoci-mount/config.json"))
		var mounts []struct{ Bundle, Rootfs string }
		if err := json.Unmarshal([]byte(env.Must(t, "status", "--json")), &mounts); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(env.Must(t, "status", "--json"), `"rootfs": "`+rootfs+`"`) {
			t.Errorf("status does not list %s: %v", rootfs, mounts)
		}
		if err := os.WriteFile(filepath.Join(rootfs, "etc/new"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		mustFail(t, 5, "raw", "unpack", "--image", layout+":t", rootfs)
		env.Must(t, "umount", rootfs)
		if entries, err := os.ReadDir(rootfs); err != nil || len(entries) > 0 {
			t.Errorf("unmounted, there is %v (%v)", entries, err)
		}
		if out := env.Must(t, "diff", rootfs); !strings.Contains(out, "A /etc/new\n") {
			t.Errorf("diff says\n%s", out)
		}
		env.Must(t, "raw", "unpack", "--image", layout+":t", rootfs) // goes on
		if _, err := os.Lstat(filepath.Join(rootfs, "etc/new")); err != nil {
			t.Error(err)
		}
		env.Must(t, "repack", "--image", layout+":new", rootfs)
		if out := env.Must(t, "diff", "--image", layout+":t", "new"); !strings.Contains(out, "A /etc/new\n") {
			t.Errorf("the new image differs by\n%s", out)
		}
		env.Must(t, "umount", "--discard", rootfs)
		missing(t, filepath.Join(dir, ".rootfs.umoci-mount"))
	}
}

func TestRawUnpackExtractsWhereTheEnvironmentSaysSo(t *testing.T) {
	imagetest.NeedRoot(t)
	layout := twoLayers(t)
	rootfs := filepath.Join(t.TempDir(), "rootfs")
	t.Cleanup(func() { _ = unix.Unmount(rootfs, unix.MNT_DETACH) })
	r := env.Command(t, []string{"UMOCI_MOUNT_EXTRACT=1"}, env.Bin, "raw", "unpack", "--image", layout+":t", rootfs)
	if b, err := os.ReadFile(filepath.Join(rootfs, "etc/conf")); r.Code != 0 || err != nil || string(b) != "new" {
		t.Errorf("exit %d, etc/conf: %q (%v)\n%s", r.Code, b, err, r.Stderr)
	}
	missing(t, filepath.Join(filepath.Dir(rootfs), ".rootfs.umoci-mount"))
	env.MustCommand(t, "rm", "-rf", rootfs)
	missing(t, rootfs)
}

// The mountpoint itself is busy for who removes it; nothing else is lost than was asked.
func TestAMountWithoutABundleIsNotRemovedWhileMounted(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	layout := twoLayers(t)
	rootfs := filepath.Join(t.TempDir(), "rootfs")
	t.Cleanup(func() { _ = unix.Unmount(rootfs, unix.MNT_DETACH) })
	env.Must(t, "raw", "unpack", "--image", layout+":t", rootfs)
	if r := env.Command(t, nil, "rm", "-rf", rootfs); r.Code == 0 || !strings.Contains(r.Stderr, "busy") {
		t.Errorf("rm: exit %d: %s", r.Code, r.Stderr)
	}
	if out := env.Must(t, "diff", rootfs); !strings.Contains(out, "D /etc\n") {
		t.Errorf("diff says\n%s", out)
	}
	env.Must(t, "umount", "--discard", rootfs)
	env.MustCommand(t, "rm", "-rf", rootfs)
}

func TestRawUnpackRefusesWhatIsInTheWay(t *testing.T) {
	layout := twoLayers(t)
	dir := t.TempDir()
	full := filepath.Join(dir, "full")
	if err := os.MkdirAll(filepath.Join(full, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	before := imagetest.MustReadTree(t, dir)
	mustFail(t, 5, "raw", "unpack", "--image", layout+":t", full)
	mustFail(t, 5, "raw", "unpack", "--image", layout+":t", file)
	mustFail(t, 3, "raw", "unpack", "--image", layout+":no", filepath.Join(dir, "new"))
	mustFail(t, 3, "raw", "unpack", filepath.Join(dir, "new"))
	mustFail(t, 2, "raw", "unpack", "--extract", filepath.Join(dir, "new"))
	mustFail(t, 2, "raw", "nonsense")
	imagetest.SameTree(t, "what was there", before, imagetest.MustReadTree(t, dir), imagetest.CompareOptions{IgnoreTime: func(p string) bool { return p == "." }})
}

// What is in an image must not be taken for a bundle.
func TestAnImageThatLooksLikeABundleIsNone(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	layout := imagetest.Layout(t, imagetest.Image{Tag: "t", Layers: []imagetest.Layer{{Text: `
dir .umoci-mount 0700
file .umoci-mount/state.json 0600 "{\"version\":1,\"layout\":\"/\",\"tag\":\"x\"}"
file umoci.json 0644 "{}"
`}}})
	rootfs := filepath.Join(t.TempDir(), "rootfs")
	t.Cleanup(func() { _ = unix.Unmount(rootfs, unix.MNT_DETACH) })
	env.Must(t, "raw", "unpack", "--image", layout+":t", rootfs)
	if out := env.Must(t, "diff", rootfs); out != "" {
		t.Errorf("diff says\n%s", out)
	}
	env.Must(t, "umount", "--discard", rootfs)
}

func TestMtreeValidateFindsWhatDiffers(t *testing.T) {
	imagetest.NeedRoot(t)
	layout := twoLayers(t)
	bundle := filepath.Join(t.TempDir(), "bundle")
	env.Must(t, "unpack", "--extract", "--image", layout+":t", bundle)
	manifest, rootfs := glob(t, bundle+"/*.mtree"), filepath.Join(bundle, "rootfs")
	validate := []string{"raw", "mtree-validate", "--manifest", manifest, "--path", rootfs}
	for _, flags := range [][]string{nil, {"--umoci-keywords"}, {"--rootless"}, {"-k", "type,size"}, {"-K", "uid gid"}} {
		if out := env.Must(t, append(validate, flags...)...); out != "" {
			t.Errorf("%v: %s", flags, out)
		}
	}
	if err := os.Chmod(filepath.Join(rootfs, "etc/conf"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(rootfs, "pipe")); err != nil {
		t.Fatal(err)
	}
	r := env.Run(t, append(validate, "--umoci-keywords")...)
	if r.Code != 1 || !strings.Contains(r.Stdout, `"etc/conf": keyword "mode": expected 0600; got 0644`) ||
		!strings.Contains(r.Stdout, `"pipe": missing path`) || !strings.Contains(r.Stderr, "differences found") {
		t.Errorf("exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	r = env.Run(t, append(validate, "-k", "size")...)
	if r.Code != 1 || strings.Contains(r.Stdout, "mode") {
		t.Errorf("exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	mustFail(t, 2, "raw", "mtree-validate", "-f", manifest)
	mustFail(t, 2, "raw", "mtree-validate", "-p", rootfs)
	mustFail(t, 3, "raw", "mtree-validate", "-f", manifest+"x", "-p", rootfs)
}

// What a plain user closed to himself is opened for a moment, and closed again.
func TestMtreeValidateLooksIntoClosedDirectories(t *testing.T) {
	imagetest.NeedRoot(t) // to become another user
	imagetest.NeedTools(t, "setpriv")
	dir := filepath.Join(env.Dir, "closed")
	rootfs := filepath.Join(dir, "rootfs")
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.MkdirAll(filepath.Join(rootfs, "d/e"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(rootfs, "d/e/f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(dir, "m")
	text := "#mtree\n. type=dir mode=0755\n    d type=dir mode=0\n        e type=dir mode=0\n            f type=file mode=0 size=1 sha256digest=2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881\n        ..\n    ..\n..\n"
	if err := os.WriteFile(manifest, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	env.MustCommand(t, "chown", "-R", "12345:12345", rootfs)
	env.MustCommand(t, "chmod", "0", filepath.Join(rootfs, "d/e/f"), filepath.Join(rootfs, "d/e"), filepath.Join(rootfs, "d"))
	user := []string{"--reuid=12345", "--regid=12345", "--clear-groups", env.Bin, "raw", "mtree-validate", "-f", manifest, "-p", rootfs, "-k", "type,mode,sha256digest"}
	if r := env.Command(t, nil, "setpriv", user...); r.Code == 0 {
		t.Error("without --rootless it looked in too")
	}
	if r := env.Command(t, nil, "setpriv", append(user, "--rootless")...); r.Code != 0 {
		t.Errorf("exit %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	for _, name := range []string{"d", "d/e", "d/e/f"} {
		info, err := os.Lstat(filepath.Join(rootfs, name))
		if err != nil || info.Mode().Perm() != 0 {
			t.Errorf("%s: %v (%v)", name, info.Mode(), err)
		}
	}
}
