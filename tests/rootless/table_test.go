package rootless

import (
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// rows are those of the table in docs/rootless.md.
var rows = []struct {
	name string
	user func(*testing.T) *user
	// does is what works without our commands, in the order of the table's columns.
	does string
}{
	{"root", asRoot, "mount edit chown devices setcap exec-one exec-all"},
	{"a user without ranges", plain, "mount edit chown exec-one"},
	{"a user with ranges", ranged, "mount edit chown exec-one exec-range"},
	{"inside unshare -Ur", inUnshare, "mount edit setcap exec-one"},
	{"inside a user namespace with ranges", inRange, "mount edit chown setcap exec-one exec-some"},
	{"inside a container without CAP_SYS_ADMIN", inContainer, "exec-one"},
}

func inUnshare(t *testing.T) *user {
	t.Helper()
	imagetest.NeedTools(t, "unshare")
	u := plain(t)
	u.as = append(u.as, "unshare", "--user", "--map-root-user", "--mount")
	return u
}

func inRange(t *testing.T) *user {
	t.Helper()
	u := ranged(t)
	u.as = append(u.as, "unshare", "--user", "--map-root-user", "--map-auto", "--mount")
	return u
}

// inContainer is root with the rest of a container's usual capabilities.
func inContainer(t *testing.T) *user {
	t.Helper()
	return newUser(t, 0, "setpriv", "--bounding-set=-sys_admin,-sys_ptrace,-sys_chroot")
}

// everything makes the same changes in every row: by itself where that works, then by
// our commands, which always do.
const everything = `
	r=b/rootfs
	does() { name=$1; shift; if "$@" 2>/dev/null; then printf ' %s' $name; return 0; fi; return 1; }
	if does mount $um mount b; then mounted=yes; fi
	edit() { echo x >>$r/etc/group; }
	if [ -n "$mounted" ]; then does edit edit; else false; fi || $um exec b sh -c 'echo x >>/etc/group'
	does chown chown 8:12 $r/etc/passwd || $um chown b 8:12 etc/passwd
	if [ -n "$mounted" ]; then does devices mknod -m 640 $r/null c 1 3; else false; fi || $um mknod -m 640 b null c 1 3
	does setcap setcap cap_net_raw=ep $r/bin/act || $um setxattr b security.capability 0x` + capability + ` bin/act
	for ids in $($um exec --ids one b sed 's/.* //' /proc/self/uid_map 2>/dev/null | tr '\n' '+') ; do
		case $ids in 1+) does exec-one true;; esac
	done
	ids=$($um exec b sh -c 'wc -l </proc/self/uid_map; sed "s/.* //" /proc/self/uid_map' | tr '\n' ' ')
	case $ids in "1 4294967295 ") does exec-all true;; "1 1 ") : ;; *) [ -n "$mounted" ] && does exec-some true;; esac
	$um exec b act chown /etc/shadow 33 42
	if [ -n "$mounted" ]; then $um umount b; fi
	case $($um exec --ids range b sed 's/.* //' /proc/self/uid_map 2>/dev/null | tr '\n' ' ') in *65536*) does exec-range true;; esac
	$um repack --image img:new b
	echo`

const everythingDone = `0 640 33:42 etc/shadow
0 644 0:0 etc/group
0 644 8:12 etc/passwd
0 755 0:0 bin/act security.capability=` + capability + `
3 640 0:0 null 1,3`

func TestWhatWorksForWhom(t *testing.T) {
	imagetest.NeedTools(t, "setcap")
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			u := row.user(t)
			u.box()
			out := u.must(everything)
			expect(t, "what works by itself", row.does, strings.TrimSpace(out))
			got := strings.Split(u.newLayer("new", ".", "etc", "bin"), "\n")
			expect(t, "the layer", everythingDone, sorted(got))
		})
	}
}

