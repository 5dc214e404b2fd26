package build

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

func tarOf(t *testing.T, headers ...tar.Header) string {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content = "content of " + h.Name
		}
		h.Size = int64(len(content))
		h.ModTime = time.Unix(1_500_000_000, 0)
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestArchivesThatLeadOutAreRefusedOrStayInside(t *testing.T) {
	t.Parallel()
	imagetest.NeedRoot(t)
	for _, c := range []struct {
		name    string
		entries []tar.Header
		refused string // part of the message
		inside  string // a file that is in the image then
	}{
		{name: "a name with ..", entries: []tar.Header{{Typeflag: tar.TypeReg, Name: "../outside"}}, refused: `has ".." in its name`},
		{name: "a name with .. amid it", entries: []tar.Header{{Typeflag: tar.TypeReg, Name: "a/../../outside"}}, refused: `has ".." in its name`},
		{name: "a hard link to a name with ..", entries: []tar.Header{{Typeflag: tar.TypeLink, Name: "a", Linkname: "../../etc/shadow"}}, refused: `has ".." in its name`},
		{name: "a whiteout", entries: []tar.Header{{Typeflag: tar.TypeReg, Name: "etc/.wh.passwd"}}, refused: "would remove files"},
		{name: "an opaque marker", entries: []tar.Header{{Typeflag: tar.TypeReg, Name: "etc/.wh..wh..opq"}}, refused: "would remove files"},
		{name: "a directory with a whiteout's name", entries: []tar.Header{{Typeflag: tar.TypeReg, Name: ".wh.etc/x"}}, refused: "would remove files"},
		{name: "a file in place of the root", entries: []tar.Header{{Typeflag: tar.TypeSymlink, Name: "./", Linkname: "/etc"}}, refused: "would replace the root"},
		{name: "an absolute name", entries: []tar.Header{{Typeflag: tar.TypeReg, Name: "/outside"}}, inside: "outside"},
		{name: "a file through a symlink to the host's root", entries: []tar.Header{
			{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "/var/tmp"}, {Typeflag: tar.TypeReg, Name: "link/outside"}}, inside: "var/tmp/outside"},
		{name: "a file through a symlink upwards", entries: []tar.Header{
			{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "../../../.."}, {Typeflag: tar.TypeReg, Name: "link/outside"}}, inside: "outside"},
		{name: "a hard link to an absolute name", entries: []tar.Header{
			{Typeflag: tar.TypeReg, Name: "outside"}, {Typeflag: tar.TypeLink, Name: "other", Linkname: "/outside"}}, inside: "other"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, map[string]string{"x.tar": tarOf(t, c.entries...), "spec.yaml": "a: {expand: x.tar}\nb: {base: a, copy: x.tar x}\n"})
			r := w.run("build", "spec.yaml")
			if c.refused != "" {
				if r.Code != imagetest.CodeStep || !strings.Contains(r.Stderr, c.refused) || !strings.HasPrefix(r.Stderr, "umoci-mount: spec.yaml:1:13: target a: expand: ") {
					t.Errorf("exit %d, %s", r.Code, r.Stderr)
				}
				if len(w.tags()) > 0 {
					t.Error("it was tagged")
				}
				return
			}
			if r.Code != 0 {
				t.Fatalf("exit %d, %s", r.Code, r.Stderr)
			}
			contains(t, c.inside, w.must("cat", "--image", "oci:a", "/"+c.inside), "content of ")
			contains(t, c.inside+" by stock umoci", fileContent(t, filepath.Join(w.unpacked("b"), c.inside)), "content of ")
			for _, outside := range []string{"/outside", "/var/tmp/outside"} {
				if _, err := os.Lstat(outside); err == nil {
					t.Errorf("%s was made", outside)
				}
			}
		})
	}
}

func TestArchivesOfEachCompressionKeepOwnersXattrsAndACLs(t *testing.T) {
	t.Parallel()
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "setfattr", "setfacl", "xz", "bzip2", "zstd", "umoci")
	w := newWorld(t, nil)
	w.sh(`mkdir -p root/d; echo x >root/d/file; ln root/d/file root/d/other; ln -s file root/d/link; mkfifo root/d/pipe
		chown 12:34 root/d/file; chown -h 5:6 root/d/link; chmod 4751 root/d/file; chmod 1777 root/d
		setfattr -n user.note -v kept root/d/file; setfacl -m u:1234:r,g:77:rwx root/d/file; setfacl -d -m u:99:rw root/d
		mknod root/d/node b 7 9; truncate -s 1M root/sparse; echo y >>root/sparse
		tar --numeric-owner --acls --xattrs -S -cf plain.tar -C root .
		gzip <plain.tar >a.tar.gz; xz <plain.tar >a.tar.xz; bzip2 <plain.tar >a.tar.bz2; zstd -q <plain.tar >a.tar.zst
		xz --format=lzma <plain.tar >a.tar.lzma`)
	var spec strings.Builder
	names := []string{"plain.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2", "a.tar.zst", "a.tar.lzma"}
	for _, name := range names {
		spec.WriteString(strings.ReplaceAll(name, ".", "-") + ": {expand: " + name + "}\n")
	}
	w.write("spec.yaml", spec.String())
	w.must("build", "spec.yaml")
	want := imagetest.MustReadTree(t, w.path("root"))
	for _, name := range names {
		tag := strings.ReplaceAll(name, ".", "-")
		got := imagetest.MustReadTree(t, w.unpacked(tag))
		imagetest.SameTree(t, name, want, got, imagetest.CompareOptions{Seconds: true})
	}
}
