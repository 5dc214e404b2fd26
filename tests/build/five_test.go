package build

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// fiveSpec has each key, and its targets in an order that is not the one to build in.
const fiveSpec = `service:
  base: root
  layers: step
  copy:
    - conf/ /etc/service
    - "'name with blanks' /etc/service/"
    - { from: program, source: /src/program, dest: /usr/bin/, mode: "0755", owner: "1:1" }
  run:
    - |
      echo "service:x:100:100::/var/lib/service:/bin/sh" >>/etc/passwd
      mkdir -p /var/lib/service
      chown 100:100 /var/lib/service
    - rm -r /etc/service/old
  entrypoint: /usr/bin/program --config "/etc/service/a b"
  cmd: [one, "two three"]
  env: {LEVEL: "${{level:3}}", PATH: /usr/bin:/bin}
  workdir: /var/lib/service
  user: service
  labels: [kind=test]
  volumes: /var/lib/service
  ports: [8080/tcp, 9090]
  author: Somebody
  annotations: {org.example.note: made}
program:
  base: tools
  copy: src /src
  env: {CFLAGS: -O2}
  run: |
    test "$CFLAGS" = -O2
    cat /src/part1 /src/part2 >/src/program
tools:
  base: root
  run: ./script.sh
  pre: |
    test -d "$ROOTFS/bin"
    echo $UMOCI_MOUNT_TARGET >from-pre
    echo made by pre >"$ROOTFS/pre"
  post: rm -f "$ROOTFS/tmp/rubbish"
root:
  expand: root.tar.gz
both:
  base: service
  copy:
    - { from: tools, source: /, dest: /tools }
`

func fiveWorld(t *testing.T) *world {
	t.Helper()
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "umoci", "runc")
	return newWorld(t, map[string]string{
		"spec.yaml": fiveSpec, "root.tar.gz": busyboxTar(t), "conf/a b": "config\n", "conf/old": "old\n",
		"name with blanks": "blanks\n", "src/part1": "#!/bin/sh\n", "src/part2": "echo program \"$@\" in $PWD as $(id -u) level $LEVEL\n",
		"script.sh": "#!/bin/busybox sh\necho tool >/bin/tool\ntouch /tmp/rubbish\necho shown 1>&2\n",
	})
}

// What comes out is looked at in stock umoci's unpacking, and run by runc.
func TestFiveTargetsAreBuiltAndRun(t *testing.T) {
	t.Parallel()
	imagetest.NeedTools(t, "jq")
	w := fiveWorld(t)
	out := w.must("build", "--set", "level=7", "spec.yaml")
	contains(t, "the output", out, "tools | shown", "service: tagged service-", "program: copy: not cached: it was not built before")
	rootfs := w.unpacked("service")
	expect(t, "a copied file", "config\n", fileContent(t, filepath.Join(rootfs, "etc/service/a b")))
	expect(t, "one with blanks", "blanks\n", fileContent(t, filepath.Join(rootfs, "etc/service/name with blanks")))
	got := env.MustCommand(t, "stat", "-c", "%u:%g %a %n", rootfs+"/usr/bin/program", rootfs+"/var/lib/service", rootfs+"/etc/service")
	expect(t, "owners", "1:1 755 R/usr/bin/program\n100:100 755 R/var/lib/service\n0:0 755 R/etc/service\n", strings.ReplaceAll(got, rootfs, "R"))
	for _, gone := range []string{"etc/service/old", "etc/resolv.conf", ".umoci-mount", "pre", "tmp/rubbish"} {
		if _, err := os.Lstat(filepath.Join(rootfs, gone)); err == nil {
			t.Errorf("service has /%s", gone)
		}
	}
	_, m, c := imagetest.Manifest(t, w.path("oci"), "service")
	expect(t, "layers", "4", fmt.Sprint(len(m.Layers))) // root's, copy, two of run
	expect(t, "annotation", "made", m.Annotations["org.example.note"])
	expect(t, "config", `["/usr/bin/program" "--config" "/etc/service/a b"] ["one" "two three"] ["LEVEL=7" "PATH=/usr/bin:/bin"] `+
		`/var/lib/service service map[kind:test] [/var/lib/service] [8080/tcp 9090] Somebody`,
		fmt.Sprintf("%q %q %q %s %s %v %v %v %s", c.Config.Entrypoint, c.Config.Cmd, c.Config.Env, c.Config.WorkingDir, c.Config.User,
			c.Config.Labels, slices.Collect(maps.Keys(c.Config.Volumes)), slices.Sorted(maps.Keys(c.Config.ExposedPorts)), c.Author))
	contains(t, "history", fmt.Sprint(c.History[len(c.History)-1].CreatedBy), "umoci-mount build service: entrypoint")
	_, tools, _ := imagetest.Manifest(t, w.path("oci"), "tools")
	expect(t, "layers of a target with hooks", "2", fmt.Sprint(len(tools.Layers)))
	expect(t, "what pre did on the host", "tools\n", fileContent(t, w.path("from-pre")))
	expect(t, "what pre did in the image", "made by pre\n", fileContent(t, filepath.Join(w.unpacked("both"), "tools/pre")))
	expect(t, "what it prints", "program --config /etc/service/a b one two three in /var/lib/service as 100 level 7\n", w.runs("service"))
}

