package commands

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

func TestWhoHoldsAMountIsNamedAndNobodyElse(t *testing.T) {
	imagetest.NeedFuse(t)
	dir := newLayout(t)
	b := env.Mount(t, filepath.Join(dir, "img:a"))
	sleep := exec.Command("sleep", "60")
	sleep.Dir = b.Rootfs()
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	r := env.Run(t, "umount", b.Path)
	want := fmt.Sprintf("umoci-mount: %s is busy: held by %d sleep (cwd)\n", b.Rootfs(), sleep.Process.Pid)
	if r.Code != imagetest.CodeBusy || r.Stderr != want {
		t.Errorf("exit %d: %q, want %q", r.Code, r.Stderr, want)
	}
	if err := sleep.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = sleep.Wait()
	b.Umount(t)
}

// Whoever waits for a mount's answer cannot be interrupted.
func TestADaemonThatHangsIsNotWaitedForForEver(t *testing.T) {
	imagetest.NeedFuse(t)
	dir := newLayout(t)
	b := env.Mount(t, filepath.Join(dir, "img:a"))
	var mounts []struct {
		Bundle string
		PID    int
	}
	err := json.Unmarshal([]byte(env.Must(t, "status", "--json")), &mounts)
	var daemon *os.Process
	for _, m := range mounts {
		if m.Bundle == b.Path {
			daemon, err = os.FindProcess(m.PID)
		}
	}
	if err != nil || daemon == nil {
		t.Fatal(mounts, err)
	}
	if err := daemon.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer b.Umount(t)
	defer func() { _ = daemon.Signal(unix.SIGCONT) }()
	for _, command := range []string{"diff", "repack --image img:b"} {
		r := sh(t, dir, "timeout -s KILL 30 $um "+command+" "+b.Path)
		if r.Code != imagetest.CodeFailure || lines(r.Stderr, "ask the mount daemon", "timeout") != 1 {
			t.Errorf("%s: exit %d: %s", command, r.Code, r.Stderr)
		}
	}
}

