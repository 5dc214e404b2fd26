package bundle

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func TestUmociJSONIsWrittenAsUmociWritesIt(t *testing.T) {
	dir := t.TempDir()
	d := look(t, dir)
	err := d.writeUmoci(&umociMeta{From: walkPath{[]ispec.Descriptor{{
		MediaType: ispec.MediaTypeImageManifest, Size: 406,
		Digest:      "sha256:254178cd9d236d3f3167a5685b97b1c4681540bd4b6d640dca42939adfd5635c",
		Annotations: map[string]string{ispec.AnnotationRefName: "latest"},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"umoci_version":"2","from_descriptor_path":{"descriptor_walk":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:254178cd9d236d3f3167a5685b97b1c4681540bd4b6d640dca42939adfd5635c","size":406,"annotations":{"org.opencontainers.image.ref.name":"latest"}}]},"map_options":{"uid_mappings":null,"gid_mappings":null,"rootless":false}}` + "\n"
	got, err := os.ReadFile(filepath.Join(dir, umociName))
	if err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := d.readUmoci(); err != nil {
		t.Error(err)
	}
}

// look opens a bundle for the time of a test.
func look(t *testing.T, path string) *dir {
	t.Helper()
	d, err := lookDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.close() })
	return d
}

func TestABundleThatIsNotOursIsRefused(t *testing.T) {
	dir := t.TempDir()
	if _, err := look(t, dir).readState(); !errors.Is(err, ErrNotBundle) {
		t.Errorf("no state: %v", err)
	}
	if _, err := openDir(dir); !errors.Is(err, ErrNotBundle) {
		t.Errorf("open: %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, stateDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, stateDir, stateName), []byte(`{"version":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := look(t, dir).readState(); !errors.Is(err, ErrNotBundle) {
		t.Errorf("newer state: %v", err)
	}
}

func TestTwoCommandsDoNotWorkOnOneBundle(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, stateDir), 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := openDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openDir(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("second: %v", err)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	if d, err = openDir(dir); err != nil {
		t.Fatal(err)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
}

func TestALiveDaemonIsSeenByItsLock(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, stateDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if on, err := look(t, dir).isMounted(); on || err != nil {
		t.Errorf("never mounted: %v %v", on, err)
	}
	f, err := os.Create(filepath.Join(dir, stateDir, mountedName))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if on, err := look(t, dir).isMounted(); !on || err != nil {
		t.Errorf("mounted: %v %v", on, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if on, err := look(t, dir).isMounted(); on || err != nil {
		t.Errorf("ended: %v %v", on, err)
	}
}

func TestMountTablesAreRead(t *testing.T) {
	const table = `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw
77 29 0:63 / /tmp/a\040b/rootfs rw,relatime shared:1 - fuse.umoci-mount umoci-mount rw,user_id=0
garbage
`
	got := parseMountinfo([]byte(table))
	if len(got) != 2 || got[1] != (mountEntry{"77", "0:63", "/tmp/a b/rootfs", fsType, "umoci-mount", "0"}) {
		t.Errorf("%+v", got)
	}
}

func TestManifestNamesAreEncoded(t *testing.T) {
	for in, want := range map[string]string{
		"plain-1.so": "plain-1.so", "a b": `a\040b`, "x*": `x\052`, "#": `\043`, "\xff": `\377`, `\`: `\\`,
	} {
		if got := visEncode(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestACacheOfSomebodyElseIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	root, err := openCacheDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := root.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := openCacheDir(dir); err == nil {
		t.Error("a cache that others can write to was opened")
	}
}
