package rootless

import (
	"slices"
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

const capability = "0100000200200000000000000000000000000000"

// edits are what the kernel refuses a plain user, of every kind.
const edits = `
	$um mknod b /dev/null c 1 3
	$um mknod --mode 0660 --owner 0:6 b dev/sda b 8 0
	$um mknod --mode 0600 --owner mail b dev/pipe p
	$um chown b mail:adm /etc/passwd
	$um chown b mail: etc/group
	$um chown b :42 usr/bin/su
	$um chown -R b 33:33 var/spool
	$um chown --no-dereference b 5:5 /etc/link
	$um setxattr b security.capability 0x` + capability + ` /etc/passwd
	$um setxattr b trusted.note hello etc/../etc/shadow
`

const edited = `6 600 8:0 dev/pipe
3 666 0:0 dev/null 1,3
4 660 0:6 dev/sda 8,0
0 644 8:12 etc/group
2 777 5:5 etc/link
0 644 8:4 etc/passwd security.capability=` + capability + `
0 640 0:42 etc/shadow trusted.note=68656c6c6f
0 755 0:42 usr/bin/su
5 700 33:33 var/spool
0 600 33:33 var/spool/job
`

func TestEditsThatTheKernelRefusesAPlainUserAreInTheLayer(t *testing.T) {
	for name, script := range map[string]string{
		"mounted":             `$um mount --image img:base b` + edits + `$um repack --image img:new b; $um umount b`,
		"mounted, real ids":   `$um mount --ids real --image img:base b` + edits + `$um repack --image img:new b; $um umount b`,
		"not mounted":         `$um mount --image img:base b; $um umount b` + edits + `$um repack --image img:new b`,
		"after a discard":     `$um mount --image img:base b; $um umount --discard b` + edits + `$um repack --image img:new b`,
		"mounted again after": `$um mount --image img:base b; $um umount b` + edits + `$um mount b; $um repack --image img:new b; $um umount b`,
	} {
		t.Run(name, func(t *testing.T) {
			u := plain(t)
			u.must(script)
			got := strings.Split(u.newLayer("new", ".", "dev", "etc", "usr/bin"), "\n")
			want := strings.Split(edited, "\n")
			expect(t, "the layer", sorted(want), sorted(got))
		})
	}
}

func TestRootsEditsAreTheSame(t *testing.T) {
	u := newUser(t, 0, "env")
	u.must(`$um mount --image img:base b` + edits + `$um repack --image img:new b; $um umount b`)
	got := strings.Split(u.newLayer("new", ".", "dev", "etc", "usr/bin"), "\n")
	expect(t, "the layer", sorted(strings.Split(edited, "\n")), sorted(got))
}

// The kernel keeps names, attributes and listings of the mount for ever.
func TestEditsAreSeenInTheMountAtOnce(t *testing.T) {
	u := plain(t)
	out := u.must(`$um mount --ids real --image img:base b
		cd b/rootfs; ls dev; ls dev/null 2>/dev/null || echo none; stat -c %u etc/passwd; cd ../..
		$um mknod b dev/null c 1 3; $um chown b mail etc/passwd; $um setxattr b user.x y etc/passwd
		cd b/rootfs; ls dev; stat -c '%F %t,%T' dev/null; stat -c %u etc/passwd; getfattr --only-values -n user.x etc/passwd; cd ../..
		$um setxattr --remove b user.x etc/passwd
		getfattr -n user.x b/rootfs/etc/passwd 2>/dev/null || echo " removed"
		$um umount b`)
	expect(t, "what is seen", "none\n0\nnull\ncharacter special file 1,3\n8\ny removed\n", out)
}

func TestEditsThatCannotBeMade(t *testing.T) {
	u := plain(t)
	u.must(`$um mount --image img:base b; $um umount b; $um mount --image img:base m`)
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"mknod B etc/passwd c 1 3", imagetest.CodeFailure, "exists"},
		{"mknod B no/such/dir c 1 3", imagetest.CodeNotFound, "mknod /no/such/dir"},
		{"mknod B dev/x c 1", imagetest.CodeUsage, "MAJOR and MINOR"},
		{"mknod B dev/x q 1 1", imagetest.CodeUsage, "want b, c, u or p"},
		{"mknod B dev/x c 4096 1", imagetest.CodeUsage, "4096"},
		{"mknod B dev/x c 0 0", 8, "mknod /dev/x"},
		{"mknod --mode 9 B dev/x c 1 1", imagetest.CodeUsage, "octal"},
		{"mknod --owner nobody B dev/x c 1 1", imagetest.CodeImage, `"nobody"`},
		{"chown B nobody etc/passwd", imagetest.CodeImage, `"nobody"`},
		{"chown B : etc/passwd", imagetest.CodeFailure, "names nobody"},
		{"chown B 0 no/such", imagetest.CodeNotFound, "chown /no/such"},
		{"chown B 0", imagetest.CodeUsage, "PATH"},
		{"chown B 0 etc/passwd/x", imagetest.CodeNotFound, "not a directory"},
		{"setxattr B security.x 0xzz etc/passwd", imagetest.CodeUsage, "0xzz"},
		{"setxattr B system.x y etc/passwd", imagetest.CodeUsage, "system.x"},
		{"setxattr --remove B trusted.x etc/passwd", imagetest.CodeFailure, "no such extended attribute"},
		{"chown no-bundle 0 etc/passwd", imagetest.CodeNotFound, "no-bundle"},
	} {
		for _, bundle := range []string{"b", "m"} {
			out, code := u.sh("$um " + strings.Replace(c.args, " B ", " "+bundle+" ", 1))
			if code != c.code || !strings.Contains(out, c.says) || strings.Count(out, "\n") != 1 {
				t.Errorf("%s (bundle %s): exit %d (want %d), want %q in\n%s", c.args, bundle, code, c.code, c.says, out)
			}
		}
	}
	out := u.must(`$um diff b; $um diff m; $um umount m`)
	expect(t, "changes by what was refused", "", out)
}

// Programs that copy a file's mode do it by its ACL; a new owner costs a file its
// capabilities. The upper's file system knows neither of a plain user's files.
func TestModesFromACLsAndCapabilitiesOfNewOwners(t *testing.T) {
	imagetest.NeedTools(t, "setfacl")
	u := plain(t)
	out := u.must(`$um mount --image img:base b; cd b/rootfs/etc
		cp -p shadow copy; stat -c %a copy
		: >acl; chmod 640 acl; chown 8:8 acl; stat -c %a acl; setfacl -m u::rw-,g::r--,o::r-- acl; stat -c %a acl
		: >mask; setfacl -m u::r--,g::rwx,o::---,u:8:rwx,m::r-x mask; stat -c %a mask
		cd ../../..
		$um setxattr b security.capability 0x` + capability + ` etc/acl etc/mask; $um chown b 9 etc/acl
		chown 9 b/rootfs/etc/mask
		$um repack --image img:new b; $um umount b`)
	expect(t, "modes", "640\n640\n644\n450\n", out)
	got := strings.Split(u.newLayer("new", ".", "etc"), "\n")
	for i, line := range got {
		got[i], _, _ = strings.Cut(line, " system.posix_acl_access")
	}
	expect(t, "the layer", "0 450 9:0 etc/mask\n0 640 0:0 etc/copy\n0 644 9:8 etc/acl", sorted(got))
}

func sorted(lines []string) string {
	var out []string
	for _, l := range lines {
		if l != "" {
			out = append(out, l)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}
