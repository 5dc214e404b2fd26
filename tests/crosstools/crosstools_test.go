// Package crosstools hands images to other tools and back: what we write they read,
// what they write we mount.
package crosstools

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

var env *imagetest.Env

func TestMain(m *testing.M) {
	os.Exit(imagetest.Main(m, func(e *imagetest.Env) { env = e }, 20*time.Minute))
}

const lower = `dir . 0755
dir etc 0755
file etc/passwd 0644 "root:x:0:0:root:/root:/bin/sh\n"
file etc/shadow 0640 "secret" gid=42
dir usr 0755
file usr/tool 04755 @100000
hardlink usr/tool2 usr/tool
symlink usr/link ../etc/passwd
dir var 0755
dir var/mail 02775 gid=8
file etc/gone 0644 "x"
dir dev 0755
char dev/null 0666 1,3
`

// made is an image of ours: changed in a mount, repacked with a compression, with a
// config, and mounted again.
type made struct {
	t      *testing.T
	dir    string
	layout string
	tree   imagetest.Tree
}

func newMade(t *testing.T, compress string) *made {
	t.Helper()
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "skopeo", "setcap")
	m := &made{t: t}
	var err error
	if m.dir, err = os.MkdirTemp(env.Dir, "made-"); err != nil { // buildah takes no upper case in a path
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(m.dir); err != nil {
			t.Error(err)
		}
	})
	m.layout = filepath.Join(m.dir, "img")
	if err := imagetest.WriteLayout(m.layout, imagetest.Image{Tag: "base", Layers: []imagetest.Layer{{Text: lower}}}); err != nil {
		t.Fatal(err)
	}
	b := env.Mount(t, m.layout+":base")
	env.MustCommand(t, "sh", "-ec", `cd "$0"; rm etc/gone; echo new >etc/new; chown 33:34 etc/new; mv usr opt; mkdir -p a/b; ln etc/new a/b/hard
		cp opt/tool a/cap; setcap cap_net_raw+ep a/cap; mknod a/dev b 7 3; mkfifo a/fifo`, b.Rootfs())
	env.Must(t, "repack", "--image", m.layout+":new", "--compress", compress, b.Path)
	m.tree = imagetest.MustReadTree(t, b.Rootfs())
	b.Umount(t)
	env.Must(t, "config", "--image", m.layout+":new", "--config.cmd", "/bin/sh", "--config.label", "a=b")
	return m
}

func (m *made) run(name string, args ...string) string {
	m.t.Helper()
	return env.MustCommand(m.t, name, args...)
}

// mounts fails unless an image mounts as the tree that was made.
func (m *made) mounts(image string) {
	m.t.Helper()
	b := env.Mount(m.t, image)
	imagetest.SameTree(m.t, image, m.tree, imagetest.MustReadTree(m.t, b.Rootfs()), imagetest.CompareOptions{Seconds: true})
	b.Umount(m.t)
}

func digestOf(t *testing.T, image string) string {
	t.Helper()
	var s struct {
		Manifest struct{ Descriptor struct{ Digest string } }
	}
	if err := json.Unmarshal([]byte(env.Must(t, "stat", "--json", "--image", image)), &s); err != nil {
		t.Fatal(err)
	}
	return s.Manifest.Descriptor.Digest
}

func TestSkopeoTakesImagesToADockerArchiveAndBack(t *testing.T) {
	m := newMade(t, "gzip")
	archive := filepath.Join(m.dir, "a.tar")
	m.run("skopeo", "copy", "-q", "oci:"+m.layout+":new", "docker-archive:"+archive+":x:y")
	m.run("skopeo", "copy", "-q", "docker-archive:"+archive, "oci:"+m.dir+"/back:new")
	m.mounts(m.dir + "/back:new")
	var inspected struct {
		Labels map[string]string
		Layers []string
	}
	out := m.run("skopeo", "inspect", "oci:"+m.layout+":new")
	if err := json.Unmarshal([]byte(out), &inspected); err != nil || inspected.Labels["a"] != "b" || len(inspected.Layers) != 2 {
		t.Errorf("skopeo inspect: %v\n%s", err, out)
	}
}

