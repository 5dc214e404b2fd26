package commands

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// withoutFuse is a prefix for sh: what follows finds no /dev/fuse.
const withoutFuse = `unshare -m --propagation private sh -ec 'mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; exec "$@"' sh `

// Scripts that call umoci run in containers too.
func TestCalledUmociUnpackExtractsWhereNothingCanBeMounted(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "unshare")
	dir := newLayout(t)
	mustSh(t, dir, "$um insert --image img:a img/oci-layout /file")
	t.Setenv("UMOCI_MOUNT_CACHE", filepath.Join(dir, "cache"))
	if err := os.Symlink(env.Bin, filepath.Join(dir, "umoci")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code int
	}{
		{"./umoci mount --image img:a b", imagetest.CodeMachine},
		{"./umoci unpack --passthrough --image img:a b", imagetest.CodeMachine},
		{"$um unpack --image img:a b", imagetest.CodeMachine},
		{"./umoci unpack --image img:a b", 0},
		{"./umoci raw unpack --image img:a r", 0},
	} {
		r := sh(t, dir, withoutFuse+c.args)
		if r.Code != c.code || lines(r.Stderr, "/dev/fuse") != 1 || strings.Count(r.Stderr, "\n") != 1 {
			t.Errorf("%s: exit %d\n%s", c.args, r.Code, r.Stderr)
		}
		for _, name := range []string{"b", "cache"} { // that nothing can be mounted is seen first
			if _, err := os.Lstat(filepath.Join(dir, name)); c.code != 0 && !os.IsNotExist(err) {
				t.Errorf("%s made %s: %v", c.args, name, err)
			}
		}
	}
	mustSh(t, dir, "cmp img/oci-layout b/rootfs/file; diff -r b/rootfs r; echo changed > b/rootfs/new; ./umoci repack --image img:changed b")
	expect(t, "the new file", "changed\n", mustSh(t, dir, "$um cat --image img:changed /new"))
}
