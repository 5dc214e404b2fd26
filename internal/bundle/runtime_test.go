package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// imageFiles stands in for the image's tree.
func imageFiles(files map[string]string) func(string) (io.ReadCloser, error) {
	return func(path string) (io.ReadCloser, error) {
		content, ok := files[path]
		if !ok {
			return nil, nil
		}
		return io.NopCloser(strings.NewReader(content)), nil
	}
}

func testImage() ispec.Image {
	created := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	img := ispec.Image{Created: &created, Author: "A <a@b>"}
	img.OS, img.Architecture = "linux", "amd64"
	return img
}

func makeSpec(t *testing.T, in runtimeInput) *rspec.Spec {
	t.Helper()
	data, err := runtimeConfig(in)
	if err != nil {
		t.Fatal(err)
	}
	var spec rspec.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		t.Fatal(err)
	}
	return &spec
}

func TestTheProcessFollowsTheImage(t *testing.T) {
	img := testImage()
	img.Config = ispec.ImageConfig{
		User: "web:staff", Entrypoint: []string{"/bin/e"}, Cmd: []string{"c"}, WorkingDir: "/srv",
		Env: []string{"PATH=/bin", "A=b=c"}, Volumes: map[string]struct{}{"/v2": {}, "/v1": {}},
		Labels: map[string]string{"org.opencontainers.image.author": "label"}, ExposedPorts: map[string]struct{}{"80/tcp": {}, "443/tcp": {}},
	}
	spec := makeSpec(t, runtimeInput{image: img, rootfs: "rootfs", passwd: imageFiles(map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/var/www:/bin/sh\n",
		"etc/group":  "staff:x:50:\nextra:x:60:web\n",
	})})
	p := spec.Process
	if p.User.UID != 33 || p.User.GID != 50 || p.Cwd != "/srv" || !reflect.DeepEqual(p.Args, []string{"/bin/e", "c"}) {
		t.Errorf("process %+v", p)
	}
	if want := []string{"PATH=/bin", "TERM=xterm", "A=b=c", "HOME=/var/www"}; !reflect.DeepEqual(p.Env, want) {
		t.Errorf("environment %q", p.Env)
	}
	n := len(spec.Mounts)
	if spec.Mounts[n-2].Destination != "/v1" || spec.Mounts[n-1].Destination != "/v2" {
		t.Errorf("mounts %+v", spec.Mounts)
	}
	if _, have := spec.Annotations["org.opencontainers.image.stopSignal"]; have {
		t.Errorf("an annotation that says nothing: %v", spec.Annotations)
	}
	if a := spec.Annotations; a["org.opencontainers.image.author"] != "label" ||
		a["org.opencontainers.image.exposedPorts"] != "443/tcp,80/tcp" ||
		a["org.opencontainers.image.created"] != "2026-01-02T03:04:05.000000006Z" {
		t.Errorf("annotations %v", a)
	}
}

func TestTheImagesOwnHomeWins(t *testing.T) {
	img := testImage()
	img.Config.Env = []string{"HOME=/x"}
	spec := makeSpec(t, runtimeInput{image: img, passwd: imageFiles(map[string]string{"etc/passwd": "root:x:0:0::/root:/bin/sh\n"})})
	for _, kv := range spec.Process.Env {
		if strings.HasPrefix(kv, "HOME=") && kv != "HOME=/x" {
			t.Errorf("environment %q", spec.Process.Env)
		}
	}
}

func TestAnUnknownUserIsAnError(t *testing.T) {
	img := testImage()
	img.Config.User = "nobody-here"
	if _, err := runtimeConfig(runtimeInput{image: img, passwd: imageFiles(nil)}); !errors.Is(err, ErrUser) {
		t.Errorf("got %v", err)
	}
}

func TestARootlessConfigAsksForNothingAUserCannotHave(t *testing.T) {
	spec := makeSpec(t, runtimeInput{
		image: testImage(), rootless: true, passwd: imageFiles(nil),
		uids: []idMapping{{0, 1000, 1}}, gids: []idMapping{{0, 1000, 1}},
	})
	for _, n := range spec.Linux.Namespaces {
		if n.Type == rspec.NetworkNamespace {
			t.Error("a network namespace")
		}
	}
	if spec.Linux.Resources != nil || len(spec.Linux.UIDMappings) != 1 {
		t.Errorf("linux %+v", spec.Linux)
	}
	for _, m := range spec.Mounts {
		if strings.HasPrefix(m.Destination, "/sys/") {
			t.Errorf("mount %+v", m)
		}
		for _, o := range m.Options {
			if strings.HasPrefix(o, "gid=") {
				t.Errorf("mount %+v", m)
			}
		}
	}
}

// TestTheConfigEqualsStockUmocis compares with Debian's 0.4.7, less what its newer
// versions changed on purpose: the version, the cgroup namespace.
func TestTheConfigEqualsStockUmocis(t *testing.T) {
	umoci, err := exec.LookPath("umoci")
	if err != nil {
		t.Skip("umoci is not installed")
	}
	layout := filepath.Join(t.TempDir(), "l")
	stock := filepath.Join(t.TempDir(), "config.json")
	for _, args := range [][]string{
		{"init", "--layout", layout},
		{"new", "--image", layout + ":a"},
		{"config", "--image", layout + ":a", "--config.entrypoint", "/e", "--config.cmd", "x y", "--config.env", "K=V",
			"--config.volume", "/data", "--config.label", "l=m", "--config.stopsignal", "9", "--config.exposedports", "80",
			"--config.workingdir", "/w", "--author", "me", "--created", "2020-01-02T03:04:05Z"},
		{"raw", "runtime-config", "--image", layout + ":a", stock},
	} {
		if out, err := exec.Command(umoci, args...).CombinedOutput(); err != nil {
			t.Fatalf("umoci %q: %s", args, out)
		}
	}
	out, err := exec.Command(umoci, "stat", "--image", layout+":a", "--json").Output()
	if err != nil {
		t.Fatal(err)
	}
	_ = out
	blobs, err := filepath.Glob(filepath.Join(layout, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(stock)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		raw, err := os.ReadFile(b)
		if err != nil {
			t.Fatal(err)
		}
		var img ispec.Image
		if json.Unmarshal(raw, &img) != nil || !bytes.Contains(raw, []byte(`"Entrypoint"`)) {
			continue
		}
		got, err := runtimeConfig(runtimeInput{image: img, rootfs: ".", passwd: imageFiles(nil)})
		if err != nil {
			t.Fatal(err)
		}
		have := strings.Replace(string(got), "\t\t\t{\n\t\t\t\t\"type\": \"cgroup\"\n\t\t\t},\n", "", 1)
		if !sameJSON(t, string(data), have) {
			t.Errorf("got\n%s\nwant\n%s", have, data)
		}
		return
	}
	t.Fatal("the config is not among the blobs")
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y any
	if err := json.Unmarshal([]byte(a), &x); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(b), &y); err != nil {
		t.Fatal(err)
	}
	return reflect.DeepEqual(x, y)
}
