package rootless

import (
	"path/filepath"
	"strings"
	"testing"
)

// What is mounted without a bundle is found by root too: by who mounted it, since the
// tree's owner is the image's word, and root may not look at it.
func TestRootUnmountsAUsersMountWithoutABundle(t *testing.T) {
	for _, c := range []struct{ name, flags string }{{"closed to root", ""}, {"real ids", "--ids real"}} {
		t.Run(c.name, func(t *testing.T) {
			u := plain(t)
			u.must("$um raw unpack " + c.flags + " --image img:base r; echo hi >r/hi")
			rootfs := filepath.Join(u.dir, "r")
			env.Must(t, "umount", rootfs)
			if out := u.must("$um diff r"); !strings.Contains(out, "A /hi") {
				t.Errorf("diff says %s", out)
			}
			if out := env.Must(t, "diff", rootfs); !strings.Contains(out, "A /hi") {
				t.Errorf("root's diff says %s", out)
			}
			u.must("$um umount --discard r")
		})
	}
}
