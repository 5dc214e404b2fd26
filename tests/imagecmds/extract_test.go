package imagecmds

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// Each image is unpacked by stock umoci and by us: entry for entry the same, but for
// what nobody promises.
func TestAnExtractedTreeIsStockUmocis(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "umoci")
	for _, c := range []struct {
		name   string
		layers []string
		flags  []string
	}{
		{"every kind of entry", []string{base, above}, nil},
		{"mapped ids", []string{base, above}, []string{"--uid-map", "0:100000:65536", "--gid-map", "0:200000:65536"}},
		{"only mapped users", []string{base}, []string{"--uid-map", "0:100000:65536"}},
		{"rootless", []string{base, above}, []string{"--rootless"}},
		{"kept links to directories", []string{"dir real 0755\nfile real/a 0644 a\nsymlink link real", "dir link 0700\nfile link/b 0644 b"}, []string{"--keep-dirlinks"}},
		{"replaced links to directories", []string{"dir real 0755\nfile real/a 0644 a\nsymlink link real", "dir link 0700\nfile link/b 0644 b"}, nil},
		{"an empty image", nil, nil},
		{"hard links of every kind", []string{"file f 0644 f\nsymlink s f\nfifo p 0600\nchar c 0600 1,5\nhardlink f2 f\nhardlink s2 s\nhardlink p2 p\nhardlink c2 c"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := imagetest.Image{Tag: "t"}
			for _, text := range c.layers {
				img.Layers = append(img.Layers, imagetest.Layer{Text: text})
			}
			layout := imagetest.Layout(t, img)
			dir := t.TempDir()
			stock, ours := filepath.Join(dir, "stock"), filepath.Join(dir, "ours")
			env.MustCommand(t, "umoci", append(append([]string{"unpack", "--image", layout + ":t"}, c.flags...), stock)...)
			env.Must(t, append(append([]string{"unpack", "--extract", "--image", layout + ":t"}, c.flags...), ours)...)
			want := imagetest.MustReadTree(t, filepath.Join(stock, "rootfs"))
			got := imagetest.MustReadTree(t, filepath.Join(ours, "rootfs"))
			imagetest.SameTree(t, "rootfs", want, got, imagetest.CompareOptions{DirNlink: true, IgnoreTime: func(path string) bool {
				return path == "." // of no entry in the layers
			}})
			sameMeta(t, stock, ours)
			if out := env.Must(t, "raw", "mtree-validate", "-f", glob(t, ours+"/*.mtree"), "-p", ours+"/rootfs"); out != "" {
				t.Errorf("the manifest is of another tree:\n%s", out)
			}
		})
	}
}

// sameMeta compares umoci.json, but for what old versions add to it.
func sameMeta(t *testing.T, stock, ours string) {
	t.Helper()
	var list [2]map[string]any
	for i, dir := range []string{stock, ours} {
		b, err := os.ReadFile(filepath.Join(dir, "umoci.json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &list[i]); err != nil {
			t.Fatal(err)
		}
		delete(list[i], "whiteout_mode")
	}
	a, _ := json.Marshal(list[0])
	b, _ := json.Marshal(list[1])
	if string(a) != string(b) {
		t.Errorf("umoci.json:\n%s\nwant\n%s", b, a)
	}
}

// Both programs make the same layer of an extracted bundle, or none.
func TestAnExtractedBundleIsRepackedByBothPrograms(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "umoci")
	for name, flags := range map[string][]string{"as root": nil, "rootless": {"--rootless"}, "mapped": {"--uid-map", "0:100000:65536", "--gid-map", "0:100000:65536"}} {
		t.Run(name, func(t *testing.T) {
			layout := twoLayers(t)
			bundle := filepath.Join(t.TempDir(), "bundle")
			env.Must(t, append(append([]string{"unpack", "--extract", "--image", layout + ":t"}, flags...), bundle)...)
			for _, tag := range []string{"stock-same", "ours-same", "stock", "ours"} {
				if tag == "stock" {
					edit(t, filepath.Join(bundle, "rootfs"))
					if name == "mapped" { // who works in the container is its root
						if err := os.Chown(filepath.Join(bundle, "rootfs/etc/new"), 100000, 100000); err != nil {
							t.Fatal(err)
						}
					}
				}
				program := "umoci"
				if strings.HasPrefix(tag, "ours") {
					program = env.Bin
				}
				env.MustCommand(t, program, "repack", "--image", layout+":"+tag, bundle)
			}
			var layers [4][]ispec.Descriptor
			var diffIDs [4]string
			for i, tag := range []string{"stock-same", "ours-same", "stock", "ours"} {
				_, m, config := imagetest.Manifest(t, layout, tag)
				layers[i] = m.Layers
				diffIDs[i] = config.RootFS.DiffIDs[len(config.RootFS.DiffIDs)-1].String()
			}
			if len(layers[0]) != 2 || len(layers[1]) != 2 {
				t.Errorf("nothing has changed: %d and %d layers, want 2", len(layers[0]), len(layers[1]))
			}
			if len(layers[2]) != 3 || diffIDs[2] != diffIDs[3] {
				t.Errorf("%d layers; the new one is %s by stock umoci, %s by us", len(layers[2]), diffIDs[2], diffIDs[3])
			}
		})
	}
}