// It is in no mount table then, and other namespaces have nothing to do with it.
func TestADetachedMountThatIsInUseIsSaidToBeThat(t *testing.T) {
	imagetest.NeedFuse(t)
	dir := newLayout(t)
	r := sh(t, dir, `$um mount --image img:a b; cd b/rootfs; sleep 60 & cd ../..
		$um umount --lazy b; daemon=$(flock -n b/.umoci-mount/mounted true || echo held)
		for command in umount mount; do code=0; $um $command b || code=$?; echo $command $code $daemon; done
		kill $!; wait $! || true; while ! flock -n b/.umoci-mount/mounted true; do sleep 0.05; done
		$um mount b; $um umount b`)
	if r.Code != 0 || r.Stdout != "umount 6 held\nmount 5 held\n" ||
		lines(r.Stderr, "was unmounted, but a program still uses the mount") != 1 || lines(r.Stderr, "already mounted, by process") != 1 {
		t.Errorf("exit %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
}

// What a bundle needs stays, until the bundle goes.
func TestGCKeepsWhatABundleNeedsThatWasNeverMounted(t *testing.T) {
	imagetest.NeedFuse(t)
	for name, make := range map[string]string{
		"mount --no-mount": "$um mount --no-mount --image img:a b; $um rm --image img:a",
		// The other layout is the bundle's from then on.
		"repack to a copy": "$um mount --no-mount --image img:a b; $um repack --refresh-bundle --image copy:a b; rm -r img; mv copy img; $um rm --image img:a; ln -s img copy",
	} {
		t.Run(name, func(t *testing.T) {
			dir := newLayout(t)
			mustSh(t, dir, "echo content >file; $um insert --image img:a file /file; cp -r img copy;"+make)
			expect(t, "with the bundle, and without", "content\n0\n", mustSh(t, dir, `$um gc --layout img >/dev/null
				$um mount b; cat b/rootfs/file; $um umount b
				rm -r b; $um gc --layout img >/dev/null; ls img/blobs/sha256 | wc -l`))
		})
	}
}

// A command that fails leaves every change that was there.
func TestAFreshMountOfAnImageThatCannotBeLeavesTheChanges(t *testing.T) {
	imagetest.NeedFuse(t)
	dir := newLayout(t)
	mustSh(t, dir, `$um mount --image img:a b; echo kept >b/rootfs/kept; $um umount b
		$um config --image img:a --tag bad --config.user nobody`)
	if r := sh(t, dir, "$um mount --fresh --image img:bad b"); r.Code != imagetest.CodeImage {
		t.Errorf("exit %d\n%s", r.Code, r.Stderr)
	}
	expect(t, "the bundle", "kept\n", mustSh(t, dir, "$um mount b; cat b/rootfs/kept; $um umount b"))
	expect(t, "a fresh one", "", mustSh(t, dir, "$um mount --fresh --image img:a b; ls b/rootfs; $um umount b"))
}

func TestAPathInABundleIsAnsweredWithTheBundle(t *testing.T) {
	imagetest.NeedFuse(t)
	dir := newLayout(t)
	mustSh(t, dir, "$um mount --image img:a b; mkdir b/rootfs/etc; $um raw unpack --image img:a raw; mkdir raw/etc")
	for path, bundle := range map[string]string{"b/rootfs": "b", "b/rootfs/etc": "b", "b/upper": "b", "raw/etc": "raw"} {
		for _, command := range []string{"umount", "diff", "repack --image img:b", "mount", "exec"} {
			r := sh(t, dir, "$um "+command+" "+path)
			if r.Code != imagetest.CodeNotFound || lines(r.Stderr, "(the bundle is "+filepath.Join(dir, bundle)+")") != 1 {
				t.Errorf("%s %s: exit %d: %s", command, path, r.Code, r.Stderr)
			}
		}
	}
	r := sh(t, dir, "$um diff img")
	if r.Code != imagetest.CodeNotFound || lines(r.Stderr, "(it is an image layout)") != 1 {
		t.Errorf("exit %d: %s", r.Code, r.Stderr)
	}
	mustSh(t, dir, "$um umount b; $um umount raw")
}

func TestABundleWhoseLayoutWasMovedSaysHowToGoOn(t *testing.T) {
	imagetest.NeedFuse(t)
	dir := newLayout(t)
	mustSh(t, dir, "$um mount --image img:a b; echo kept >b/rootfs/kept; $um umount b; mv img moved")
	for _, command := range []string{"mount", "diff", "exec"} {
		r := sh(t, dir, "$um "+command+" b")
		if r.Code != imagetest.CodeNotFound || lines(r.Stderr, filepath.Join(dir, "img"), "mount --image LAYOUT:a BUNDLE names its new place") != 1 {
			t.Errorf("%s: exit %d: %s", command, r.Code, r.Stderr)
		}
	}
	expect(t, "the changes", "kept\nA /kept\nkept\n", mustSh(t, dir, `$um mount --image moved:a b; cat b/rootfs/kept
		$um diff b | grep kept; $um umount b; $um mount b; cat b/rootfs/kept; $um umount b`))
}

// Whatever the machine lacks is found out when the old changes would be gone.
func TestAFreshMountThatDoesNotComeUpLeavesTheBundleAsItWas(t *testing.T) {
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "strace")
	dir := newLayout(t)
	const contents = "ls -A b b/.umoci-mount; find b -type f ! -name log -printf '%P %i %s %T@\\n' | sort"
	mustSh(t, dir, `echo other >other; $um insert --image img:a --tag other other /other
		$um mount --mtree --image img:a b; echo kept >b/rootfs/kept; $um umount b`)
	before := mustSh(t, dir, contents)
	for _, flag := range []string{"", "--foreground"} {
		if r := sh(t, dir, "strace -f -qq -o /dev/null -e inject=bind:error=ENOSPC $um mount --fresh "+flag+" --image img:other b"); r.Code != imagetest.CodeSpace {
			t.Errorf("%s: exit %d\n%s", flag, r.Code, r.Stderr)
		}
		expect(t, "the bundle", before, mustSh(t, dir, contents))
	}
	expect(t, "the changes", "kept\n", mustSh(t, dir, "$um mount b; cat b/rootfs/kept; $um umount b"))
}

func TestAMountThatFailsLeavesTheBundlesOptions(t *testing.T) {
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "strace")
	dir := newLayout(t)
	mustSh(t, dir, "$um mount --image img:a b; $um umount b; cp b/.umoci-mount/state.json before")
	if r := sh(t, dir, "strace -f -qq -o /dev/null -e inject=bind:error=ENOSPC $um mount --read-only --ids squashed b"); r.Code != imagetest.CodeSpace {
		t.Errorf("exit %d\n%s", r.Code, r.Stderr)
	}
	mustSh(t, dir, "cmp before b/.umoci-mount/state.json; $um mknod b /fifo p; $um mount b; echo x >b/rootfs/x; $um umount b")
}

