package rootless

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// ways are how a program can be root of an image.
var ways = []struct {
	name string
	user func(*testing.T) *user
	// before and after stand around what uses the bundle b, which is made and is
	// not mounted.
	before, after string
	exec          string // flags
	ids           string // /proc/self/uid_map, blanks removed
}{
	{"root, mounted", asRoot, "$um mount b", "$um umount b", "", "004294967295"},
	{"root, not mounted", asRoot, ":", ":", "", "004294967295"},
	{"one id, mounted", plain, "$um mount b", "$um umount b", "", "0655341"},
	{"one id, not mounted", plain, ":", ":", "", "0655341"},
	{"one id though there is a range", ranged, ":", ":", "--ids one", "0655341"},
	{"one id, real ids mounted", plain, "$um mount --ids real b", "$um umount b", "", "0655341"},
	{"a range, but mounted", ranged, "$um mount b", "$um umount b", "", "0655341"},
	{"a range", ranged, ":", ":", "", "0655341110000065536"},
}

func asRoot(t *testing.T) *user {
	t.Helper()
	return newUser(t, 0, "env")
}

// ranged is a plain user with a range of ids in /etc/subuid and /etc/subgid.
func ranged(t *testing.T) *user {
	t.Helper()
	imagetest.NeedTools(t, "newuidmap", "unshare")
	u := plain(t)
	sub := filepath.Join(u.dir, "sub")
	if err := os.WriteFile(sub, []byte("65534:100000:65536\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	u.as = append([]string{
		"unshare", "--mount", "--propagation", "slave", "sh", "-ec",
		`mount --bind "$0" /etc/subuid; mount --bind "$0" /etc/subgid; exec "$@"`, sub,
	}, u.as...)
	return u
}

// box gives the user an image "img:box" with busybox and the program act in /bin, and a
// bundle b of it, unmounted.
func (u *user) box() {
	u.t.Helper()
	layout := boxLayout(u.t)
	own := filepath.Join(u.dir, "img")
	owner := fmt.Sprintf("%d:%d", u.uid, u.uid)
	env.MustCommand(u.t, "sh", "-ec", `rm -r "$1"; cp -r "$0" "$1"; chown -R "$2" "$1"`, layout, own, owner)
	u.must(`$um mount --no-mount --image img:box b`)
}

// boxLayout makes the image once.
func boxLayout(t *testing.T) string {
	t.Helper()
	layout := filepath.Join(env.Dir, "box")
	if _, err := os.Stat(layout); err == nil {
		return layout
	}
	dir := t.TempDir()
	act := filepath.Join(dir, "act")
	build := exec.Command("go", "build", "-o", act, "./testdata/act")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build testdata/act: %v\n%s", err, out)
	}
	image := imagetest.Image{Tag: "base", Layers: []imagetest.Layer{{Text: baseLayer}}}
	if err := imagetest.WriteLayout(filepath.Join(dir, "img"), image); err != nil {
		t.Fatal(err)
	}
	env.MustCommand(t, "sh", "-ec", `cd "$0"; "$1" mount --image img:base a
		cp "$(command -v busybox)" a/rootfs/bin/busybox; cp act a/rootfs/bin/act
		for n in $(busybox --list); do [ $n = busybox ] || ln -s busybox a/rootfs/bin/$n; done
		"$1" repack --image img:box a; "$1" umount a; mv img "$2"`, dir, env.Bin, layout)
	return layout
}

// asRootDoes is what a program does that is root of an image.
const asRootDoes = `
	cd /etc
	touch new; chown 8:12 new; chmod 4711 new
	mkdir dir; chown mail:mail dir; chmod 2775 dir; touch dir/inherits
	ln -s nowhere link2; chown -h 5:5 link2
	mknod /dev.null c 1 3; mknod /sda b 8 0; mkfifo /fifo; chown 1:1 /fifo
	umask 077; act mknod /dev.umask 5 1 x; umask 022
	mv /usr/bin/su /usr/bin/sudo; chown 0:4 /usr/bin/sudo; chmod 4755 /usr/bin/sudo
	cp /etc/shadow /etc/copy
	cd /etc; act setxattr passwd trusted.a value fsetxattr group security.b value createxattr group trusted.c v \
		removexattr passwd trusted.a lsetxattr passwd trusted.d v fremovexattr group trusted.c
	touch x1 x2 x3; act chown x1 33 33 fchown x2 33 34 fchownat x3 -1 35 fchown-removed copy 36 36
	cd ..; act chown etc/../etc/./x1 44 -1 chown /bin/../etc/x1 -1 45
	su mail -c 'touch /tmp/mine; mkdir /tmp/dir; ln -s a /tmp/link; sh -c "touch /tmp/dir/mine"'
	act become 33 34 touch /tmp/33
	su mail -c "sh -c \"(sleep 0.3; touch /tmp/orphans) &\" </dev/null >/dev/null 2>&1"; sleep 0.6
`

