package build

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// left are what a build has in the work directory of the cache, and what is mounted there.
func left(t *testing.T) []string {
	t.Helper()
	out, err := filepath.Glob(filepath.Join(env.Dir, "cache", "build", "work", "*"))
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, filepath.Join(env.Dir, "cache", "build")) {
			out = append(out, line)
		}
	}
	return out
}

func failingWorld(t *testing.T) *world {
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "runc")
	return newWorld(t, map[string]string{"root.tar.gz": busyboxTar(t), "spec.yaml": `root: {expand: root.tar.gz}
good: {base: root, run: touch /good}
bad:
  base: good
  run:
    - touch /first
    - |
      touch /second
      (exit 7)
      touch /third
`})
}

func TestAStepThatFailsIsNamedWithItsLineAndExitCodeAndNothingIsTagged(t *testing.T) {
	for _, runtime := range []string{"runc", "builtin"} {
		w := failingWorld(t)
		r := w.run("build", "--runtime", runtime, "spec.yaml")
		expect(t, "the message", "umoci-mount: spec.yaml:7:7: target bad: run 2: exit code 7\n", r.Stderr)
		if r.Code != imagetest.CodeStep {
			t.Errorf("exit %d", r.Code)
		}
		if tags := w.tags(); len(tags) > 0 {
			t.Errorf("tags %q are set", tags)
		}
		if l := left(t); len(l) > 0 {
			t.Errorf("left are %q", l)
		}
		w.sh(`sed -i s/exit.7/exit\ 0/ spec.yaml`)
		contains(t, "the mended build", w.must("build", "spec.yaml"), "good: cached", "bad: run 1: cached", "bad: run 2: not cached: it was not built before")
	}
}

func TestAKeptFailureCanBeLookedInto(t *testing.T) {
	w := failingWorld(t)
	r := w.run("build", "--keep-failed", "spec.yaml")
	m := regexp.MustCompile(`mounted at (\S+)/rootfs: look into it, then umoci-mount umount (\S+)\)`).FindStringSubmatch(r.Stderr)
	if m == nil || m[1] != m[2] {
		t.Fatalf("exit %d, %s", r.Code, r.Stderr)
	}
	for name, there := range map[string]bool{"first": true, "second": true, "third": false} {
		if _, err := os.Lstat(filepath.Join(m[1], "rootfs", name)); (err == nil) != there {
			t.Errorf("/%s: %v", name, err)
		}
	}
	w.must("build", "--target", "good", "spec.yaml") // which leaves it alone
	if _, err := os.Lstat(filepath.Join(m[1], "rootfs", "first")); err != nil {
		t.Error(err)
	}
	w.sh(`touch -d 2020-01-01 "` + m[1] + `"/rootfs/first`)
	w.must("cache", "prune", "--max-size", "1GB")
	if _, err := os.Lstat(filepath.Join(m[1], "rootfs", "first")); err != nil {
		t.Errorf("cache prune removed it: %v", err)
	}
	w.must("umount", m[1])
	w.must("build", "--no-cache", "--target", "good", "spec.yaml")
	if l := left(t); len(l) > 0 {
		t.Errorf("left are %q", l)
	}
}

// start runs a build until its output has what is waited for.
func (w *world) start(wait string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	w.t.Helper()
	cmd := exec.Command(env.Bin, append([]string{"build"}, args...)...)
	cmd.Dir = w.dir
	out, err := os.Create(w.path("out"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer out.Close()
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &stderr
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = cmd.Process.Kill() })
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if text, err := os.ReadFile(w.path("out")); err == nil && strings.Contains(string(text), wait) {
			return cmd, &stderr
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%q did not come: %s", wait, stderr.String())
		}
	}
}

// sleepers counts the processes that slowSpec starts.
func sleepers(t *testing.T) (n int) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range lines {
		if data, err := os.ReadFile(name); err == nil && string(data) == "sleep\x001234\x00" {
			n++
		}
	}
	return n
}

const slowSpec = `root: {expand: root.tar.gz}
done: {base: root, run: touch /done}
slow:
  base: done
  run:
    - touch /first
    - |
      echo begun
      trap '' TERM INT
      sleep 1234 &
      while :; do sleep 1; done
beside: {base: done, run: "echo begun too; sleep 1234"}
`

func TestAnInterruptedBuildLeavesNothingAndTheNextGoesOn(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "runc")
	for _, c := range []struct {
		runtime string
		signal  syscall.Signal
	}{{"runc", syscall.SIGINT}, {"runc", syscall.SIGTERM}, {"builtin", syscall.SIGHUP}, {"runc", syscall.SIGKILL}, {"builtin", syscall.SIGKILL}} {
		t.Run(c.runtime+" "+c.signal.String(), func(t *testing.T) {
			w := newWorld(t, map[string]string{"root.tar.gz": busyboxTar(t), "spec.yaml": slowSpec})
			cmd, stderr := w.start("slow | begun", "--jobs", "2", "--runtime", c.runtime, "spec.yaml")
			if sleepers(t) == 0 {
				t.Error("no process sleeps: the test looks for the wrong ones")
			}
			if err := cmd.Process.Signal(c.signal); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if c.signal != syscall.SIGKILL {
				if code := cmd.ProcessState.ExitCode(); code != imagetest.CodeInterrupt {
					t.Errorf("exit %d: %s", code, stderr.String())
				}
				if l := left(t); len(l) > 0 {
					t.Errorf("left are %q", l)
				}
			}
			if tags := w.tags(); len(tags) > 0 {
				t.Errorf("tags %q are set", tags)
			}
			out := w.must("build", "--target", "done", "spec.yaml")
			if c.signal != syscall.SIGKILL {
				contains(t, "the next build", out, "done: cached")
			}
			w.must("build", "--no-cache", "--target", "done", "spec.yaml") // it needs mounts, and so looks for leftovers
			if l := left(t); len(l) > 0 {
				t.Errorf("left after the next build are %q", l)
			}
			if n := sleepers(t); n > 0 {
				t.Errorf("%d processes are left", n)
			}
		})
	}
}

