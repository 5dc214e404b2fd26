package tests

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// ownedLayer has files of several owners, with set-id bits, and a device.
const ownedLayer = `dir . 0755
dir etc 0755
file etc/shadow 0640 "secret" gid=42
file etc/hostname 0644 "host"
file usr/bin/su 04755 "program"
dir var/mail 02775 gid=8
dir var/spool 0700 uid=13 gid=13
file var/spool/job 0600 "job" uid=13 gid=13
symlink etc/link shadow
char dev/null 0666 1,3
`

// plainUser runs a shell script as a user without privileges, in a directory of its
// own with an image "img:base"; $um is the program.
type plainUser struct {
	t   *testing.T
	dir string
}

func newPlainUser(t *testing.T) *plainUser {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "setpriv", "fusermount3", "setfattr")
	dir := filepath.Join(worldDir(t), "user")
	image := imagetest.Image{Tag: "base", Layers: []imagetest.Layer{{Text: ownedLayer}}}
	if err := imagetest.WriteLayout(filepath.Join(dir, "img"), image); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, 65534, 65534))
	})
	if err != nil {
		t.Fatal(err)
	}
	return &plainUser{t, dir}
}

// sh runs a script, and gives what it wrote and its exit code.
func (u *plainUser) sh(script string) (string, int) {
	u.t.Helper()
	vars := []string{"UMOCI_MOUNT_CACHE=" + filepath.Join(u.dir, "cache"), "HOME=" + u.dir, "um=" + env.Bin}
	r := env.Command(u.t, vars, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
		"sh", "-ec", "cd "+u.dir+"\n"+script)
	return r.Stdout + r.Stderr, r.Code
}

func (u *plainUser) must(script string) string {
	u.t.Helper()
	out, code := u.sh(script)
	if code != 0 {
		u.t.Fatalf("exit %d of\n%s\n%s", code, script, out)
	}
	return out
}

// newLayer lists the top layer of a tag: type and mode, owner and name of each entry.
func (u *plainUser) newLayer(tag string) string {
	u.t.Helper()
	var out strings.Builder
	for _, h := range imagetest.TopLayer(u.t, filepath.Join(u.dir, "img"), tag) {
		fmt.Fprintf(&out, "%c %o %d:%d %s\n", h.Typeflag, h.Mode, h.Uid, h.Gid, strings.TrimSuffix(h.Name, "/"))
	}
	return out.String()
}

func expect(t *testing.T, what, want, got string) {
	t.Helper()
	if want != got {
		t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
	}
}

const ownersEdited = `0 644 33:34 etc/hostname
0 640 0:42 etc/new
0 4711 0:0 usr/bin/su
5 2775 0:8 var/mail
0 600 13:13 var/mail/letter
`