// TestContainersForWhom runs containers in the rows where there is a mount.
func TestContainersForWhom(t *testing.T) {
	imagetest.NeedTools(t, "runc", "crun", "jq", "unshare")
	for _, row := range rows[1:5] {
		t.Run(row.name, func(t *testing.T) {
			u := row.user(t)
			u.box()
			// A machine with both kinds of cgroups mounted is none for crun's plain users.
			u.as = append([]string{
				"unshare", "--mount", "--propagation", "slave", "sh", "-ec",
				`umount /sys/fs/cgroup/unified 2>/dev/null || true; exec "$@"`, "sh",
			}, u.as...)
			out := u.must(`export XDG_RUNTIME_DIR=$PWD
				$um mount b
				jq '.process.terminal = false | .process.args = ["sh", "-ec", "touch /made; chown 0:0 /made; stat -c %u:%g /made; cat /made; echo kept >/made"]' b/config.json >c
				cat c >b/config.json
				for r in runc crun; do $r --root "$PWD/state" run -b "$PWD/b" umoci-mount-rows-$r; done
				$um umount b; $um mount b; cat b/rootfs/made; $um umount b`)
			expect(t, "what the containers saw", "0:0\n0:0\nkept\nkept\n", out)
		})
	}
}

func TestAContainerInARangeGivesFilesAway(t *testing.T) {
	imagetest.NeedTools(t, "runc", "jq")
	u := inRange(t)
	u.box()
	out := u.must(`export XDG_RUNTIME_DIR=$PWD
		$um mount b
		jq '.process.terminal = false | .process.capabilities[] += ["CAP_CHOWN"] |
			.process.args = ["sh", "-ec", "touch /made; chown 8:12 /made; stat -c %u:%g /made /etc/shadow"]' b/config.json >c
		cat c >b/config.json
		runc --root "$PWD/state" run -b "$PWD/b" umoci-mount-range
		$um umount b; $um repack --image img:new b`)
	expect(t, "what the container saw", "8:12\n0:42\n", out)
	expect(t, "the layer", "0 644 8:12 made\n", u.newLayer("new", "."))
}

// The same from outside, where /etc/fuse.conf lets others in.
func TestAContainerOnAMappedMountOfAPlainUser(t *testing.T) {
	imagetest.NeedTools(t, "runc", "jq")
	u := ranged(t)
	u.box()
	u.as = append([]string{
		"unshare", "--mount", "--propagation", "slave", "sh", "-ec",
		`echo user_allow_other >"$0/conf"; mount --bind "$0/conf" /etc/fuse.conf; umount /sys/fs/cgroup/unified 2>/dev/null || true; exec "$@"`, u.dir,
	}, u.as...)
	out := u.must(`export XDG_RUNTIME_DIR=$PWD
		$um mount --allow-other --rootless --uid-map 0:65534:1 --uid-map 1:100000:65536 --gid-map 0:65534:1 --gid-map 1:100000:65536 --image img:box m
		jq '.process.terminal = false | .process.capabilities[] += ["CAP_CHOWN"] |
			.process.args = ["sh", "-ec", "touch /made; chown 8:12 /made; stat -c %u:%g /made /etc/shadow"]' m/config.json >c
		cat c >m/config.json
		runc --root "$PWD/state" run -b "$PWD/m" umoci-mount-outside
		$um repack --image img:new m; $um umount m`)
	expect(t, "what the container saw", "8:12\n0:42\n", out)
	expect(t, "the layer", "0 644 8:12 made\n", u.newLayer("new", ".", "etc", "etc/resolv.conf")) // runc made the latter
}