func TestWhatAHookMountsIsSeenAndNotEmptied(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "runc")
	w := newWorld(t, map[string]string{"root.tar.gz": busyboxTar(t), "data/file": "precious\n", "spec.yaml": `root: {expand: root.tar.gz}
mounted:
  base: root
  pre: mount --bind data $ROOTFS/tmp
  run: cp /tmp/file /copied
  post: umount $ROOTFS/tmp
forgotten:
  base: root
  pre: mount --bind data $ROOTFS/tmp
  run: cp /tmp/file /copied
refused:
  base: root
  pre: mount --bind data $ROOTFS/tmp
  copy: spec.yaml /
`})
	w.must("build", "--target", "mounted", "--target", "forgotten", "spec.yaml")
	for _, tag := range []string{"mounted", "forgotten"} {
		expect(t, "what was copied", "precious\n", w.must("cat", "--image", "oci:"+tag, "/copied"))
		if r := w.run("cat", "--image", "oci:"+tag, "/tmp/file"); r.Code != imagetest.CodeNotFound {
			t.Errorf("%s has what was mounted", tag)
		}
	}
	r := w.run("build", "--target", "refused", "spec.yaml")
	if r.Code != imagetest.CodeStep || !strings.Contains(r.Stderr, "a pre hook has mounted") {
		t.Errorf("exit %d, %s", r.Code, r.Stderr)
	}
	expect(t, "the host's file", "precious\n", fileContent(t, w.path("data/file")))
	if l := left(t); len(l) > 0 {
		t.Errorf("left are %q", l)
	}
}

// A mount namespace that somebody makes meanwhile has a copy of every mount.
func TestOtherMountNamespacesDoNotKeepABuild(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "runc", "unshare")
	w := newWorld(t, map[string]string{"root.tar.gz": busyboxTar(t), "spec.yaml": `root: {expand: root.tar.gz}
a: {base: root, run: "echo begun; while [ ! -e /go ]; do sleep 0.1; done"}
`})
	cmd, stderr := w.start("a | begun", "spec.yaml")
	other := exec.Command("unshare", "--mount", "--propagation", "private", "sleep", "4321")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", other.Process.Pid))
		if err == nil && strings.HasPrefix(string(line), "sleep") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("unshare does not begin")
		}
	}
	points, err := filepath.Glob(filepath.Join(env.Dir, "cache/build/work/*/targets/a/rootfs"))
	if err != nil || len(points) != 1 {
		t.Fatalf("%q, %v", points, err)
	}
	if err := os.WriteFile(filepath.Join(points[0], "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, stderr.String())
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("the end took %v", took)
	}
	if l := left(t); len(l) > 0 {
		t.Errorf("left are %q", l)
	}
}

func TestAReaderWhoHasEnoughDoesNotEndABuild(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "runc")
	w := newWorld(t, map[string]string{"root.tar.gz": busyboxTar(t), "spec.yaml": "root: {expand: root.tar.gz}\na: {base: root, run: seq 20000}\n"})
	w.sh(env.Bin + " build spec.yaml | head -n 1 >first")
	if tags := w.tags(); !slices.Contains(tags, "a") {
		t.Errorf("tags are %q", tags)
	}
	if l := left(t); len(l) > 0 {
		t.Errorf("left are %q", l)
	}
}

func TestADiskThatIsFullIsSaidAndNothingIsLeft(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "runc", "unshare")
	w := newWorld(t, map[string]string{"root.tar.gz": busyboxTar(t), "spec.yaml": "root: {expand: root.tar.gz}\nbig: {base: root, run: head -c 6000000 /dev/urandom >/big}\n"})
	w.must("build", "--target", "root", "spec.yaml")
	r := env.Command(t, nil, "unshare", "--mount", "--propagation", "private", "sh", "-ec", `cd "$0"
		mkdir disk; mount -t tmpfs -o size=4m none disk; cp -a oci disk/oci
		code=0; "$1" build --layout disk/oci spec.yaml || code=$?
		"$1" ls --layout disk/oci; "$1" fsck --layout disk/oci >&2; exit $code`, w.dir, env.Bin)
	if r.Code != imagetest.CodeSpace || !strings.Contains(r.Stderr, "no space left on device") || strings.Contains(r.Stdout, "tagged") {
		t.Errorf("exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	if l := left(t); len(l) > 0 {
		t.Errorf("left are %q", l)
	}
}