const asRootDid = `0 4711 8:12 etc/new
5 2775 8:12 etc/dir
0 644 0:12 etc/dir/inherits
2 777 5:5 etc/link2
3 644 0:0 dev.null 1,3
4 644 0:0 sda 8,0
6 644 1:1 fifo
3 600 0:0 dev.umask 5,1
0 4755 0:4 usr/bin/sudo
0 644 0:0 etc/passwd trusted.d=76
0 644 0:0 etc/group security.b=76616c7565
0 644 44:45 etc/x1
0 644 33:34 etc/x2
0 644 0:35 etc/x3
0 644 8:12 tmp/mine
5 755 8:12 tmp/dir
2 777 8:12 tmp/link
0 644 8:12 tmp/dir/mine
0 644 33:34 tmp/33
0 644 8:12 tmp/orphans
0 0 0:0 usr/bin/.wh.su
`

// The kernel refuses the path; those who look it up for it go on.
func TestAPathBelowAFileIsRefusedAndTheNextOneIsNot(t *testing.T) {
	u := plain(t)
	u.box()
	out := u.must(`$um exec --ids one b -- sh -c 'cd /etc
		for i in 1 2 3 4 5 6 7 8; do act fchownat-below passwd 1 1; done; chown 8:12 group; stat -c %u:%g group shadow'`)
	expect(t, "the program", strings.Repeat("fchownat-below: not a directory\n", 8)+"8:12\n0:42\n", out)
}

func TestAProgramIsTheImagesRoot(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			u := way.user(t)
			u.box()
			out := u.must(way.before + "; $um exec " + way.exec + ` b -- sh -c '` + strings.ReplaceAll(asRootDoes, "'", `'\''`) + `'
				$um exec ` + way.exec + ` b -- sh -c 'cat /proc/self/uid_map; id -u; stat -c %u:%g /etc/new'
				` + way.after + "; $um repack --image img:new b")
			expect(t, "what is seen", way.ids+"08:12", strings.NewReplacer(" ", "", "\n", "").Replace(out))
			got := strings.Split(u.newLayer("new", ".", "etc", "usr/bin", "tmp"), "\n")
			expect(t, "the layer", sorted(strings.Split(asRootDid, "\n")), sorted(got))
		})
	}
}

func TestExitCodesOfPrograms(t *testing.T) {
	u := plain(t)
	u.box()
	u.must("$um mount b")
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"b true", 0, ""},
		{"b -- sh -c 'exit 7'", 7, ""},
		{"b sh -c 'kill -9 $$'", 137, ""},
		{"b sh -c 'kill -TERM $$'", 143, ""},
		{"b no-such-program", 127, "no-such-program"},
		{"b /etc/passwd", 126, "/etc/passwd"},
		{"b /etc", 126, "/etc"},
		{"b /no/such", 127, "/no/such"},
		{"no-bundle true", imagetest.CodeNotFound, "no-bundle"},
		{"-u nobody b true", imagetest.CodeImage, `"nobody"`},
		{"-w /nowhere b true", imagetest.CodeNotFound, "/nowhere"},
		{"--ids many b true", imagetest.CodeUsage, "auto, range or one"},
		{"--ids range b true", 7, "no range of ids"},
		{"--network x b true", imagetest.CodeUsage, "host or none"},
	} {
		out, code := u.sh("$um exec " + c.args)
		lines := 0
		if c.says != "" {
			lines = 1
		}
		if code != c.code || !strings.Contains(out, c.says) || strings.Count(out, "\n") != lines {
			t.Errorf("exec %s: exit %d (want %d), want %q in\n%s", c.args, code, c.code, c.says, out)
		}
	}
	u.must("$um umount b")
}

