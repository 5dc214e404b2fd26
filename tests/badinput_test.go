package tests

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// badCase is a command that has to fail. In args, LAYOUT and BUNDLE stand for
// paths in the case's directory.
type badCase struct {
	name    string
	image   imagetest.Image // its tag is good unless the case says otherwise
	prepare func(t *testing.T, dir string)
	args    []string
	env     []string
	run     []string // what runs the program: "unshare", "-m", …
	code    int
	says    []string // parts of the message
}

var smallLayer = []imagetest.Layer{{Text: "dir . 0755\nfile a 0644 \"content\"\ndir d 0755\nfile d/f 0644 @300000\n"}}

var mountArgs = []string{"mount", "--image", "LAYOUT:good", "BUNDLE"}

func layoutOf(dir string) string { return filepath.Join(dir, "layout") }
func bundleOf(dir string) string { return filepath.Join(dir, "bundle") }

func TestBadCommandLine(t *testing.T) {
	runBad(t, []badCase{
		{name: "unknown command", args: []string{"moutn"}, code: imagetest.CodeUsage, says: []string{"moutn", "did you mean mount"}},
		{name: "unknown command with flags", args: []string{"repak", "--image", "LAYOUT:x", "BUNDLE"}, code: imagetest.CodeUsage, says: []string{"repak", "did you mean repack?"}},
		{
			name: "an image by its digest", args: []string{"mount", "--image", "LAYOUT@sha256:" + strings.Repeat("0", 64), "BUNDLE"},
			code: imagetest.CodeUsage, says: []string{"not named by its digest"},
		},
		{name: "unknown flag", args: []string{"mount", "--imgae", "x", "BUNDLE"}, code: imagetest.CodeUsage, says: []string{"--imgae"}},
		{name: "no bundle", args: []string{"mount", "--image", "LAYOUT:good"}, code: imagetest.CodeUsage, says: []string{"BUNDLE"}},
		{name: "an image without its flag", args: []string{"mount", "LAYOUT:good", "BUNDLE"}, code: imagetest.CodeUsage, says: []string{"BUNDLE", "--image?"}},
		{name: "a layout without its flag", args: []string{"gc", "LAYOUT"}, code: imagetest.CodeUsage, says: []string{"none", "--layout?"}},
		{name: "two bundles", args: append(mountArgs[:4:4], "other"), code: imagetest.CodeUsage, says: []string{"BUNDLE"}},
		{name: "empty bundle", args: []string{"mount", "--image", "LAYOUT:good", ""}, code: imagetest.CodeUsage, says: []string{"BUNDLE"}},
		{name: "tag against the grammar", args: []string{"mount", "--image", "LAYOUT:-x", "BUNDLE"}, code: imagetest.CodeUsage, says: []string{"-x"}},
		{name: "empty image", args: []string{"mount", "--image", ":tag", "BUNDLE"}, code: imagetest.CodeUsage},
		{name: "an image that is nothing", args: []string{"mount", "--image", "", "BUNDLE"}, code: imagetest.CodeUsage, says: []string{"image path is empty"}},
		{name: "fresh without an image", args: []string{"mount", "--fresh", "BUNDLE"}, code: imagetest.CodeUsage, says: []string{"--image"}},
		{name: "malformed id map", args: append([]string{"mount", "--uid-map", "0:x:1"}, mountArgs[1:]...), code: imagetest.CodeUsage, says: []string{"0:x:1"}},
		{name: "repack without an image", args: []string{"repack", "BUNDLE"}, code: imagetest.CodeUsage, says: []string{"--image"}},
		{name: "repack to a tag against the grammar", args: []string{"repack", "--image", "LAYOUT:a b", "BUNDLE"}, code: imagetest.CodeUsage},
		{
			name: "unknown compression", args: []string{"repack", "--image", "LAYOUT:x", "--compress", "lzma", "BUNDLE"},
			code: imagetest.CodeUsage, says: []string{"lzma", "zstd"},
		},
		{
			name: "history and no history", args: []string{"repack", "--image", "LAYOUT:x", "--no-history", "--history.author", "me", "BUNDLE"},
			code: imagetest.CodeUsage, says: []string{"--no-history"},
		},
		{
			name: "malformed time", args: []string{"repack", "--image", "LAYOUT:x", "--history.created", "yesterday", "BUNDLE"},
			code: imagetest.CodeUsage, says: []string{"yesterday"},
		},
		{
			name: "malformed epoch", args: []string{"repack", "--image", "LAYOUT:x", "BUNDLE"}, env: []string{"SOURCE_DATE_EPOCH=noon"},
			code: imagetest.CodeUsage, says: []string{"SOURCE_DATE_EPOCH", "noon"},
		},
		{name: "unknown log level", args: append([]string{"--log", "loud"}, mountArgs...), code: imagetest.CodeUsage, says: []string{"loud"}},
	})
}

