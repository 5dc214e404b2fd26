package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// copyBase has directories, and symlinks to them, that copies meet.
const copyBase = `dir . 0755
dir etc 0750 uid=7
file etc/passwd 0644 "root:x:0:0::/:/bin/sh\nwww:x:33:44::/:/bin/sh\n"
file etc/group 0644 "root:x:0:\nwww:x:44:\n"
dir usr 0755
dir usr/lib 0755
symlink lib usr/lib
symlink out ../../../../var/tmp
symlink file etc/passwd
dir var 0755
dir var/tmp 01777
symlink loop loop
`

func TestCopiesGoWhereAProcessOfTheImageWouldPutThem(t *testing.T) {
	t.Parallel()
	imagetest.NeedRoot(t)
	for _, c := range []struct{ name, copy, want, fails string }{
		{name: "a file to a new name", copy: "data/x new", want: "-rw-r----- 0:0 1 /new"},
		{name: "a file to an absolute name", copy: "data/x /new", want: "-rw-r----- 0:0 1 /new"},
		{name: "a file to a directory", copy: "data/x etc", want: "-rw-r----- 0:0 1 /etc/x"},
		{name: "a file to a directory that is to be made", copy: "data/x a/b/", want: "drwxr-xr-x 0:0 0 /a\ndrwxr-xr-x 0:0 0 /a/b\n-rw-r----- 0:0 1 /a/b/x"},
		{name: "a file over a file", copy: "data/x etc/group", want: "-rw-r----- 0:0 1 /etc/group"},
		{name: "a file over a symlink to a file", copy: "data/x file", want: "-rw-r----- 0:0 1 /etc/passwd"},
		{name: "a file through a symlink to a directory", copy: "data/x lib/y", want: "-rw-r----- 0:0 1 /usr/lib/y"},
		{name: "a file to a symlink to a directory", copy: "data/x lib", want: "-rw-r----- 0:0 1 /usr/lib/x"},
		{name: "a file through a symlink that leads out", copy: "data/x out/y", want: "-rw-r----- 0:0 1 /var/tmp/y"},
		{name: "a file to a name that leads out", copy: "data/x ../../y", want: "-rw-r----- 0:0 1 /y"},
		{name: "a symlink to a file", copy: "data/link new", want: "-rw-r----- 0:0 1 /new"},
		{name: "a directory to a new name", copy: "data new", want: "drwx--x--x 0:0 0 /new\n-rw-r--r-- 0:0 0 /new/h1\n-rw-r--r-- 0:0 0 /new/h2\nlrwxrwxrwx 0:0 0 /new/link -> x\n" +
			"drwxr-xr-x 0:0 0 /new/sub\n-rwsr-xr-x 0:0 2 /new/sub/y\n-rw-r----- 0:0 1 /new/x"},
		{name: "a directory over a directory, which stays as it is", copy: "data/sub etc", want: "-rwsr-xr-x 0:0 2 /etc/y"},
		{name: "a directory over a symlink to a directory", copy: "data/sub lib", want: "-rwsr-xr-x 0:0 2 /usr/lib/y"},
		{name: "a directory with one that is a symlink in the image", copy: "tree /", want: "-rw-r--r-- 0:0 5 /usr/lib/z"},
		{name: "an owner by name", copy: "{source: data/x, dest: new, owner: www}", want: "-rw-r----- 33:44 1 /new"},
		{name: "an owner by number", copy: "{source: data/x, dest: new, owner: '5:6'}", want: "-rw-r----- 5:6 1 /new"},
		{name: "an owner that is kept", copy: "{source: data/x, dest: new, owner: keep}", want: "-rw-r----- 11:12 1 /new"},
		{name: "a mode", copy: "{source: data/sub, dest: new, mode: 0600}", want: "drwxr-xr-x 0:0 0 /new\n-rw------- 0:0 2 /new/y"},
		{name: "a directory of another image", copy: "{from: base, source: lib/../../etc, dest: new}", want: "drwxr-x--- 7:0 0 /new\n-rw-r--r-- 0:0 20 /new/group\n-rw-r--r-- 0:0 45 /new/passwd"},
		{name: "two, of which the second sees the first", copy: "[data/sub /s, data/x /s, data/x /s/y]", want: "drwxr-xr-x 0:0 0 /s\n-rw-r----- 0:0 1 /s/x\n-rw-r----- 0:0 1 /s/y"},

		{name: "a directory over a file", copy: "data etc/passwd", fails: "/etc/passwd is no directory"},
		{name: "a file below a file", copy: "data/x etc/passwd/x", fails: "/etc/passwd: not a directory"},
		{name: "a file in place of a directory", copy: "odd /", fails: "/etc is a directory"},
		{name: "a loop of symlinks", copy: "[data/x /fine, data/x loop/x]", fails: "/data/x: look up loop/x: too many levels of symbolic links"},
		{name: "an owner that is nobody", copy: "{source: data/x, dest: new, owner: nobody}", fails: "nobody"},
		{name: "a name that layers have a meaning for", copy: "data/x /.wh.x", fails: "cannot be stored in a layer"},
		{name: "what another image has not", copy: "{from: base, source: /none, dest: new}", fails: "spec.yaml:3:9: target made: copy: /none: look up /none: file does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil)
			if err := imagetest.WriteLayout(w.path("oci"), imagetest.Image{Tag: "base", Layers: []imagetest.Layer{{Text: copyBase}}}); err != nil {
				t.Fatal(err)
			}
			w.sh(`umask 022; mkdir -p data/sub tree/lib odd; printf x >data/x; printf yy >data/sub/y; chmod 640 data/x; chmod 4755 data/sub/y; ln -s x data/link
				chmod 711 data; touch data/h1; ln data/h1 data/h2; printf zzzzz >tree/lib/z; touch odd/etc; chown 11:12 data/x data/sub`)
			w.write("spec.yaml", "made:\n  base: base\n  copy: "+c.copy+"\n")
			r := w.run("build", "spec.yaml")
			if c.fails != "" {
				if r.Code != imagetest.CodeStep || !strings.Contains(r.Stderr, c.fails) {
					t.Errorf("exit %d, %s", r.Code, r.Stderr)
				}
				return
			}
			if r.Code != 0 {
				t.Fatal(r.Stderr)
			}
			expect(t, "the new layer", c.want, w.topLayer("made"))
			if _, err := os.Lstat("/var/tmp/y"); err == nil {
				t.Error("a file of the host was made")
			}
		})
	}
}