func edit(t *testing.T, rootfs string) {
	t.Helper()
	when := time.Unix(1700000000, 0)
	for _, name := range []string{"etc/new", "bin/tool"} {
		name = filepath.Join(rootfs, name)
		if err := os.WriteFile(name, []byte("changed"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, when, when); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(rootfs, "dangling")); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"etc", "."} {
		if err := os.Chtimes(filepath.Join(rootfs, dir), when, when); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAPlainUserExtracts(t *testing.T) {
	imagetest.NeedRoot(t) // to become another user
	imagetest.NeedTools(t, "setpriv")
	layout := twoLayers(t)
	dir := t.TempDir()
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	const uid = 12345
	if err := os.Chown(home, uid, uid); err != nil {
		t.Fatal(err)
	}
	for d := dir; strings.HasPrefix(d, env.Dir); d = filepath.Dir(d) { // let the user through
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := filepath.WalkDir(layout, func(name string, _ os.DirEntry, _ error) error { return os.Chmod(name, 0o755) }); err != nil {
		t.Fatal(err)
	}
	for d := layout; strings.HasPrefix(d, env.Dir); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	bundle := filepath.Join(home, "bundle")
	env.MustCommand(t, "setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", env.Bin, "unpack", "--extract",
		"--cache-dir", filepath.Join(home, "cache"), "--image", layout+":t", bundle)
	tree := imagetest.MustReadTree(t, filepath.Join(bundle, "rootfs"))
	for path, e := range tree {
		if e.UID != uid || e.GID != uid {
			t.Errorf("%s belongs to %d:%d", path, e.UID, e.GID)
		}
	}
	if e := tree["etc/conf"]; e.Xattrs["user.rootlesscontainers"] != "\x08\x03\x10\xff\xff\xff\xff\x0f" {
		t.Errorf("etc/conf: attributes %q", e.Xattrs)
	}
	if e := tree["disk"]; e.Type() != unix.S_IFREG || e.Mode&0o7777 != 0o660 {
		t.Errorf("disk: mode %#o", e.Mode)
	}
}

func TestExtractionRefusesWhatIsThere(t *testing.T) {
	layout := twoLayers(t)
	rootless := []string{"unpack", "--extract", "--rootless", "--image", layout + ":t"}
	for _, name := range []string{"config.json", "rootfs", "umoci.json", ".umoci-mount"} {
		bundle := filepath.Join(t.TempDir(), "bundle")
		if err := os.MkdirAll(filepath.Join(bundle, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if s := mustFail(t, 5, append(rootless, bundle)...); !strings.Contains(s, name) {
			t.Errorf("the message does not name %s: %s", name, s)
		}
		if entries, err := os.ReadDir(bundle); err != nil || len(entries) != 1 {
			t.Errorf("%v is left (%v)", entries, err)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	mustFail(t, 5, append(rootless, file)...)
	mustFail(t, 2, "unpack", "--extract", file)
	mustFail(t, 2, append(rootless, "--read-only", filepath.Join(t.TempDir(), "b"))...)
	mustFail(t, 3, "unpack", "--extract", "--image", layout+":no", filepath.Join(t.TempDir(), "b"))
}

func TestAnExtractionThatCannotBeLeavesNothing(t *testing.T) {
	imagetest.NeedRoot(t)
	layout := imagetest.Layout(t, imagetest.Image{Tag: "t", Layers: []imagetest.Layer{{Text: base}}},
		imagetest.Image{Tag: "user", Config: ispec.ImageConfig{User: "nobody-knows"}, Layers: []imagetest.Layer{{Text: base}}})
	for name, c := range map[string]struct {
		code int
		args []string
	}{
		"an owner outside the map": {5, []string{"--image", layout + ":t", "--uid-map", "0:100000:2"}},
		"an unknown user":          {4, []string{"--image", layout + ":user"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			mustFail(t, c.code, append(append([]string{"unpack", "--extract"}, c.args...), filepath.Join(dir, "a/b"))...)
			missing(t, filepath.Join(dir, "a"))
		})
	}
}

func TestAnExtractionTakesFewDescriptors(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "prlimit")
	var text strings.Builder
	const directories = 400
	for i := range directories {
		fmt.Fprintf(&text, "dir d%d 0755\nfile d%d/f 0644 x\n", i, i)
	}
	layout := imagetest.Layout(t, imagetest.Image{Tag: "t", Layers: []imagetest.Layer{{Text: text.String()}}})
	bundle := filepath.Join(t.TempDir(), "bundle")
	env.MustCommand(t, "prlimit", "--nofile=96:96", env.Bin, "unpack", "--extract", "--image", layout+":t", bundle)
	if files, err := filepath.Glob(filepath.Join(bundle, "rootfs/d*/f")); err != nil || len(files) != directories {
		t.Errorf("%d files, %v", len(files), err)
	}
}

// What is decoded is written and forgotten, so that an image of any size is extracted where
// stock umoci does it: in a build container of 128 MB.
func TestAnExtractionTakesLittleMemory(t *testing.T) {
	imagetest.NeedRoot(t)
	var text strings.Builder
	for i := range 150 {
		fmt.Fprintf(&text, "file f%d 0644 @1000000\n", i)
	}
	layout := imagetest.Layout(t, imagetest.Image{Tag: "t", Layers: []imagetest.Layer{{Text: text.String()}}})
	env.Must(t, "cache", "warm", "--image", layout+":t")
	const memory = 160 << 20 // that is mapped; half as much is resident
	r := env.Command(t, []string{"GOMAXPROCS=2"}, "sh", "-ec", fmt.Sprintf(`ulimit -d %d; exec "$0" "$@"`, memory>>10),
		env.Bin, "unpack", "--extract", "--image", layout+":t", filepath.Join(t.TempDir(), "bundle"))
	if r.Code != 0 {
		t.Errorf("exit %d: %.300s", r.Code, r.Stderr)
	}
}

func TestAnInterruptedExtractionTakesAwayWhatItMade(t *testing.T) {
	imagetest.NeedRoot(t)
	var text strings.Builder
	text.WriteString("dir d 0555\n")
	for i := range 4000 {
		text.WriteString("file d/")
		text.WriteString(strings.Repeat("x", 1+i%100))
		text.WriteString(time.Duration(i).String() + " 0644 @20000\n")
	}
	layout := imagetest.Layout(t, imagetest.Image{Tag: "t", Layers: []imagetest.Layer{{Text: text.String()}}})
	env.Must(t, "cache", "warm", "--image", layout+":t")
	stopped := 0
	for wait := 5 * time.Millisecond; wait < 500*time.Millisecond; wait = wait * 3 / 2 {
		dir := t.TempDir()
		cmd := exec.Command(env.Bin, "unpack", "--extract", "--image", layout+":t", filepath.Join(dir, "bundle"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(wait)
		_ = cmd.Process.Signal(unix.SIGINT)
		_ = cmd.Wait()
		switch code := cmd.ProcessState.ExitCode(); code {
		case 0:
			continue
		case 10:
			stopped++
			missing(t, filepath.Join(dir, "bundle"))
		case -1: // before it listened
			missing(t, filepath.Join(dir, "bundle"))
		default:
			t.Errorf("exit %d", code)
		}
	}
	if stopped == 0 {
		t.Error("it was never interrupted at work")
	}
}