func TestBadReference(t *testing.T) {
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(layoutOf(dir), name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	runBad(t, []badCase{
		{name: "no such layout", args: []string{"mount", "--image", "LAYOUT-missing:good", "BUNDLE"}, code: imagetest.CodeNotFound, says: []string{"layout-missing"}},
		{name: "no image named for a new bundle", args: []string{"mount", "BUNDLE"}, code: imagetest.CodeNotFound, says: []string{"no image"}},
		{name: "directory that is no layout", prepare: remove("oci-layout"), args: mountArgs, code: imagetest.CodeNotFound, says: []string{"layout"}},
		{name: "layout without an index", prepare: remove("index.json"), args: mountArgs, code: imagetest.CodeNotFound, says: []string{"index.json"}},
		{name: "tag that is not there", args: []string{"mount", "--image", "LAYOUT:entirely-else", "BUNDLE"}, code: imagetest.CodeNotFound, says: []string{"entirely-else"}},
		{name: "tag with a typo", args: []string{"mount", "--image", "LAYOUT:godo", "BUNDLE"}, code: imagetest.CodeNotFound, says: []string{"godo", "good"}},
		{
			name: "tag that two images have", args: mountArgs, code: imagetest.CodeNotFound, says: []string{"good", "ambiguous"},
			prepare: func(t *testing.T, dir string) {
				editIndex(t, dir, func(ix *ispec.Index) {
					second := ix.Manifests[0]
					manifest, err := os.ReadFile(filepath.Join(layoutOf(dir), ispec.ImageBlobsDir, "sha256", second.Digest.Encoded()))
					if err != nil {
						t.Fatal(err)
					}
					second.Digest, second.Size = writeBlob(t, dir, append(manifest, '\n'))
					ix.Manifests = append(ix.Manifests, second)
				})
			},
		},
	})
}

// editIndex rewrites the index of a case's layout.
func editIndex(t *testing.T, dir string, change func(*ispec.Index)) {
	t.Helper()
	name := filepath.Join(layoutOf(dir), ispec.ImageIndexFile)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var ix ispec.Index
	if err := json.Unmarshal(b, &ix); err != nil {
		t.Fatal(err)
	}
	change(&ix)
	if b, err = json.Marshal(ix); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func writeBlob(t *testing.T, dir string, b []byte) (digest.Digest, int64) {
	t.Helper()
	d := digest.FromBytes(b)
	if err := os.WriteFile(imagetest.BlobPath(layoutOf(dir), d), b, 0o644); err != nil {
		t.Fatal(err)
	}
	return d, int64(len(b))
}

// damage changes a blob of the case's image in place: "manifest", "config" or
// "layer".
func damage(what string, change func([]byte) []byte) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		desc, m, _ := imagetest.Manifest(t, layoutOf(dir), "good")
		d := map[string]digest.Digest{"manifest": desc.Digest, "config": m.Config.Digest, "layer": m.Layers[0].Digest}[what]
		name := imagetest.BlobPath(layoutOf(dir), d)
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		if b = change(b); b == nil {
			return
		}
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		if at < 0 {
			at += len(b)
		}
		b[at] ^= 0x40
		return b
	}
}

func cut(b []byte) []byte   { return b[:len(b)/2] }
func gone([]byte) []byte    { return nil }
func more(b []byte) []byte  { return append(b, "more"...) }
func tarOf(s string) []byte { return bytes.Repeat([]byte(s), 512) }
func layers(l ...imagetest.Layer) imagetest.Image {
	return imagetest.Image{Layers: l}
}

func gzipped(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, _ = w.Write(b) // to memory: never fails
	_ = w.Close()
	return buf.Bytes()
}

