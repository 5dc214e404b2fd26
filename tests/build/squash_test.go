package build

import (
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// Steps that undo, hide and link what others have made: one layer of them all shows the
// same tree as their layers do.
func TestOneLayerOfAllStepsIsWhatTheirLayersAre(t *testing.T) {
	t.Parallel()
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "runc", "umoci")
	const steps = `
  copy: [data /data, data/x /linked/x]
  expand: more.tar
  run:
    - mkdir -p /a/b/c; echo 1 >/a/b/c/1; echo 2 >/a/2; ln /a/2 /a/2b; rm /data/x; chmod 700 /var
    - rm -r /a/b; mkdir /a/b; echo new >/a/b/new; ln /a/2 /a/2c; mv /usr /usr2; rm /a/2b
    - echo back >/data/x; rm -r /root; ln -s /usr2 /root; chown 5:6 /a/2c; touch -d 2001-02-03 /a
    - rm /root; mkdir /root; mv /usr2 /usr; rm -r /more; echo file >/more; ln /bin/busybox /bin/again; rm /bin/vi
    - touch /here; rm /here; mkdir /there; rmdir /there
`
	w := newWorld(t, map[string]string{"root.tar.gz": busyboxTar(t), "data/x": "x", "data/sub/y": "y"})
	w.sh("mkdir -p more/d; echo m >more/d/m; ln more/d/m more/d/n; tar -cf more.tar more; ln data/x data/z")
	w.write("spec.yaml", "root: {expand: root.tar.gz}\nsteps:\n  base: root\n  layers: step"+steps+"one:\n  base: root"+steps)
	w.env = []string{"SOURCE_DATE_EPOCH=1900000000"}
	w.must("build", "spec.yaml")
	_, m, c := imagetest.Manifest(t, w.path("oci"), "one")
	_, ms, _ := imagetest.Manifest(t, w.path("oci"), "steps")
	if len(m.Layers) != 2 || len(ms.Layers) < 6 || !strings.HasSuffix(m.Layers[1].MediaType, "gzip") {
		t.Errorf("one has %d layers, %s; steps has %d", len(m.Layers), m.Layers[1].MediaType, len(ms.Layers))
	}
	if n := len(c.History); n != 2 {
		t.Errorf("one has %d entries of history", n)
	}
	// Times that commands set differ, and seconds are all that layers have.
	opt := imagetest.CompareOptions{Seconds: true, IgnoreTime: func(string) bool { return true }}
	one, many := imagetest.MustReadTree(t, w.unpacked("one")), imagetest.MustReadTree(t, w.unpacked("steps"))
	imagetest.SameTree(t, "one layer", many, one, opt)
	if one["a/2c"].Group == "" || one["a/2c"].Group != one["a/2"].Group || one["more"].Size != 5 {
		t.Errorf("the tree is not what the steps make: %+v %+v", one["a/2c"], one["more"])
	}
	b := env.Mount(t, w.path("oci")+":one")
	imagetest.SameTree(t, "mounted", one, imagetest.MustReadTree(t, b.Rootfs()), imagetest.CompareOptions{Seconds: true})
}