// registry runs Debian's docker-registry on a free port of this machine.
func registry(t *testing.T) string {
	t.Helper()
	imagetest.NeedTools(t, "docker-registry")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", dir+"/data", addr)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 200 {
		if resp, err := http.Get("http://" + addr + "/v2/"); err == nil {
			_ = resp.Body.Close()
			return addr
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("the registry does not answer")
	return ""
}

func TestImagesGoToARegistryAndBackWithTheSameDigests(t *testing.T) {
	addr := registry(t)
	for _, compress := range []string{"gzip", "zstd"} {
		m := newMade(t, compress)
		name := "docker://" + addr + "/test/" + compress + ":1"
		m.run("skopeo", "copy", "-q", "--dest-tls-verify=false", "oci:"+m.layout+":new", name)
		m.run("skopeo", "copy", "-q", "--src-tls-verify=false", name, "oci:"+m.dir+"/back:new")
		if want, got := digestOf(t, m.layout+":new"), digestOf(t, m.dir+"/back:new"); want != got {
			t.Errorf("%s: %s came back as %s", compress, want, got)
		}
		m.mounts(m.dir + "/back:new")
	}
}

func TestBuildahMountsOurImagesAndWeMountItsOwn(t *testing.T) {
	imagetest.NeedTools(t, "buildah")
	m := newMade(t, "gzip")
	buildah := func(args ...string) string {
		return strings.TrimSpace(m.run("buildah", append([]string{
			"--root", m.dir + "/storage", "--runroot", m.dir + "/run", "--storage-driver", "vfs",
		}, args...)...))
	}
	from := buildah("from", "-q", "oci:"+m.layout+":new")
	root := buildah("mount", from)
	theirs := imagetest.MustReadTree(t, root)
	for p := range theirs { // buildah makes these for every container
		if p == "proc" || p == "sys" || p == "run" || strings.HasPrefix(p, "run/") {
			delete(theirs, p)
		}
	}
	imagetest.SameTree(t, "buildah's tree", m.tree, theirs, imagetest.CompareOptions{
		DirNlink: true, IgnoreTime: func(string) bool { return true },
	})
	if err := os.WriteFile(filepath.Join(root, "etc/theirs"), []byte("buildah"), 0o644); err != nil {
		t.Fatal(err)
	}
	buildah("commit", "-q", from, "oci:"+m.dir+"/theirs:1")
	b := env.Mount(t, m.dir+"/theirs:1")
	if data, err := os.ReadFile(filepath.Join(b.Rootfs(), "etc/theirs")); err != nil || string(data) != "buildah" {
		t.Errorf("%q, %v", data, err)
	}
	b.Umount(t)
	buildah("umount", from)
	buildah("rm", from)
}

func TestStockUmociUnpacksAndRepacksWhatWeWrote(t *testing.T) {
	imagetest.NeedTools(t, "umoci")
	m := newMade(t, "gzip")
	bundle := filepath.Join(m.dir, "stock")
	m.run("/usr/bin/umoci", "unpack", "--image", m.layout+":new", bundle)
	imagetest.SameTree(t, "stock umoci's tree", m.tree, imagetest.MustReadTree(t, filepath.Join(bundle, "rootfs")), imagetest.CompareOptions{DirNlink: true, Seconds: true})
	if err := os.WriteFile(filepath.Join(bundle, "rootfs/etc/theirs"), []byte("stock"), 0o644); err != nil {
		t.Fatal(err)
	}
	m.run("/usr/bin/umoci", "repack", "--image", m.layout+":theirs", bundle)
	if got := env.Must(t, "cat", "--image", m.layout+":theirs", "/etc/theirs"); got != "stock" {
		t.Errorf("what stock umoci added: %q", got)
	}
	env.Must(t, "fsck", "--layout", m.layout)
}