func TestWhatAProgramSees(t *testing.T) {
	for _, way := range ways[:4] {
		t.Run(way.name, func(t *testing.T) {
			u := way.user(t)
			u.box()
			out := u.must(way.before + `
			run() { $um exec ` + way.exec + ` "$@"; }
			run -e A=b -e HOME b sh -c 'echo $A $HOME $PATH' | sed "s|$HOME|home|"
			run -u mail b sh -c 'pwd; id -u; id -g; echo $HOME'
			run -w /var/spool b pwd
			run b find /etc -user mail -name passwd
			echo in | run b cat
			run b sh -c 'echo out; echo err >&2' 2>&1 >/dev/null
			run b sh -c 'ls /dev | tr "\n" " "; echo; echo x >/dev/null; head -c 4 /dev/urandom | wc -c; test -e /proc/1/stat && test -d /sys/kernel && echo mounts'
			run b sh -c '[ $(ps | wc -l) -lt 8 ] && echo few'
			run b sh -c 'cat /etc/resolv.conf | wc -l; echo x >>/etc/resolv.conf || echo refused' 2>/dev/null | tail -1
			run --network none b ifconfig
			run --tmpfs b sh -c 'echo lost >/tmp/lost; ls /tmp'
			run b ls /tmp
			echo 'echo $0 | sed "s|.*/||"' | $um shell ` + way.exec + ` b
			` + way.after + `; $um diff b`)
			expect(t, "what is seen", strings.Join([]string{
				"b home /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "/", "8", "12", "/var/mail", "/var/spool", "in", "err",
				"fd full null ptmx pts random shm stderr stdin stdout tty urandom zero ", "4", "mounts", "few", "refused", "lost", "sh", "",
			}, "\n"), out)
		})
	}
}

func TestAProgramsIdsAreThoseOfOneThatHasThemAll(t *testing.T) {
	const steps = `act ids seteuid 42 ids seteuid 0 ids become 33 34 ids setuid 0 setgid 0 setuid 33 ids \
			chown /etc/passwd 33 33 chown /tmp/own 33 -1 mknod /tmp/dev 1 3 x setxattr /tmp/own trusted.x y bad-address
		su mail -c "act ids setuid 0; sh -c \"act ids\""`
	var want string
	for _, way := range ways[:4] {
		u := way.user(t)
		u.box()
		out := u.must(way.before + "; $um exec " + way.exec + " b sh -c '" + strings.ReplaceAll(steps, "'", `'\''`) + "'; " + way.after)
		if want == "" {
			want = out
			if strings.Count(out, "uid 33 33 33 gid 34 34 34 groups [34 35]") != 2 || !strings.Contains(out, "setuid: operation not permitted") {
				t.Errorf("root's own: %s", out)
			}
			continue
		}
		expect(t, way.name, want, out)
	}
}

func TestSignalsReachTheProgramAndNothingIsLeft(t *testing.T) {
	for _, way := range ways[1:3] {
		t.Run(way.name, func(t *testing.T) {
			u := way.user(t)
			u.box()
			u.must(way.before + `
			for sig in TERM INT USR1; do
				$um exec ` + way.exec + ` b sh -c "trap 'echo got $sig; exit 3' $sig; echo ready >/etc/ready; while :; do sleep 0.05; done" >out &
				for i in $(seq 200); do [ -s b/rootfs/etc/ready ] || [ -s b/upper/etc/ready ] && break; sleep 0.05; done
				sleep 0.1; kill -$sig $!
				code=0; wait $! || code=$?
				[ "$code $(cat out)" = "3 got $sig" ] || { echo "$sig: $code"; cat out; exit 1; }
				$um exec ` + way.exec + ` b rm /etc/ready
			done
			$um exec ` + way.exec + ` b sh -c 'sleep 1234 & sleep 1234 & true'
			` + way.after)
			if left := leftovers(t, u.dir, "sleep\x001234"); left != "" {
				t.Errorf("left behind: %s", left)
			}
		})
	}
}