// runs is what an image prints under runc, unpacked by stock umoci.
func (w *world) runs(tag string) string {
	w.t.Helper()
	return w.sh(`rm -rf b; /usr/bin/umoci unpack --image oci:` + tag + ` b
		jq '.process.terminal = false' b/config.json >c; mv c b/config.json
		runc --root "$PWD/state" run -b b umoci-mount-build-$$; rm -rf b`)
}

func TestASecondRunIsAllCacheAndOthersSayWhyNot(t *testing.T) {
	t.Parallel()
	w := fiveWorld(t)
	w.sh(`sed -i '/^  pre/,/^  post/d' spec.yaml`) // hooks run every time
	w.must("build", "spec.yaml")
	start := time.Now()
	out := w.must("build", "spec.yaml")
	if n := strings.Count(out, ": cached\n"); n != 5 || strings.Contains(out, "not cached") {
		t.Errorf("of five targets %d are cached:\n%s", n, out)
	}
	t.Logf("the second run took %v", time.Since(start))
	for _, c := range []struct {
		what, change string
		args         []string
		want         []string
	}{
		{"a file that is copied", "echo more >>src/part2", nil, []string{
			"root: cached", "tools: cached", "program: copy: not cached: its files changed", "service: copy: not cached: its files changed",
			"both: copy: not cached: the base changed"}},
		{"the time of a file", "touch src/part2", nil, []string{"program: cached", "service: cached", "both: cached"}},
		{"the text of a later step", "sed -i 's/rm -r/rm -rf/' spec.yaml", nil, []string{
			"program: cached", "service: copy: cached", "service: run 1: cached", "service: run 2: not cached: its text changed"}},
		{"the environment", "sed -i s/-O2/-O3/ spec.yaml", nil, []string{"program: copy: cached", "program: run: not cached: its text changed"}},
		{"the config", "sed -i s/Somebody/Another/ spec.yaml", nil, []string{"service: run 1: cached", "service: run 2: cached", "both: copy: not cached: the base changed"}},
		{"a base", "sed -i 's/echo tool/echo tools/' script.sh", nil, []string{"root: cached", "tools: run: not cached: its files changed", "program: copy: not cached: the base changed"}},
		{"nothing, without the cache", ":", []string{"--no-cache", "--target", "root"}, []string{"root: expand: not cached: --no-cache"}},
	} {
		w.sh(c.change)
		out := w.must(append(append([]string{"build"}, c.args...), "spec.yaml")...)
		contains(t, "after a change of "+c.what+" the output", out, c.want...)
		if strings.Contains(out, "root: expand: not") && c.args == nil {
			t.Errorf("after a change of %s the root is built again", c.what)
		}
	}
}

