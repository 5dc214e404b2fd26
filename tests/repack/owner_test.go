package repack

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWhatWasWrittenThroughAMappingIsRepacked(t *testing.T) {
	f := newFixture(t, smallTree(t))
	f.umount()
	for _, flag := range []string{"--passthrough=false", "--passthrough"} {
		run(t, program, "mount", "--fresh", "--image", f.layout+":base", flag, f.bundle)
		file, err := os.OpenFile(f.root("usr/bin/tool"), os.O_RDWR, 0)
		must(t, err)
		data, err := unix.Mmap(int(file.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		must(t, err)
		copy(data, "mapped")
		tag, _ := f.repack()
		got, err := os.ReadFile(filepath.Join(f.unpack(tag), "usr/bin/tool"))
		must(t, err)
		if !strings.HasPrefix(string(got), "mapped") {
			t.Errorf("%s: the layer has %.10q", flag, got)
		}
		must(t, unix.Munmap(data))
		must(t, file.Close())
		f.umount()
	}
}

func TestAPlainUsersBundleIsRepackedWithTheImagesOwners(t *testing.T) {
	for _, tool := range []string{"fusermount3", "setpriv"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("no", tool)
		}
	}
	if dev, err := os.Stat("/dev/fuse"); err != nil || dev.Mode().Perm()&0o006 != 0o006 {
		t.Skip("/dev/fuse is root's alone")
	}
	f := newFixture(t, func(dir string) {
		smallTree(t)(dir)
		must(t, os.Lchown(filepath.Join(dir, "etc/conf"), 992, 123))
		must(t, setTime(filepath.Join(dir, "etc/conf"), 1_000_000_000))
	})
	f.umount()
	home, err := os.MkdirTemp("", "repack-user-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(home)) })
	run(t, "cp", "-r", f.layout, filepath.Join(home, "oci"))
	run(t, "cp", program, filepath.Join(home, "program"))
	run(t, "chown", "-R", "1000:1000", home)
	script := `set -e
cd "$0"
export UMOCI_MOUNT_CACHE=$0/cache
./program mount --image oci:base b
trap './program umount b' EXIT
echo more >> b/rootfs/etc/conf
echo new > b/rootfs/etc/new
chmod 4711 b/rootfs/etc/new
mkfifo b/rootfs/etc/fifo
mkdir b/rootfs/closed
echo x > b/rootfs/closed/x
chmod 0 b/rootfs/closed/x b/rootfs/closed
mv b/rootfs/usr/lib b/rootfs/opt
./program repack --full-check --refresh-bundle --image oci:user b
./program repack --full-check --image oci:again b
./program diff b
`
	said := run(t, "setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "bash", "-c", script, home)
	if !strings.Contains(said, "nothing has changed: oci:again") {
		t.Errorf("said %q", said)
	}
	f.layout = filepath.Join(home, "oci")
	got := describe(t, f.unpack("user"))
	for p, want := range map[string]string{
		"etc/conf":  "100644 992:123 nlink 1",
		"etc/new":   "104711 0:0 nlink 1",
		"etc/fifo":  "10644 0:0 nlink 1",
		"closed":    "40000 0:0 nlink 2",
		"closed/x":  "100000 0:0 nlink 1",
		"opt/a":     "100644 0:0 nlink 2",
		"opt/b":     "100644 0:0 nlink 2",
		"usr/lib/a": "",
	} {
		if !strings.HasPrefix(got[p], want) || want == "" && got[p] != "" {
			t.Errorf("%s is %q, want %q", p, got[p], want)
		}
	}
}

func TestAMappedBundleIsRepackedWithTheImagesOwners(t *testing.T) {
	f := newFixture(t, smallTree(t))
	f.umount()
	maps := []string{"--uid-map", "0:100000:65536", "--gid-map", "0:100000:65536"}
	run(t, program, append(append([]string{"mount", "--fresh", "--image", f.layout + ":base"}, maps...), f.bundle)...)
	must(t, os.Lchown(f.root("etc/conf"), 100007, 100008))
	tag, _ := f.repack("--full-check")
	f.wantEntries(tag, "etc/conf")
	f.umount()
	stock := filepath.Join(t.TempDir(), "stock")
	run(t, "umoci", append(append([]string{"unpack", "--image", f.layout + ":base"}, maps...), stock)...)
	f.bundle = stock
	must(t, os.Lchown(f.root("etc/conf"), 100007, 100008))
	plain, _ := f.repack()
	for _, tag := range []string{tag, plain} {
		if got := describe(t, f.unpack(tag))["etc/conf"]; !strings.HasPrefix(got, "100644 7:8 ") {
			t.Errorf("%s: etc/conf is %q", tag, got)
		}
	}
	must(t, os.Lchown(f.root("etc/conf"), 7, 8))
	var exit *exec.ExitError
	if out, err := try(t, program, "repack", "--image", f.layout+":no", f.bundle); !errors.As(err, &exit) || exit.ExitCode() != 5 || !strings.Contains(out, "id maps") {
		t.Errorf("error %v: %s", err, out)
	}
}