func TestDamagedImage(t *testing.T) {
	text := smallLayer[0].Text
	cases := []badCase{
		{name: "manifest with a flipped bit", prepare: damage("manifest", flip(5))},
		{name: "truncated manifest", prepare: damage("manifest", cut)},
		{name: "missing manifest", prepare: damage("manifest", gone)},
		{name: "config with a flipped bit", prepare: damage("config", flip(9))},
		{name: "missing config", prepare: damage("config", gone)},
		{name: "layer with a flipped bit in its head", prepare: damage("layer", flip(2))},
		{name: "layer with a flipped bit in its middle", prepare: damage("layer", flip(150_000))},
		{name: "layer with a flipped bit at its end", prepare: damage("layer", flip(-2))},
		{name: "truncated layer", prepare: damage("layer", cut)},
		{name: "layer with bytes after its end", prepare: damage("layer", more)},
		{name: "empty layer blob", prepare: damage("layer", func([]byte) []byte { return []byte{} })},
		{name: "missing layer", prepare: damage("layer", gone)},
		{
			name: "unknown layer media type", image: layers(imagetest.Layer{Text: text, MediaType: "application/x-unknown"}),
			says: []string{"application/x-unknown"},
		},
		{
			name: "unknown compression of a layer", image: layers(imagetest.Layer{Text: text, MediaType: ispec.MediaTypeImageLayer + "+bzip2"}),
			says: []string{"bzip2"},
		},
		{
			name: "tag of something that is no image", says: []string{"application/x-thing"},
			prepare: func(t *testing.T, dir string) {
				editIndex(t, dir, func(ix *ispec.Index) { ix.Manifests[0].MediaType = "application/x-thing" })
			},
		},
		{
			name: "diffID of another stream", image: layers(imagetest.Layer{Text: text, DiffID: digest.FromString("else")}),
			says: []string{digest.FromString("else").Encoded()[:12]},
		},
		{name: "layer that is no tar", image: layers(imagetest.Layer{Tar: tarOf("not a tar")})},
		{name: "gzip layer that is no gzip", image: layers(imagetest.Layer{Text: text, Stored: []byte("plain text, no gzip")})},
		{name: "gzip layer that ends early", image: layers(imagetest.Layer{Text: text, Stored: cut(gzipped([]byte(text)))})},
		{name: "zstd layer that is no zstd", image: layers(imagetest.Layer{Text: text, Compress: imagetest.Zstd, Stored: []byte("plain text, no zstd")})},
		{name: "user that the image does not know", image: imagetest.Image{Layers: smallLayer, Config: ispec.ImageConfig{User: "nobody-here"}}, says: []string{"nobody-here"}},
	}
	for i := range cases {
		cases[i].args, cases[i].code = mountArgs, imagetest.CodeImage
	}
	runBad(t, cases)
}

