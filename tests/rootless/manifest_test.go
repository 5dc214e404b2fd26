package rootless

import "testing"

// A manifest that a refresh renews has the owners that the mount shows.
func TestARefreshedManifestHasTheShownOwners(t *testing.T) {
	for name, c := range map[string]struct {
		user  func(*testing.T) *user
		flags string
	}{
		"a user's":           {plain, ""},
		"a user's, real ids": {plain, "--ids real"},
		"mapped":             {asRoot, "--uid-map 0:100000:65536 --gid-map 0:100000:65536"},
		"squashed":           {asRoot, "--ids squashed"},
	} {
		t.Run(name, func(t *testing.T) {
			u := c.user(t)
			out := u.must(`$um mount --mtree ` + c.flags + ` --image img:base f; r=f/rootfs
				validate() { $um raw mtree-validate --umoci-keywords -f f/*.mtree -p $r; }
				validate; echo new >$r/new; echo more >>$r/etc/group; $um chown f 8:12 /new; chmod 600 $r/etc/passwd; rm -r $r/tmp
				SOURCE_DATE_EPOCH=1500000000 $um repack --refresh-bundle --image img:new f
				validate; $um umount f`)
			expect(t, "differences", "", out)
		})
	}
}