// A signal that comes while the processes in between begin ends exec as it would have ended
// the program.
func TestAnExecThatIsSignalledAsItBeginsEndsByThat(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			u := way.user(t)
			u.box()
			u.must(way.before + `
			for stage in enter-bundle bundle-init; do
				$um exec ` + way.exec + ` b sleep 1357 2>err &
				until cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' ' | grep -q "$stage[a-z-]* \($PWD/\)\?b "; do :; done
				kill -TERM $!
				code=0; wait $! || code=$?
				[ "$code $(cat err)" = "143 " ] || { echo "$stage: $code"; cat err; exit 1; }
			done
			` + way.after)
			if left := leftovers(t, u.dir, "sleep\x001357"); left != "" {
				t.Errorf("left behind: %s", left)
			}
		})
	}
}

// Whichever process is killed, all of them end, and the mount that was made for them.
func TestWhoeverIsKilledNothingIsLeft(t *testing.T) {
	for _, victim := range []string{"exec", "enter-bundle", "bundle-init", "serve-mount"} {
		t.Run(victim, func(t *testing.T) {
			u := plain(t)
			u.box()
			u.sh(`$um exec b sh -c 'echo ready >/etc/ready; sleep 4321' >/dev/null 2>&1 &
			for i in $(seq 200); do [ -s b/upper/etc/ready ] && break; sleep 0.05; done
			for p in /proc/[0-9]*; do
				if tr '\0' ' ' <$p/cmdline 2>/dev/null | grep -q "^[^ ]*umoci-mount ` + victim + ` \($PWD/\)\?b "; then kill -9 ${p#/proc/}; fi
			done
			wait`)
			if left := leftovers(t, u.dir, "sleep\x004321"); left != "" {
				t.Errorf("left behind: %s", left)
			}
			u.must(`$um mount b; cat b/rootfs/etc/ready; $um umount b`)
		})
	}
}

// leftovers waits for the end of processes that name a directory or have mark in their
// command line, and names those that stay.
func leftovers(t *testing.T, dir, mark string) string {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left = nil
		lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range lines {
			if data, err := os.ReadFile(l); err == nil && (strings.Contains(string(data), dir+"/") || strings.Contains(string(data), mark)) {
				left = append(left, l+" "+strings.ReplaceAll(string(data), "\x00", " "))
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return strings.Join(left, "\n")
		}
	}
}

// The notes of mountpoints that were made become shorter without a moment in which the tail
// of longer ones stands behind them: a kill there kept exec from the bundle for good.
func TestNotesOfMountpointsAreCutByNoCallOfTheirOwn(t *testing.T) {
	imagetest.NeedTools(t, "strace")
	u := asRoot(t)
	u.box()
	out, code := u.sh(`$um mount b; code=0
		strace -f -qq -o /dev/null -e inject=ftruncate:signal=KILL $um exec b true || code=$?
		$um exec b true || code=$?
		$um umount b; exit $code`)
	if code != 0 {
		t.Errorf("exit %d: %s", code, out)
	}
}

func TestAProgramOnATerminal(t *testing.T) {
	imagetest.NeedTools(t, "script")
	for _, way := range ways[1:3] {
		u := way.user(t)
		u.box()
		out, code := u.sh(way.before + `
			code=0; script -qec "$um exec b sh -c 'test -t 0 && test -t 1 && echo terminal; kill -TSTP \$\$; exit 5'" /dev/null </dev/null || code=$?
			` + way.after + `; exit $code`)
		if code != 5 || strings.TrimSpace(out) != "terminal" {
			t.Errorf("%s: exit %d: %q", way.name, code, out)
		}
	}
}

