package build

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

func TestBuildsInOneLayoutAtOnceDoNotDisturbEachOther(t *testing.T) {
	t.Parallel()
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "runc")
	const builds = 4
	files := map[string]string{"root.tar.gz": busyboxTar(t)}
	for i := range builds {
		files[fmt.Sprintf("%d.yaml", i)] = fmt.Sprintf("same: {expand: root.tar.gz}\nown%d: {base: same, run: echo %d >/file}\n", i, i)
	}
	w := newWorld(t, files)
	w.env = []string{"SOURCE_DATE_EPOCH=1700000000"} // else the same root has a time of its own each
	w.must("init", "--layout", "oci")
	var all sync.WaitGroup
	for i := range builds {
		all.Go(func() {
			if r := w.run("build", fmt.Sprintf("%d.yaml", i)); r.Code != 0 {
				t.Errorf("build %d: exit %d, %s", i, r.Code, r.Stderr)
			}
		})
	}
	all.Wait()
	numbers := 0
	for _, tag := range w.tags() {
		if strings.HasPrefix(tag, "same-") {
			numbers++
		}
	}
	if numbers != builds {
		t.Errorf("%d builds of same are tagged, want %d: %q", numbers, builds, w.tags())
	}
	for i := range builds {
		expect(t, "file", fmt.Sprintf("%d\n", i), w.must("cat", "--image", fmt.Sprintf("oci:own%d", i), "/file"))
	}
	w.must("gc", "--layout", "oci")
	for i := range builds {
		contains(t, "again", w.must("build", fmt.Sprintf("%d.yaml", i)), fmt.Sprintf("own%d: cached", i))
	}
	w.must("fsck", "--layout", "oci")
}

func TestWhatAnotherGcRemovedIsBuiltAgain(t *testing.T) {
	t.Parallel()
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "runc", "umoci")
	w := newWorld(t, map[string]string{"root.tar.gz": busyboxTar(t), "spec.yaml": "root: {expand: root.tar.gz}\ntwo: {base: root, run: [touch /1, touch /2]}\n"})
	w.must("build", "spec.yaml")
	w.sh("/usr/bin/umoci rm --image oci:two; for t in $(/usr/bin/umoci ls --layout oci); do case $t in two-*) /usr/bin/umoci rm --image oci:$t; esac; done; /usr/bin/umoci gc --layout oci")
	out := w.must("build", "spec.yaml")
	contains(t, "the output", out, "root: cached", "two: run 1: not cached: its result is gone from the layout")
	w.must("fsck", "--layout", "oci")
	w.must("cat", "--image", "oci:two", "/2")
}

func TestADamagedRecordOfStepsIsNone(t *testing.T) {
	t.Parallel()
	imagetest.NeedRoot(t)
	for name, damage := range map[string]string{
		"text": `echo no JSON >oci/.build-umoci-mount.json`, "half": `head -c 100 oci/.build-umoci-mount.json >x; mv x oci/.build-umoci-mount.json`,
		"another version": `echo '{"version": 9, "entries": {}}' >oci/.build-umoci-mount.json`, "nothing in it": `echo '{"version": 1, "entries": {"x": null}}' >oci/.build-umoci-mount.json`,
	} {
		w := newWorld(t, map[string]string{"spec.yaml": "a: {copy: spec.yaml x}\n"})
		w.must("build", "spec.yaml")
		w.sh(damage)
		if out := w.must("build", "spec.yaml"); !strings.Contains(out, "a: copy: not cached") {
			t.Errorf("%s: %s", name, out)
		}
		contains(t, name+", and again", w.must("build", "spec.yaml"), "a: cached")
	}
}

// The layout's owner can go on with what root has built in it.
func TestRootLeavesTheLayoutToItsOwner(t *testing.T) {
	t.Parallel()
	imagetest.NeedRoot(t)
	w := newWorld(t, map[string]string{"spec.yaml": "a: {copy: spec.yaml x}\n"})
	w.must("init", "--layout", "oci")
	w.sh("chown -R 65534:65534 oci")
	w.must("build", "spec.yaml")
	owners := strings.Fields(w.sh("find oci -printf '%u\n' | sort -u"))
	if !slices.Equal(owners, []string{"nobody"}) {
		t.Errorf("the layout's files belong to %q", owners)
	}
	if _, err := os.Stat(w.path("oci/.build-umoci-mount.json")); err != nil {
		t.Error(err)
	}
}