// topLayer lists what a target's layer has, as stock umoci would unpack it.
func (w *world) topLayer(tag string) string {
	w.t.Helper()
	_, m, _ := imagetest.Manifest(w.t, w.path("oci"), tag)
	blob := imagetest.BlobPath(w.path("oci"), m.Layers[len(m.Layers)-1].Digest)
	var out []string
	for line := range strings.Lines(env.MustCommand(w.t, "tar", "--numeric-owner", "-tvzf", blob)) {
		f := strings.Fields(line)
		name := filepath.Join("/", strings.Join(f[5:], " "))
		if i := strings.Index(name, " link to "); i >= 0 { // a hard link: as the first name
			name, f[0] = name[:i], "-"+f[0][1:]
		}
		out = append(out, f[0]+" "+strings.Replace(f[1], "/", ":", 1)+" "+f[2]+" "+name)
	}
	return strings.Join(out, "\n")
}

func TestTheLayoutIsNotCopiedIntoItself(t *testing.T) {
	t.Parallel()
	imagetest.NeedRoot(t)
	w := newWorld(t, map[string]string{"spec.yaml": "a: {copy: . /src}\n", "dir/x": "x"})
	for range 2 {
		w.must("build", "spec.yaml")
	}
	contains(t, "the second run", w.must("build", "spec.yaml"), "a: cached")
	got := w.must("tree", "--image", "oci:a", "/src")
	if strings.Contains(got, "oci") || !strings.Contains(got, "/src/dir/x") {
		t.Errorf("copied is\n%s", got)
	}
}
