package build

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

func TestTheFirstExampleOfGenociIsBuiltTwice(t *testing.T) {
	t.Parallel()
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "umoci", "runc")
	w := newWorld(t, map[string]string{"cirros.yaml": readTestdata(t, "cirros.yaml"), "cirros.tar.gz": busyboxTar(t)})
	w.must("build", "cirros.yaml")
	rootfs := w.unpacked("modified")
	expect(t, "/hw", "Hello, world\n", fileContent(t, filepath.Join(rootfs, "hw")))
	if info, err := os.Lstat(filepath.Join(rootfs, "dev", "null")); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("/dev/null is %v, %v", info, err)
	}
	for _, name := range []string{".umoci-mount", "etc/resolv.conf"} {
		if _, err := os.Lstat(filepath.Join(rootfs, name)); err == nil {
			t.Errorf("the layer has %s", name)
		}
	}
	_, m, c := imagetest.Manifest(t, w.path("oci"), "modified")
	if len(m.Layers) != 2 {
		t.Errorf("modified has %d layers, want cirros' and one", len(m.Layers))
	}
	expect(t, "entrypoint", `["/bin/echo" "hello world"]`, fmt.Sprintf("%q", c.Config.Entrypoint))

	start := time.Now()
	out := w.must("build", "cirros.yaml")
	t.Logf("the second run took %v", time.Since(start))
	contains(t, "the second run", out, "cirros: cached", "modified: cached")
	var undated []string
	for _, tag := range w.tags() {
		parts := strings.SplitN(tag, "-", 2)
		if len(parts) == 2 {
			tag = parts[0] + "_" + tag[strings.LastIndexByte(tag, '_')+1:]
		}
		undated = append(undated, tag)
	}
	expect(t, "tags", "cirros cirros_1 cirros_2 modified modified_1 modified_2", strings.Join(undated, " "))
}

// What the image's own tools would do is done by scripts of their names.
func TestTheSecondExampleOfGenociIsBuilt(t *testing.T) {
	t.Parallel()
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "umoci", "runc")
	w := newWorld(t, map[string]string{"centos.yaml": readTestdata(t, "centos.yaml"), "busybox.tar.gz": busyboxTar(t)})
	w.write("skopeo-0.1.23-1.git1bbd87f.el7.x86_64.rpm", "\xed\xab\xee\xdb\x03\x00"+strings.Repeat("\x00", 90)+"payload")
	w.sh(`mkdir root; tar -xzf busybox.tar.gz -C root
		rm -f root/bin/yum root/bin/rpm
		printf '#!/bin/sh\necho "$@" >/yum-was-run\n' >root/bin/yum
		printf '#!/bin/sh\n[ "$1" = -i ]; tail -c 7 "$2" >/usr/bin/skopeo\n' >root/bin/rpm
		chmod 755 root/bin/yum root/bin/rpm
		tar -czf centos.tar.gz -C root .`)
	w.must("build", "centos.yaml")
	expect(t, "what yum did", "-y update\n", fileContent(t, filepath.Join(w.unpacked("updated"), "yum-was-run")))
	expect(t, "what rpm did", "payload", fileContent(t, filepath.Join(w.unpacked("withskopeo"), "usr/bin/skopeo")))
	rootfs := w.unpacked("filled")
	for _, name := range []string{"hosts", "hostname"} {
		expect(t, name, fileContent(t, "/etc/"+name), fileContent(t, filepath.Join(rootfs, "etc_"+name)))
	}
}
