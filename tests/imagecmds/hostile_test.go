package imagecmds

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// header is a tar header with the ways of writing one that archive/tar refuses.
type header struct {
	tar.Header
	body string
}

func file(name, body string) header {
	return header{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body}
}

func directory(name string) header {
	return header{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}

func symlink(name, target string) header {
	return header{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, ""}
}

func hardlink(name, target string) header {
	return header{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}, ""}
}

func tarOf(t testing.TB, list ...header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range list {
		h.Size = int64(len(h.body))
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(h.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// attack is an image that means harm to a directory outside.
type attack struct {
	name   string
	layers func(t testing.TB, outside string) [][]byte
	refuse bool     // it cannot be read as an image: exit 4
	inside []string // what lies in the root file system then
}

func attacks() []attack {
	one := func(list func(outside string) []header) func(testing.TB, string) [][]byte {
		return func(t testing.TB, outside string) [][]byte { return [][]byte{tarOf(t, list(outside)...)} }
	}
	up := strings.Repeat("../", 40)
	return []attack{
		{"names with ..", one(func(out string) []header {
			return []header{file(up+out[1:]+"/evil", "x"), file("../evil", "x"), directory("a/../../b")}
		}), false, []string{"evil", "b"}},
		{"absolute names", one(func(out string) []header { return []header{file(out+"/evil", "x"), directory("/abs")} }), false, []string{"abs"}},
		{"a file through a symlink", one(func(out string) []header {
			return []header{symlink("ln", out), file("ln/evil", "x"), file("ln/secret", "x")}
		}), false, nil},
		{"a file through a relative symlink", one(func(out string) []header {
			return []header{symlink("ln", up+out[1:]), file("ln/evil", "x")}
		}), false, nil},
		{"a file over a symlink", one(func(out string) []header {
			return []header{symlink("ln", out+"/secret"), file("ln", "x")}
		}), false, []string{"ln"}},
		{"a directory over a symlink", one(func(out string) []header {
			return []header{symlink("ln", out), directory("ln"), file("ln/evil", "x")}
		}), false, []string{"ln/evil"}},
		{"symlinks in a chain", one(func(out string) []header {
			return []header{symlink("a", "b/c"), symlink("b", up), symlink("d", "a/.."), file("d/evil", "x")}
		}), false, nil},
		{"symlinks in a circle", one(func(string) []header {
			return []header{symlink("a", "b"), symlink("b", "a"), file("a/evil", "x")}
		}), true, nil},
		{"a hard link to outside", one(func(out string) []header {
			return []header{hardlink("h", out+"/secret"), file("h", "x")}
		}), true, nil},
		{"a hard link through a symlink", one(func(out string) []header {
			return []header{symlink("ln", out), hardlink("h", "ln/secret")}
		}), true, nil},
		{"a hard link to a symlink", one(func(out string) []header {
			return []header{symlink("ln", out+"/secret"), hardlink("h", "ln"), file("h", "x")}
		}), false, []string{"h"}},
		{"whiteouts of outside", one(func(out string) []header {
			return []header{file(up+filepath.Dir(out)[1:]+"/.wh."+filepath.Base(out), ""), file("../.wh.x", "")}
		}), false, nil},
		{"a whiteout through a symlink", one(func(out string) []header {
			return []header{symlink("ln", out), file("ln/.wh.secret", ""), file("ln/.wh..wh..opq", "")}
		}), false, nil},
		{"a whiteout of ..", one(func(string) []header { return []header{file("a/.wh...", "")} }), true, nil},
		{"a whiteout of .", one(func(string) []header { return []header{file("a/.wh..", "")} }), true, nil},
		{"a whiteout of nothing", one(func(string) []header { return []header{file(".wh.", "")} }), true, nil},
		{"a root that is a file", one(func(string) []header { return []header{file("a", "x"), file(".", "x")} }), true, nil},
		{"a root that is a symlink", one(func(out string) []header { return []header{symlink(".", out), file("evil", "x")} }), true, nil},
		{"a name of 4 KiB", one(func(string) []header { return []header{file(strings.Repeat("n", 4096), "x")} }), true, nil},
		{"a path of 4 KiB", one(func(string) []header {
			return []header{file(strings.Repeat("n/", 2000)+"f", "x")}
		}), false, []string{"n/n/n"}},
		{"a path that is too long", one(func(string) []header { return []header{file(strings.Repeat("n/", 3000)+"f", "x")} }), true, nil},
		{"a name with a NUL", func(t testing.TB, _ string) [][]byte {
			b := tarOf(t, file("abc", "x"))
			return [][]byte{bytes.Replace(b, []byte("abc"), []byte("a\x00c"), 1)}
		}, true, nil},
		{"a tree 4,000 deep", func(t testing.TB, _ string) [][]byte { return deepTree(t, 2) }, false, []string{"d/d/d"}},
		{"a tree 10,000 deep", func(t testing.TB, _ string) [][]byte { return deepTree(t, 5) }, true, nil},
		{"a setuid program and device nodes", one(func(string) []header {
			h := file("su", "x")
			h.Mode = 0o4755
			dev := header{tar.Header{Typeflag: tar.TypeBlock, Name: "sda", Mode: 0o666, Devmajor: 8}, ""}
			return []header{h, dev}
		}), false, []string{"su", "sda"}},
		{"a symlink in one layer, a file through it in the next", func(t testing.TB, out string) [][]byte {
			return [][]byte{tarOf(t, symlink("ln", out)), tarOf(t, file("ln/evil", "x")), tarOf(t, file("ln/.wh.secret", ""))}
		}, false, nil},
		{"a directory that becomes a symlink", func(t testing.TB, out string) [][]byte {
			return [][]byte{tarOf(t, directory("d"), file("d/f", "x")), tarOf(t, symlink("d", out), file("d/evil", "x"))}
		}, false, nil},
	}
}

// deepTree is a tree of 2,000 levels a layer, each of which goes on where a symlink of
// the one below leads.
func deepTree(t testing.TB, n int) [][]byte {
	deep := strings.Repeat("d/", 2000)
	var layers [][]byte
	from := ""
	for i := range n {
		next := fmt.Sprintf("s%d", i)
		layers = append(layers, tarOf(t, directory(from+deep), symlink(next, from+deep)))
		from = next + "/"
	}
	return layers
}

func TestHostileImagesTouchNothingOutside(t *testing.T) {
	imagetest.NeedRoot(t)
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			dir := t.TempDir()
			outside := filepath.Join(dir, "outside")
			if err := os.Mkdir(outside, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
				t.Fatal(err)
			}
			img := imagetest.Image{Tag: "t"}
			for _, b := range a.layers(t, outside) {
				img.Layers = append(img.Layers, imagetest.Layer{Tar: b})
			}
			layout := imagetest.Layout(t, img)
			before := imagetest.MustReadTree(t, dir)
			a.extract(t, dir, "unpack", "--extract", "--image", layout+":t", filepath.Join(dir, "bundle"))
			a.extract(t, dir, "unpack", "--extract", "--rootless", "--image", layout+":t", filepath.Join(dir, "bundle2"))
			a.extract(t, dir, "raw", "unpack", "--extract", "--image", layout+":t", filepath.Join(dir, "rootfs"))
			if !a.refuse { // once more, over what is there now
				a.extract(t, dir, "raw", "unpack", "--extract", "--image", layout+":t", filepath.Join(dir, "rootfs"))
			}
			for _, name := range []string{"bundle", "bundle2", "rootfs"} {
				if a.refuse {
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

func (a *attack) extract(t *testing.T, dir string, args ...string) {
	t.Helper()
	if a.refuse {
		mustFail(t, 4, args...)
		return
	}
	env.Must(t, args...)
	rootfs := args[len(args)-1]
	if args[0] == "unpack" {
		rootfs = filepath.Join(rootfs, "rootfs")
	}
	for _, name := range a.inside {
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