func TestBadBundle(t *testing.T) {
	makeFile := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			file := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte("{}"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	mounted := func(t *testing.T, dir string) {
		imagetest.NeedFuse(t)
		env.MountAt(t, bundleOf(dir), layoutOf(dir)+":good")
	}
	changed := func(t *testing.T, dir string) {
		mounted(t, dir)
		if err := os.WriteFile(filepath.Join(bundleOf(dir), "rootfs", "changed"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		env.Must(t, "umount", bundleOf(dir))
	}
	stray := func(t *testing.T, dir string) {
		changed(t, dir)
		makeFile("bundle/rootfs/etc/stray")(t, dir)
	}
	runBad(t, []badCase{
		{name: "directory with another tool's config.json", prepare: makeFile("bundle/config.json"), args: mountArgs, code: imagetest.CodeState, says: []string{"config.json"}},
		{name: "directory with a rootfs", prepare: makeFile("bundle/rootfs/file"), args: mountArgs, code: imagetest.CodeState, says: []string{"rootfs"}},
		{name: "file in place of the bundle", prepare: makeFile("bundle"), args: mountArgs, code: imagetest.CodeState, says: []string{"bundle"}},
		{name: "bundle that is mounted", prepare: mounted, args: mountArgs, code: imagetest.CodeState, says: []string{"already mounted"}},
		{name: "mountpoint with another mount", prepare: func(t *testing.T, dir string) {
			changed(t, dir)
			mountTmpfs(t, filepath.Join(bundleOf(dir), "rootfs"), "tmpfs", "")
		}, args: mountArgs, code: imagetest.CodeBusy, says: []string{"rootfs"}},
		{name: "unmount of no bundle", prepare: makeFile("bundle/config.json"), args: []string{"umount", "BUNDLE"}, code: imagetest.CodeNotFound, says: []string{"not a umoci-mount bundle"}},
		{name: "unmount of nothing", args: []string{"umount", "BUNDLE"}, code: imagetest.CodeNotFound, says: []string{"bundle"}},
		{name: "unmount of what is not mounted", prepare: changed, args: []string{"umount", "BUNDLE"}, code: imagetest.CodeState, says: []string{"not mounted"}},
		{name: "diff of no bundle", prepare: makeFile("bundle/config.json"), args: []string{"diff", "BUNDLE"}, code: imagetest.CodeNotFound},
		{name: "repack of no bundle", prepare: makeFile("bundle/config.json"), args: []string{"repack", "--image", "LAYOUT:new", "BUNDLE"}, code: imagetest.CodeNotFound},
		{name: "a bundle that is a layout", args: []string{"mount", "--image", "LAYOUT:good", "LAYOUT"}, code: imagetest.CodeState, says: []string{"oci-layout"}},
		{
			name: "an extraction into a layout", args: []string{"unpack", "--extract", "--image", "LAYOUT:good", "LAYOUT"},
			code: imagetest.CodeState, says: []string{"oci-layout"},
		},
		{name: "a bundle that is a symlink to nothing", prepare: func(t *testing.T, dir string) {
			if err := os.Symlink("nothing", bundleOf(dir)); err != nil {
				t.Fatal(err)
			}
		}, args: mountArgs, code: imagetest.CodeState, says: []string{"symbolic link to nothing"}},
		{name: "a bundle where none can be made", args: []string{"mount", "--image", "LAYOUT:good", "/proc"}, code: imagetest.CodeNotFound, says: []string{"/proc/.umoci-mount"}},
		{name: "repack of nothing", args: []string{"repack", "--image", "LAYOUT:new", "BUNDLE"}, code: imagetest.CodeNotFound},
		{name: "repack onto another layout", prepare: func(t *testing.T, dir string) {
			changed(t, dir)
			if err := imagetest.WriteLayout(filepath.Join(dir, "other"), imagetest.Image{Tag: "x"}); err != nil {
				t.Fatal(err)
			}
		}, args: []string{"repack", "--image", "DIR/other:new", "BUNDLE"}, code: imagetest.CodeState, says: []string{"layout"}},
		{name: "repack of a file that was put where no mount was", prepare: stray, args: []string{"repack", "--image", "LAYOUT:new", "BUNDLE"},
			code: imagetest.CodeState, says: []string{"rootfs/etc/stray", "not mounted"}},
		{name: "diff with a file that was put where no mount was", prepare: stray, args: []string{"diff", "BUNDLE"}, code: imagetest.CodeState, says: []string{"rootfs/etc/stray"}},
		{name: "repack onto no layout", prepare: changed, args: []string{"repack", "--image", "DIR/missing:new", "BUNDLE"}, code: imagetest.CodeNotFound, says: []string{"missing"}},
		{name: "another image on a bundle with changes", prepare: func(t *testing.T, dir string) {
			changed(t, dir)
			if err := os.RemoveAll(layoutOf(dir)); err != nil {
				t.Fatal(err)
			}
			err := imagetest.WriteLayout(layoutOf(dir), imagetest.Image{Tag: "good", Layers: append(smallLayer[:1:1], smallLayer...)})
			if err != nil {
				t.Fatal(err)
			}
		}, args: mountArgs, code: imagetest.CodeState, says: []string{"--fresh"}},
		{name: "state of a newer version", prepare: func(t *testing.T, dir string) {
			changed(t, dir)
			name := filepath.Join(bundleOf(dir), ".umoci-mount", "state.json")
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, bytes.Replace(b, []byte(`"version": 1`), []byte(`"version": 99`), 1), 0o600); err != nil {
				t.Fatal(err)
			}
		}, args: []string{"mount", "BUNDLE"}, code: imagetest.CodeNotFound, says: []string{"version"}},
	})
}

// mountTmpfs mounts an empty file system, until the test ends.
func mountTmpfs(t *testing.T, dir, fstype, options string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", dir, fstype, 0, options); err != nil {
		t.Fatalf("mount %s: %v", fstype, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

func TestBadMachine(t *testing.T) {
	asNobody := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}
	in := func(script string, then ...string) []string {
		return append([]string{"unshare", "-m", "--propagation", "private", "sh", "-ec", script + `; exec "$@"`, "sh"}, then...)
	}
	open := func(t *testing.T, dir string) {
		if err := os.MkdirAll(filepath.Join(dir, "home"), 0o777); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{dir, filepath.Join(dir, "home")} {
			if err := os.Chmod(name, 0o777); err != nil {
				t.Fatal(err)
			}
		}
	}
	userArgs := []string{"mount", "--cache-dir", "DIR/home/cache", "--image", "LAYOUT:good", "BUNDLE"}
	runBad(t, []badCase{
		{
			name: "no fuse device", args: mountArgs, code: imagetest.CodeMachine, says: []string{"/dev/fuse"},
			run: in("mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3"),
		},
		{
			name: "no fuse device for a plain user", prepare: open, args: userArgs, code: imagetest.CodeMachine, says: []string{"/dev/fuse"},
			run: in("mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3", asNobody...),
		},
		{
			name: "no fusermount3 for a plain user", prepare: open, args: userArgs, code: imagetest.CodeMachine, says: []string{"fusermount3", "fuse3"},
			run: in("mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/fuse c 10 229; for f in fusermount3 fusermount; do p=$(command -v $f) && mount --bind /dev/null $p; done; true", asNobody...),
		},
		{
			name: "upper on a file system without attributes", args: mountArgs, code: imagetest.CodeMachine, says: []string{"xattr"},
			prepare: func(t *testing.T, dir string) { mountTmpfs(t, bundleOf(dir), "ramfs", "") },
		},
		{
			name: "bundle on a read-only file system", code: imagetest.CodeSpace, says: []string{"read-only"},
			args:    []string{"mount", "--image", "LAYOUT:good", "DIR/ro/bundle"},
			prepare: func(t *testing.T, dir string) { mountTmpfs(t, filepath.Join(dir, "ro"), "tmpfs", "ro") },
		},
		{
			name: "cache on a read-only file system", code: imagetest.CodeSpace, says: []string{"--cache-dir", "UMOCI_MOUNT_CACHE"},
			args:    []string{"mount", "--cache-dir", "DIR/ro/cache", "--image", "LAYOUT:good", "BUNDLE"},
			prepare: func(t *testing.T, dir string) { mountTmpfs(t, filepath.Join(dir, "ro"), "tmpfs", "ro") },
		},
		{
			name: "bundle on a full disk", code: imagetest.CodeSpace, says: []string{"space"},
			args: []string{"mount", "--image", "LAYOUT:good", "DIR/full/bundle"},
			prepare: func(t *testing.T, dir string) {
				full := filepath.Join(dir, "full")
				mountTmpfs(t, full, "tmpfs", "size=64k")
				_ = os.WriteFile(filepath.Join(full, "fill"), make([]byte, 1<<20), 0o644) // fails when it is full
			},
		},
		{
			name: "bundle in a directory of somebody else", run: asNobody, code: imagetest.CodePermission, says: []string{"bundle"},
			args: []string{"mount", "--cache-dir", "DIR/home/cache", "--image", "LAYOUT:good", "DIR/closed/bundle"},
			prepare: func(t *testing.T, dir string) {
				open(t, dir)
				if err := os.Mkdir(filepath.Join(dir, "closed"), 0o755); err != nil {
					t.Fatal(err)
				}
			},
		},
		{
			name: "layout of somebody else", run: asNobody, code: imagetest.CodePermission, says: []string{"layout"}, args: userArgs,
			prepare: func(t *testing.T, dir string) {
				open(t, dir)
				if err := os.Chmod(layoutOf(dir), 0o700); err != nil {
					t.Fatal(err)
				}
			},
		},
	})
}

// runBad runs each case: the command has to fail with one line and the right code,
// and leave all files as they were.
func runBad(t *testing.T, cases []badCase) {
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "unshare", "setpriv")
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := worldDir(t)
			// What another case has indexed must not save this one from looking.
			t.Setenv("UMOCI_MOUNT_CACHE", filepath.Join(dir, "home-cache"))
			c.image.Tag = "good"
			if c.image.Layers == nil {
				c.image.Layers = smallLayer
			}
			if err := imagetest.WriteLayout(layoutOf(dir), c.image); err != nil {
				t.Fatal(err)
			}
			if c.prepare != nil {
				c.prepare(t, dir)
			}
			before := snapshot(t, dir)
			var args []string
			for _, a := range c.args {
				a = strings.Replace(a, "LAYOUT", layoutOf(dir), 1)
				a = strings.Replace(a, "BUNDLE", bundleOf(dir), 1)
				args = append(args, strings.Replace(a, "DIR", dir, 1))
			}
			line := append(append(c.run[:len(c.run):len(c.run)], env.Bin), args...)
			r := env.Command(t, c.env, line[0], line[1:]...)
			checkMessage(t, c, r)
			imagetest.SameTree(t, "files after the failure", before, snapshot(t, dir), imagetest.CompareOptions{
				IgnoreTime: func(string) bool { return true },
			})
		})
	}
}