// withoutRoot drops the entry for the root directory, whose time alone changes.
func withoutRoot(list string) string {
	var out []string
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); f[3] != "." && f[3] != "etc" {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

func TestAPlainUserSeesEverythingAsItsOwnAndRecordsOwners(t *testing.T) {
	u := newPlainUser(t)
	out := u.must(`$um mount --image img:base b
		stat -c '%u %g %a' b/rootfs/etc/shadow b/rootfs/var/spool
		getfattr -n user.rootlesscontainers --absolute-names --only-values -e hex b/rootfs/var/spool/job | od -An -tx1
		chown 33:34 b/rootfs/etc/hostname
		chmod 4711 b/rootfs/usr/bin/su
		echo n >b/rootfs/etc/new; chgrp 42 b/rootfs/etc/new; chmod 640 b/rootfs/etc/new
		cp b/rootfs/var/spool/job b/rootfs/var/mail/letter
		setfattr -n user.rootlesscontainers -v 0x080d100d b/rootfs/var/mail/letter
		stat -c '%u %g %a' b/rootfs/etc/hostname b/rootfs/var/mail/letter
		$um umount b; $um mount b; $um repack --image img:new b; $um umount b`)
	expect(t, "what is shown", "65534 65534 640\n65534 65534 700\n 08 0d 10 0d\n65534 65534 644\n65534 65534 600\n", out)
	expect(t, "the layer", ownersEdited, withoutRoot(u.newLayer("new")))
}

func TestAPlainUserWithRealIdsIsTheImagesRoot(t *testing.T) {
	u := newPlainUser(t)
	out := u.must(`$um mount --ids real --image img:base b
		stat -c '%u %g %a' b/rootfs/etc/shadow b/rootfs/var/spool
		cat b/rootfs/var/spool/job; echo
		chown 33:34 b/rootfs/etc/hostname
		chmod 4711 b/rootfs/usr/bin/su
		echo n >b/rootfs/etc/new; chown 0:42 b/rootfs/etc/new; chmod 640 b/rootfs/etc/new
		cp b/rootfs/var/spool/job b/rootfs/var/mail/letter; chown 13:13 b/rootfs/var/mail/letter
		$um umount b; $um mount b
		stat -c '%u %g %a' b/rootfs/etc/hostname b/rootfs/usr/bin/su
		$um repack --image img:new b; $um umount b`)
	expect(t, "what is shown", "0 42 640\n13 13 700\njob\n33 34 644\n0 0 4711\n", out)
	expect(t, "the layer", ownersEdited, withoutRoot(u.newLayer("new")))
}

func TestWhatAPlainUserMakesWithRealIdsIsRootsOfTheImage(t *testing.T) {
	u := newPlainUser(t)
	out := u.must(`$um mount --ids real --image img:base b
		echo n >b/rootfs/etc/new; mkdir b/rootfs/etc/d; ln -s x b/rootfs/etc/l
		stat -c '%u %g' b/rootfs/etc/new b/rootfs/etc/d b/rootfs/etc/l
		$um umount b`)
	expect(t, "owners", "0 0\n0 0\n0 0\n", out)
}

func TestStockUmociRepacksASquashedBundleWithTheRightOwners(t *testing.T) {
	imagetest.NeedTools(t, "umoci")
	u := newPlainUser(t)
	u.must(`$um mount --mtree --image img:base b
		chown 33:34 b/rootfs/etc/hostname
		umoci repack --image img:stock b
		$um repack --image img:ours b; $um umount b`)
	expect(t, "stock umoci's layer", "0 644 33:34 etc/hostname\n", withoutRoot(u.newLayer("stock")))
	expect(t, "our layer", "0 644 33:34 etc/hostname\n", withoutRoot(u.newLayer("ours")))
}

func TestMapsShowTheHostsIdsAndRefuseOwnersTheyLeaveOut(t *testing.T) {
	u := newPlainUser(t)
	out, code := u.sh(`$um mount --uid-map 0:65534:1 --gid-map 0:65534:1 --image img:base b`)
	if code != imagetest.CodeState || !strings.Contains(out, "etc/shadow") || !strings.Contains(out, "--squash") {
		t.Errorf("exit %d: %s", code, out)
	}
	if _, err := os.Lstat(filepath.Join(u.dir, "b")); err == nil {
		t.Error("the refused mount left a bundle")
	}
	out = u.must(`maps="--uid-map 0:65534:1 --uid-map 1:100000:1000 --gid-map 0:65534:1 --gid-map 1:200000:1000"
		$um mount $maps --image img:base b
		stat -c '%u %g' b/rootfs/etc/shadow b/rootfs/var/spool/job
		chown 100032:200033 b/rootfs/etc/hostname
		if chown 1 b/rootfs/etc/shadow 2>/dev/null; then echo an id outside the maps; fi
		$um mount --squash --uid-map 0:65534:1 --gid-map 0:65534:1 --image img:base c
		stat -c '%u %g' c/rootfs/etc/shadow c/rootfs/var/spool/job
		echo x >>c/rootfs/var/spool/job
		$um umount c; $um repack --image img:squashed c
		$um umount b; $um repack --image img:mapped b`)
	expect(t, "what is shown", "65534 200041\n100012 200012\n65534 65534\n65534 65534\n", out)
	expect(t, "the mapped bundle's layer", "0 644 33:34 etc/hostname\n", withoutRoot(u.newLayer("mapped")))
	expect(t, "the squashed bundle's layer", "0 600 13:13 var/spool/job\n", withoutRoot(u.newLayer("squashed")))
}

func TestMappedMountsOfOneImageByRoot(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	layout := imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: []imagetest.Layer{{Text: ownedLayer}}})
	for _, base := range []string{"100000", "300000"} {
		b := env.Mount(t, layout+":base", "--uid-map", "0:"+base+":65536", "--gid-map", "0:"+base+":65536")
		got := env.MustCommand(t, "stat", "-c", "%u %g", b.Rootfs()+"/etc/hostname", b.Rootfs()+"/var/spool/job")
		n := strings.TrimSuffix(base, "00000")
		expect(t, "owners", n+"00000 "+n+"00000\n"+n+"00013 "+n+"00013\n", got)
		if err := os.Chmod(b.Path, 0o755); err != nil {
			t.Fatal(err)
		}
		worldDir(t) // and what is above
		env.MustCommand(t, "setpriv", "--reuid="+n+"00013", "--regid="+n+"00013", "--clear-groups",
			"sh", "-ec", `cat "$0"/var/spool/job >/dev/null; ! cat "$0"/etc/shadow 2>/dev/null`, b.Rootfs())
		b.Umount(t)
	}
}