func TestTheCachesImagesOutliveGc(t *testing.T) {
	t.Parallel()
	w := fiveWorld(t)
	w.must("build", "spec.yaml")
	w.sh(`for tag in $("` + env.Bin + `" ls --layout oci); do "` + env.Bin + `" rm --image oci:$tag; done`)
	w.must("gc", "--layout", "oci")
	out := w.must("build", "--target", "root", "spec.yaml")
	contains(t, "after gc the output", out, "root: cached")
	w.must("fsck", "--layout", "oci")
	w.sh(`rm oci/.build-umoci-mount.json
		for tag in $("` + env.Bin + `" ls --layout oci); do "` + env.Bin + `" rm --image oci:$tag; done`)
	w.must("gc", "--layout", "oci")
	blobs, err := filepath.Glob(w.path("oci/blobs/sha256/*"))
	if err != nil || len(blobs) > 0 {
		t.Errorf("without the cache's file gc left %d blobs, %v", len(blobs), err)
	}
	contains(t, "the next output", w.must("build", "--target", "root", "spec.yaml"), "root: expand: not cached")
}

func TestTheSameEpochGivesTheSameDigests(t *testing.T) {
	t.Parallel()
	w := fiveWorld(t)
	w.env = []string{"SOURCE_DATE_EPOCH=1600000000"}
	w.must("build", "spec.yaml")
	first := w.sh("cat oci/index.json; rm -r oci")
	w.sh("sleep 1.1; touch conf/* src/*")
	w.must("build", "--jobs", "1", "spec.yaml")
	expect(t, "index.json", first, w.sh("cat oci/index.json"))
	contains(t, "the tags", first, `"service-2020-09-13_1"`)
	contains(t, "the second run", w.must("build", "spec.yaml"), "service: cached")
	w.env = []string{"SOURCE_DATE_EPOCH=1600000001"}
	contains(t, "another epoch's run", w.must("build", "spec.yaml"), "root: expand: not cached: SOURCE_DATE_EPOCH changed")
}

func TestStepsRunUnderEachRuntime(t *testing.T) {
	t.Parallel()
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "crun", "unshare")
	for _, runtime := range []string{"runc", "crun", "builtin"} {
		t.Run(runtime, func(t *testing.T) {
			imagetest.NeedTools(t, "runc")
			w := newWorld(t, map[string]string{"root.tar.gz": busyboxTar(t), "spec.yaml": `a:
  expand: root.tar.gz
  run:
    - |
      test "$(id -u):$(id -g)" = 0:0; test "$PWD" = /; test "$HOME" = /root
      test -c /dev/null; echo x >/dev/null; head -c 1 /dev/urandom >/dev/null; test -e /dev/stdin
      test -d /proc/self; test -d /sys/kernel; test -s /etc/resolv.conf; test -d /.umoci-mount
      if echo x 2>/dev/null >/etc/resolv.conf; then exit 1; fi
      if test -e /proc/1/root/usr/bin/umoci; then exit 1; fi
      mknod /node c 7 8; chown 5:6 /node; echo all is well
    - exit 0
  layers: step
`})
			line := []string{env.Bin, "build", "--runtime", runtime, "spec.yaml"}
			const unified = "/sys/fs/cgroup/unified"
			if _, err := os.Stat(unified); err == nil && runtime == "crun" {
				// It refuses machines with cgroups of both versions: show it those of one.
				line = append([]string{"unshare", "--mount", "sh", "-c", "umount " + unified + ` && exec "$0" "$@"`}, line...)
			}
			out := env.MustCommand(t, "sh", append([]string{"-ec", `cd "$0"; exec "$@"`, w.dir}, line...)...)
			contains(t, "the output", out, "a | all is well\n")
			got := w.must("diff", "--image", "oci:a", "a")
			expect(t, "difference of an image with itself", "", got)
			contains(t, "the tree", w.must("tree", "--image", "oci:a", "/node"), "crw-r--r--", " 5:6 ", " 7:8 ", " /node\n")
			for _, gone := range []string{"/etc/resolv.conf", "/.umoci-mount"} {
				if r := w.run("tree", "--image", "oci:a", gone); r.Code != imagetest.CodeNotFound {
					t.Errorf("%s is in the image: %s", gone, r.Stdout)
				}
			}
		})
	}
}