// worldDir is a directory that every user can get into.
func worldDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name := dir; name != env.Dir; name = filepath.Dir(name) {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, info.Mode()|0o055); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// snapshot is the tree of a case's files; those that only locks are made of are
// left out, and so are the caches, which the server of a mount fills in its own time.
func snapshot(t *testing.T, dir string) imagetest.Tree {
	t.Helper()
	tree, err := imagetest.ReadTreeExcept(dir, func(rel string) bool { return strings.HasPrefix(rel, "home") })
	if err != nil {
		t.Fatalf("read tree: %v", err)
	}
	for p, e := range tree {
		if e.Size == 0 && strings.Contains(filepath.Base(p), "lock") {
			delete(tree, p)
		}
		if filepath.Base(p) == "log" {
			e.Sum, e.Size = "", 0
		}
		e.Nlink = 0
	}
	return tree
}

func checkMessage(t *testing.T, c badCase, r imagetest.Result) {
	t.Helper()
	if r.Code != c.code {
		t.Errorf("exit code %d, want %d", r.Code, c.code)
	}
	if r.Stdout != "" {
		t.Errorf("it printed %q", r.Stdout)
	}
	if strings.Count(r.Stderr, "\n") != 1 || !strings.HasPrefix(r.Stderr, "umoci-mount: ") {
		t.Errorf("want one line that begins with the program's name, got %d", strings.Count(r.Stderr, "\n"))
	}
	if len(r.Stderr) > 600 {
		t.Errorf("the message has %d bytes", len(r.Stderr))
	}
	for _, s := range c.says {
		if !strings.Contains(r.Stderr, s) {
			t.Errorf("message does not say %q", s)
		}
	}
	if t.Failed() {
		t.Logf("stderr: %.1200s", r.Stderr)
	}
}

