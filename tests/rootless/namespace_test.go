package rootless

import (
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// A mount whose namespace only the daemon keeps is unmounted from outside of it, and
// nothing is lost; while a program is there it stays.
func TestAMountInANamespaceOfItsOwnIsUnmounted(t *testing.T) {
	imagetest.NeedTools(t, "unshare")
	for name, c := range map[string]struct {
		user   func(*testing.T) *user
		inside string
	}{
		"root":   {asRoot, "unshare --mount"},
		"a user": {plain, "unshare --user --map-root-user --mount"},
	} {
		t.Run(name, func(t *testing.T) {
			u := c.user(t)
			out := u.must(`mkfifo up end
				` + c.inside + ` sh -c '$um mount --image img:base f && echo hi >f/rootfs/hi && echo >up && read x <end' & pid=$!
				read x <up
				code=0; $um umount f 2>why || code=$?; grep -o 'sh (mount namespace)' why
				echo >end; wait $pid
				$um umount f
				if $um umount f 2>/dev/null; then echo again; fi
				$um mount --image img:base f; cat f/rootfs/hi; $um diff f; $um umount f
				echo $code`)
			expect(t, "said", "sh (mount namespace)\nhi\nC /\nA /hi\n6", strings.TrimSpace(out))
		})
	}
}

// There fusermount3 is asked, by the daemon.
func TestAUsersMountInRootsNamespaceIsUnmounted(t *testing.T) {
	imagetest.NeedTools(t, "unshare")
	u := plain(t)
	as := u.as
	u.as = append([]string{"unshare", "--mount"}, as...)
	u.must("$um mount --image img:base f; echo hi >f/rootfs/hi")
	u.as = as
	out := u.must("$um umount f; $um diff f; test ! -e f/rootfs/hi")
	expect(t, "diff says", "C /\nA /hi", strings.TrimSpace(out))
}

// The daemon has another working directory.
func TestAHomeThatIsARelativePathIsTakenFromHere(t *testing.T) {
	u := plain(t)
	u.must(`unset UMOCI_MOUNT_CACHE XDG_CACHE_HOME; mkdir home
		HOME=home $um mount --image img:base b; cat b/rootfs/etc/passwd; $um umount b
		grep -q "\"cache_dir\": \"$PWD/home/.cache/umoci-mount\"" b/.umoci-mount/state.json`)
}