func TestACommandThatIsKilledLeavesNoTemporaryFileForEver(t *testing.T) {
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "strace")
	dir := newLayout(t)
	mustSh(t, dir, `$um cache warm --image img:a
		for again in 1 2; do
			code=0; strace -f -qq -o /dev/null -e inject=renameat:signal=KILL $um mount --no-mount --image img:a b || code=$?
			[ $code = 137 ]; ls -A b | grep '^\.config.json'
		done`)
	expect(t, "files", "./b\n./b/.umoci-mount\n./b/.umoci-mount/lock\n./b/.umoci-mount/state.json\n./b/config.json\n"+
		"./b/rootfs\n./b/umoci.json\n./b/upper\n./b/work\n", mustSh(t, dir, "$um mount --no-mount --image img:a b; find ./b | sort"))
}

// Each of two would else write into the other's tree, and remove it as it fails.
func TestOfTwoExtractionsToOnePathOneIsWholeAndTheOtherIsRefused(t *testing.T) {
	imagetest.NeedTools(t, "strace")
	dir := newLayout(t)
	r := sh(t, dir, `mkdir -p src/dir; for i in 1 2 3; do echo $i >src/dir/$i; done; $um insert --image img:a src /
		slow() { strace -f -qq -o /dev/null -e inject=mkdirat,mkdir:delay_enter=300000 $um unpack --extract --image img:a new/b; }
		one=0; slow 2>one & sleep 0.1; two=0; slow 2>two || two=$?; wait $! || one=$?
		echo $one $two | tr ' ' '\n' | sort; cat one two; cat new/b/rootfs/dir/*; ls new/b | grep -c json`)
	refused := strings.HasPrefix(r.Stdout, "0\n6\n") && lines(r.Stdout, "another command is using the bundle") == 1 ||
		strings.HasPrefix(r.Stdout, "0\n5\n") && lines(r.Stdout, "already exists") == 1 // it came late
	if r.Code != 0 || !refused || !strings.HasSuffix(r.Stdout, "\n1\n2\n3\n2\n") {
		t.Errorf("exit %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
}

// The cache is worth no failure of what does not read from it: cron has no HOME.
func TestABundleOfStockUmociIsRepackedWithoutACacheDirectory(t *testing.T) {
	imagetest.NeedTools(t, "umoci")
	dir := newLayout(t)
	r := sh(t, dir, `[ $(id -u) = 0 ] || rootless=--rootless; $stock unpack $rootless --image img:a b; echo new >b/rootfs/new
		UMOCI_MOUNT_CACHE=/dev/null/none $um repack --image img:b b; $um cat --image img:b /new`)
	if r.Code != 0 || r.Stdout != "new\n" || lines(r.Stderr, "could not be cached") != 1 {
		t.Errorf("exit %d: %s%s", r.Code, r.Stdout, r.Stderr)
	}
}

// After a restart of the machine, say: mount hides the file, and a layer would not have it.
func TestAFileThatWasPutWhereNoMountWasIsNamed(t *testing.T) {
	imagetest.NeedFuse(t)
	for command, at := range map[string]string{"unpack": "b/rootfs", "raw unpack": "b"} {
		t.Run(command, func(t *testing.T) {
			mount := "$um " + command + " --image img:a b"
			mustSh(t, newLayout(t), mount+"; $um umount b; mkdir -p "+at+`/proc; $um repack --image img:new b 2>/dev/null
				echo x >`+at+`/proc/f; if $um repack --image img:new b 2>says; then exit 1; fi; grep -q `+at+`/proc/f says
				`+mount+` 2>says; grep -q `+at+`/proc/f says; $um repack --image img:new b 2>/dev/null; $um umount b
				rm `+at+`/proc/f; `+mount+` 2>says; test ! -s says; $um umount b`)
		})
	}
}