// As in a chroot(8) that nobody prepared.
func TestAMachineWithoutProcSaysSo(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "unshare")
	layout := imagetest.Layout(t, imagetest.Image{Tag: "good", Layers: []imagetest.Layer{{Text: "file f 0644 x\n"}}})
	r := env.Command(t, nil, "unshare", "--mount", "sh", "-ec", `mount -t tmpfs none /proc; exec "$0" "$@"`,
		env.Bin, "mount", "--image", layout+":good", filepath.Join(t.TempDir(), "b"))
	if r.Code == 0 || !strings.Contains(r.Stderr, "mount /proc") || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("exit %d: %s", r.Code, r.Stderr)
	}
}

func TestUnmountOfABusyMountNamesItsHolders(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	b := env.Mount(t, imagetest.Layout(t, imagetest.Image{Tag: "x", Layers: smallLayer})+":x")
	sleep := exec.Command("sleep", "1000")
	sleep.Dir = filepath.Join(b.Rootfs(), "d")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	r := env.Run(t, "umount", b.Path)
	if err := sleep.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = sleep.Wait() // killed
	checkMessage(t, badCase{code: imagetest.CodeBusy, says: []string{"busy", "sleep", "cwd"}}, r)
	if _, err := os.Stat(filepath.Join(b.Rootfs(), "a")); err != nil {
		t.Errorf("the mount is not as it was: %v", err)
	}
	b.Umount(t)
}