func TestABundleWithAProgramInItIsBusy(t *testing.T) {
	u := plain(t)
	u.box()
	out, code := u.sh(`$um mount b; mkfifo go
		$um exec b sh -c 'echo ready >/etc/ready; read line' <go & exec 9>go
		while ! [ -s b/rootfs/etc/ready ]; do sleep 0.05; done
		code=0; $um umount b || code=$?
		$um exec b rm /etc/ready
		exec 9>&-; wait; $um umount b
		$um exec b sh -c 'echo ready >/etc/ready; read line' <go & exec 9>go
		while ! [ -s b/upper/etc/ready ]; do sleep 0.05; done
		for command in "umount b" "mount b" "exec --ids one b true"; do $um $command 2>&1 || echo "exit $?"; done
		exec 9>&-; wait; exit $code`)
	if code != 6 || !strings.Contains(out, "held by") || strings.Count(out, "another mount namespace") != 1 || !strings.Contains(out, "(mount namespace)") ||
		strings.Count(out, "exit 6\n") != 2 || strings.Count(out, "exit 5\n") != 1 {
		t.Errorf("exit %d: %s", code, out)
	}
}

// Several programs at once, in several runs: each makes, gives away, asks and removes, and
// finds its own. The mountpoints are there for all of them, and then for none.
func TestManyProgramsAtOnce(t *testing.T) {
	const storm = `i=0; while [ $i -lt 12 ]; do
		d=/tmp/$1-$2-$i; mkdir $d; touch $d/a; chown $i:$1 $d/a; mknod $d/n c 1 $i
		[ "$(stat -c %u:%g $d/a)" = $i:$1 ] && [ "$(stat -c %T $d/n)" = $(printf %x $i) ] || echo "$d is wrong"
		su mail -c "touch /tmp/m-$1-$2-$i; id -u" >/dev/null; [ "$(stat -c %u /tmp/m-$1-$2-$i)" = 8 ] || echo "$d: mail has nothing"
		[ -e /proc/self/stat ] && [ -d /sys/kernel ] && [ -c /dev/null ] || echo "$d: no /proc"
		rm -r $d; i=$((i+1)); done`
	u := plain(t)
	u.box()
	out := u.must(`$um mount b; rmdir b/rootfs/proc b/rootfs/sys b/rootfs/dev
		cat >b/rootfs/storm <<'EOF'
` + storm + `
EOF
		for run in 1 2 3; do $um exec b sh -c "sh /storm $run 1 & sh /storm $run 2 & wait" & done; wait
		rm b/rootfs/storm; ls b/rootfs/tmp | wc -l; ls b/rootfs
		$um umount b`)
	expect(t, "what is left", "72\nbin\netc\nroot\ntmp\nusr\nvar\n", out)
}

// What a bundle's own mount shows is no matter to a program that has its own.
func TestAProgramSeesTheImagesIdsWhateverTheMountShows(t *testing.T) {
	for name, c := range map[string]struct {
		user  func(*testing.T) *user
		flags string
	}{
		"root's mapped":       {asRoot, "--uid-map 0:100000:65536 --gid-map 0:100000:65536"},
		"root's squashed":     {asRoot, "--rootless"},
		"a user's mapped":     {ranged, "--squash --uid-map 0:65534:1 --gid-map 0:65534:1"},
		"a user's squashed":   {ranged, "--ids squashed"},
		"one id's real":       {plain, "--ids real"},
		"one id's, read-only": {plain, "--read-only"},
	} {
		t.Run(name, func(t *testing.T) {
			u := c.user(t)
			u.box()
			out := u.must(`$um mount ` + c.flags + ` --image img:box m; $um umount m
				$um exec m sh -c 'stat -c %u:%g /etc/shadow /etc/passwd; touch /etc/new && chown 8:12 /etc/new' 2>/dev/null || echo refused
				$um repack --image img:new m`)
			want, layer := "0:42\n0:0\n", "0 644 8:12 etc/new\n"
			if strings.Contains(c.flags, "read-only") {
				want, layer = want+"refused\nnothing has changed: img:new has no new layer\n", ""
			}
			expect(t, "what is seen", want, out)
			if layer != "" {
				expect(t, "the layer", layer, u.newLayer("new", ".", "etc"))
			}
		})
	}
	u := asRoot(t)
	u.box()
	out, code := u.sh(`$um mount --uid-map 0:100000:65536 --gid-map 0:100000:65536 --image img:box m; c=0; $um exec m true || c=$?; $um umount m; exit $c`)
	if code != imagetest.CodeState || !strings.Contains(out, "maps") {
		t.Errorf("a mapped mount: exit %d: %s", code, out)
	}
}
