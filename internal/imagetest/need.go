package imagetest

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// RequireAll is the variable that makes a missing need a failure in place of a
// skip, where everything is supposed to be there.
const RequireAll = "UMOCI_MOUNT_REQUIRE_ALL"

// NeedRoot skips the test where it does not run as root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		lack(t, "needs root")
	}
}

// NeedFuse skips the test where /dev/fuse cannot be opened.
func NeedFuse(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		lack(t, "needs FUSE: "+err.Error())
		return
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// NeedLoop skips the test where there are no loop devices.
func NeedLoop(t testing.TB) {
	t.Helper()
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		lack(t, "needs loop devices: "+err.Error())
	}
}

// packages that hold the tools, where the name is another.
var packages = map[string]string{
	"busybox": "busybox-static", "fusermount3": "fuse3", "gomtree": "golang-github-vbatts-go-mtree", "mkfs.ext4": "e2fsprogs", "mkfs.btrfs": "btrfs-progs", "mkfs.xfs": "xfsprogs", "btrfs": "btrfs-progs",
	"setpriv": "util-linux", "xz": "xz-utils", "newuidmap": "uidmap",
}

// NeedTools skips the test where one of the programs is missing.
func NeedTools(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			pkg := packages[name]
			if pkg == "" {
				pkg = name
			}
			lack(t, "needs "+name+": apt-get install "+pkg)
		}
	}
}

// NeedFilesystem skips the test where the kernel does not have a type of file system
// (/proc/filesystems), nor a module of that name.
func NeedFilesystem(t testing.TB, name string) {
	t.Helper()
	_ = exec.Command("modprobe", "-q", name).Run() // the list says whether it is there
	list, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(strings.Fields(string(list)), name) {
		lack(t, "needs a kernel with "+name)
	}
}

// Fewer is n, or an eighth of it with -short: how often what is tried again and again is.
func Fewer[T int | time.Duration](n T) T {
	if testing.Short() {
		return max(1, n/8)
	}
	return n
}

func lack(t testing.TB, why string) {
	t.Helper()
	if os.Getenv(RequireAll) != "" {
		t.Fatalf("%s (%s is set)", why, RequireAll)
	}
	t.Skip(why)
}