// A container of root's whose root is nobody on the host.
func TestAMappedMountForAContainerOfRoots(t *testing.T) {
	imagetest.NeedTools(t, "runc", "jq")
	u := asRoot(t)
	u.box()
	out := u.must(`$um mount --uid-map 0:100000:65536 --gid-map 0:100000:65536 --image img:box m
		jq '.process.terminal = false | .process.capabilities[] += ["CAP_CHOWN"] |
			.process.args = ["sh", "-ec", "touch /made; chown 8:12 /made; stat -c %u:%g /made /etc/shadow; cat /proc/self/uid_map"]' m/config.json >c
		cat c >m/config.json
		chmod 755 m
		runc --root "$PWD/state" run -b "$PWD/m" umoci-mount-mapped | tr -s ' '
		stat -c %u:%g m/rootfs/made
		$um repack --image img:new m; $um umount m`)
	expect(t, "what is seen", "8:12\n0:42\n 0 100000 65536\n100008:100012\n", out)
	expect(t, "the layer", "0 644 8:12 made\n", u.newLayer("new", "."))
}

// What a machine may lack; each message says what to do.
func TestMachinesThatLackSomething(t *testing.T) {
	imagetest.NeedTools(t, "unshare")
	for _, c := range []struct {
		name  string
		setUp string // as root, in a mount namespace of its own, in the user's directory
		flags string
		code  int
		says  string
	}{
		{"/dev/fuse is not there", "touch none; chmod 0 none; mount --bind none /dev/fuse", "", 7, "/dev/fuse"},
		{"fusermount3 is not there", "touch none; mount --bind none /usr/bin/fusermount3", "", 7, "install the fuse3 package"},
		{"fusermount3 is not setuid", "cp /usr/bin/fusermount3 fm; chmod 755 fm; mount --bind fm /usr/bin/fusermount3", "", 7, "not setuid root"},
		{"as many mounts as there may be", "echo 'mount_max = 0' >conf; mount --bind conf /etc/fuse.conf", "", 7, "mount_max"},
		{"others may not be let in", "echo >conf; mount --bind conf /etc/fuse.conf", "--allow-other", 7, "user_allow_other"},
		{"a disk without attributes", "mkdir b; mount -t ramfs none b; chown 65534:65534 b", "", 7, "attributes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := plain(t)
			u.as = append([]string{"unshare", "--mount", "--propagation", "slave", "sh", "-ec", `cd "$0"; ` + c.setUp + `; exec "$@"`, u.dir}, u.as...)
			out, code := u.sh("$um mount " + c.flags + " --image img:base b")
			if code != c.code || !strings.Contains(out, c.says) || strings.Count(out, "\n") != 1 {
				t.Errorf("exit %d (want %d), want %q in\n%s", code, c.code, c.says, out)
			}
		})
	}
}

func TestAMountLeftByADeadDaemonIsTakenAway(t *testing.T) {
	imagetest.NeedTools(t, "jq")
	u := plain(t)
	u.box()
	out := u.must(`kill_daemon() { kill -9 $($um status --json | jq ".[] | select(.bundle == \"$PWD/b\") | .pid"); sleep 0.2; ls b/rootfs 2>&1 | sed 's/.*: //'; }
		$um mount --image img:box b; echo kept >b/rootfs/etc/new
		kill_daemon; $um mount b; cat b/rootfs/etc/new
		kill_daemon; $um exec b cat /etc/new; ls b/rootfs
		$um mount b; kill_daemon; $um umount b; ls b/rootfs`)
	dead := "Transport endpoint is not connected\n"
	expect(t, "what is seen", dead+"kept\n"+dead+"kept\n"+dead, out)
}

// What mounts without a PATH unmounts without one too.
func TestAUserWithoutAPathMountsAndUnmounts(t *testing.T) {
	u := plain(t)
	u.must(`PATH=/nonexistent; $um mount --image img:base b; $um umount b`)
}

func TestAMachineWithoutUserNamespacesSaysSo(t *testing.T) {
	u := inUnshare(t) // its own limit can be set to none
	u.box()
	out, code := u.sh("echo 0 >/proc/sys/user/max_user_namespaces; $um exec b true")
	if code != 7 || !strings.Contains(out, "user.max_user_namespaces") || strings.Count(out, "\n") != 1 {
		t.Errorf("exit %d: %s", code, out)
	}
}
