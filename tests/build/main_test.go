// Package build builds images from specs by the program, and looks at what comes out
// with stock umoci and runc. Tests that look at what builds leave, for which all have one
// cache directory, do not run in parallel with others.
package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

var env *imagetest.Env

func TestMain(m *testing.M) {
	os.Exit(imagetest.Main(m, func(e *imagetest.Env) { env = e }, 20*time.Minute))
}

// world is a directory with specs and what they name, where builds run.
type world struct {
	t   *testing.T
	dir string
	env []string
}

// newWorld makes one with the files of a spec, each "NAME" and its content.
func newWorld(t *testing.T, files map[string]string) *world {
	t.Helper()
	imagetest.NeedFuse(t)
	w := &world{t: t, dir: t.TempDir()}
	for name, content := range files {
		w.write(name, content)
	}
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, content string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(w.path(name)), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(w.path(name), []byte(content), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// run runs the program in the directory.
func (w *world) run(args ...string) imagetest.Result {
	w.t.Helper()
	return env.Command(w.t, w.env, "sh", append([]string{"-ec", `cd "$0"; exec "$@"`, w.dir, env.Bin}, args...)...)
}

func (w *world) must(args ...string) string {
	w.t.Helper()
	r := w.run(args...)
	if r.Code != 0 {
		w.t.Fatalf("umoci-mount %s: exit %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// sh runs a shell script in the directory; it has to succeed.
func (w *world) sh(script string) string {
	w.t.Helper()
	r := env.Command(w.t, w.env, "sh", "-ec", "cd "+w.dir+"\n"+script)
	if r.Code != 0 {
		w.t.Fatalf("exit %d of\n%s\n%s%s", r.Code, script, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// tags are those of the layout, sorted.
func (w *world) tags() []string {
	w.t.Helper()
	list := strings.Fields(w.must("ls", "--layout", "oci"))
	slices.Sort(list)
	return list
}

// unpacked is a target's tree as stock umoci unpacks it.
func (w *world) unpacked(tag string) string {
	w.t.Helper()
	imagetest.NeedTools(w.t, "umoci")
	bundle := filepath.Join(w.t.TempDir(), "bundle")
	env.MustCommand(w.t, "/usr/bin/umoci", "unpack", "--image", w.path("oci")+":"+tag, bundle)
	return filepath.Join(bundle, "rootfs")
}

// busyboxTar is a root file system of busybox alone, compressed with gzip.
func busyboxTar(t *testing.T) string {
	t.Helper()
	imagetest.NeedTools(t, "busybox")
	binary, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	applets, err := exec.Command(binary, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	tw := tar.NewWriter(z)
	add := func(h tar.Header, content string) {
		h.ModTime = time.Unix(1_600_000_000, 0)
		h.Size = int64(len(content))
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}, "")
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr", "usr/bin", "var"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: "./" + dir + "/", Mode: 0o755}, "")
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "./bin/busybox", Mode: 0o755}, string(data))
	for applet := range strings.FieldsSeq(string(applets)) {
		if applet != "busybox" {
			add(tar.Header{Typeflag: tar.TypeSymlink, Name: "./bin/" + applet, Linkname: "busybox"}, "")
		}
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "./etc/passwd", Mode: 0o644}, "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\n")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "./etc/group", Mode: 0o644}, "root:x:0:\ndaemon:x:1:\n")
	add(tar.Header{Typeflag: tar.TypeChar, Name: "./dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}, "")
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func readTestdata(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func expect(t *testing.T, what, want, got string) {
	t.Helper()
	if want != got {
		t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
	}
}

func fileContent(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Error(err)
	}
	return string(data)
}

func contains(t *testing.T, what, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%s lacks %q:\n%s", what, w, text)
		}
	}
}