func TestOthersWhoAreLetInAreCheckedByTheKernel(t *testing.T) {
	u := newPlainUser(t)
	imagetest.NeedTools(t, "unshare")
	as := func(id string) string { return "setpriv --reuid=" + id + " --regid=" + id + " --clear-groups " }
	script := `cd "$0"; export HOME=$PWD UMOCI_MOUNT_CACHE=$PWD/cache
		echo user_allow_other >conf; mount --bind conf /etc/fuse.conf
		` + as("65534") + `"$1" mount --allow-other --image img:base b
		chmod 755 b
		` + as("1234") + `sh -ec 'cat b/rootfs/etc/hostname >/dev/null; for f in b/rootfs/etc/shadow b/rootfs/var/spool/job; do
			if cat $f 2>/dev/null; then echo read $f; fi; if rm -f $f 2>/dev/null; then echo removed $f; fi; done'
		` + as("65534") + `"$1" umount b`
	out := env.MustCommand(t, "unshare", "--mount", "--propagation", "private", "sh", "-ec", script, u.dir, env.Bin)
	expect(t, "what another user could do", "", out)
}

func TestARootlessContainerRunsOnAPlainUsersMount(t *testing.T) {
	imagetest.NeedTools(t, "busybox", "runc", "crun", "jq", "unshare")
	u := newPlainUser(t)
	u.must(`$um mount --image img:base b
		mkdir -p b/rootfs/bin; cp "$(command -v busybox)" b/rootfs/bin/busybox; ln -s busybox b/rootfs/bin/sh; ln -s busybox b/rootfs/bin/chown
		jq '.process.terminal = false | .process.args = ["sh", "-ec", "echo made >/made; chown 0:0 /made; /bin/busybox stat -c %u:%g /made /etc/shadow"]' b/config.json >c
		cat c >b/config.json`)
	for _, runtime := range []string{"runc", "crun"} {
		// A machine with both kinds of cgroups mounted is none for crun's plain users.
		script := `umount /sys/fs/cgroup/unified 2>/dev/null || true; cd "$0"; export HOME=$PWD XDG_RUNTIME_DIR=$PWD
			exec setpriv --reuid=65534 --regid=65534 --clear-groups ` + runtime + ` --root "$0/state" run -b "$0/b" umoci-mount-test-` + runtime
		out := env.MustCommand(t, "unshare", "--mount", "--propagation", "private", "sh", "-ec", script, u.dir)
		expect(t, runtime, "0:0\n0:0\n", out)
		u.must("grep -q made b/rootfs/made; rm b/rootfs/made")
	}
	u.must("echo kept >b/rootfs/kept; $um umount b; $um mount b; cat b/rootfs/kept; $um umount b")
}

func TestAMountInAPipeEndsThePipe(t *testing.T) {
	u := newPlainUser(t)
	u.must(`timeout 20 sh -c '$um mount --image img:base b 2>&1 | cat; exec 9>&1; $um status >/dev/null'; $um umount b`)
}
