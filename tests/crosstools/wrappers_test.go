package crosstools

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// wrapper is a directory in which the command lines of a program that wraps umoci run,
// with ours under that name.
type wrapper struct {
	t   *testing.T
	dir string
	env []string
}

func newWrapper(t *testing.T, vars ...string) *wrapper {
	t.Helper()
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	dir := t.TempDir()
	if err := os.Symlink(env.Bin, filepath.Join(dir, "umoci")); err != nil {
		t.Fatal(err)
	}
	return &wrapper{t, dir, append(vars, "PATH="+dir+":"+os.Getenv("PATH"))}
}

// sh runs a script, which has to succeed and to leave stderr empty. It has set -f: a
// pattern that is meant for a program must not become paths of this machine.
func (w *wrapper) sh(script string) string {
	w.t.Helper()
	r := env.Command(w.t, w.env, "sh", "-efc", "cd '"+w.dir+"'\n"+script)
	if r.Code != 0 || r.Stderr != "" {
		w.t.Fatalf("exit %d of\n%s\n%s%.2000s", r.Code, script, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

func (w *wrapper) expect(what, script, want string) {
	w.t.Helper()
	if got := w.sh(script); got != want {
		w.t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
	}
}

// genoci's calls (its umoci.py): a class that keeps one bundle at one path, removes it
// by rm while it is mounted and unpacks the next base there at once, and collects
// garbage while the bundle is in use. It minds the results of unpack, repack, tag and
// chroot, and that ls writes nothing to standard error.
func TestGenocisSequenceRunsUnchanged(t *testing.T) {
	imagetest.NeedTools(t, "busybox", "jq")
	for name, vars := range map[string][]string{"mounted": nil, "extracted": {"UMOCI_MOUNT_EXTRACT=1"}} {
		t.Run(name, func(t *testing.T) {
			w := newWrapper(t, vars...)
			const remove = "rm -rf $PWD/unpacked 2>/dev/null || true\n"
			w.sh(`umoci init --layout=oci; umoci ls --layout oci | grep "^empty$" && exit 1
				umoci new --image oci:empty; umoci unpack --image oci:empty $PWD/unpacked; umoci repack --image oci:empty $PWD/unpacked 2>/dev/null
				` + remove)
			build := func(base, tag, change string) {
				w.sh(remove + "umoci unpack --image oci:" + base + " $PWD/unpacked\nroot=$PWD/unpacked/rootfs\n" + change +
					"umoci rm --image oci:" + tag + "; umoci gc --layout oci >/dev/null\numoci repack --image oci:" + tag + " $PWD/unpacked\n" +
					"n=1; while umoci ls --layout oci | grep -q \"^" + tag + "_$n$\"; do n=$((n+1)); done; umoci tag --image oci:" + tag + " " + tag + "_$n\n")
			}
			const expand = `mkdir -p t/etc t/bin; cp "$(command -v busybox)" t/bin/busybox; ln -sf busybox t/bin/sh; echo root:x:0:0::/:/bin/sh >t/etc/passwd
				tar -C t -cf base.tar .; tar --acls --xattrs --auto-compress -xf base.tar -C $root
				`
			const run = `printf '#!/bin/sh\necho "Hello, world" > /hw\n' >$root/ocirun; chmod ugo+x $root/ocirun; chroot $root /ocirun; rm $root/ocirun
				`
			for range 2 { // the second time there are tags already
				w.sh("umoci init --layout=oci 2>/dev/null && exit 1; umoci ls --layout oci | grep \"^empty$\" >/dev/null")
				build("empty", "cirros", expand)
				build("cirros", "modified", run)
				w.sh("umoci config --image oci:modified --config.entrypoint /bin/echo --config.cmd hi")
			}
			w.sh(remove)
			w.expect("tags", "umoci ls --layout oci", "empty\ncirros_1\nmodified_1\ncirros\ncirros_2\nmodified_2\nmodified\n")
			w.expect("the image", "umoci cat --image oci:modified /hw; umoci gc --layout oci >/dev/null; umoci fsck --layout oci >/dev/null", "Hello, world\n")
			w.expect("the layers", "umoci stat --json --image oci:modified | jq -c '[(.manifest.blob.layers | length), .config.blob.config]'",
				`[2,{"Entrypoint":["/bin/echo"],"Cmd":["hi"]}]`+"\n")
		})
	}
}

// kiwi's calls (its oci_tools/umoci.py): a container is made of a tree by rsync into a
// bundle, or on top of a base; then config, gc while the bundle is mounted, and export.
func TestKiwisContainerExportAndImportRunUnchanged(t *testing.T) {
	imagetest.NeedTools(t, "skopeo", "rsync", "jq")
	w := newWrapper(t)
	w.sh(`umoci config --help | grep -q -- --no-history
		mkdir -p tree/etc tree/usr/bin tree/proc tree/sys tree/dev; echo one >tree/etc/one; echo root:x:0:0::/root:/bin/sh >tree/etc/passwd; ln tree/etc/one tree/etc/two
		echo tool >tree/usr/bin/tool; chmod 4755 tree/usr/bin/tool; chown 7:8 tree/etc/one; echo x >tree/proc/not`)
	build := func(bundle, tag, name string) {
		w.sh("B=$PWD/" + bundle + "; I=$PWD/" + name + "/oci_layout\n" + `mkdir -m 0700 $B
			umoci unpack --image $I:base_layer $B
			rsync --archive --hard-links --xattrs --acls --one-file-system --inplace --delete --exclude 'proc/*' --exclude 'sys/*' --exclude 'dev/*' $PWD/tree/ $B/rootfs
			umoci repack --history.comment=comment --history.created_by="KIWI 9" --history.author=tux --history.created 2022-02-03T04:05:06+00:00 --image $I:base_layer $B
			umoci config --author=tux --config.user=root --config.workingdir=/root --config.entrypoint=/bin/bash --config.entrypoint=-x --clear=config.cmd \
				--config.volume=/var/log --config.stopsignal=SIGINT --config.exposedports=80 --config.env=PATH=/bin --config.label=name=value \
				--no-history --image $I:base_layer --tag ` + tag + ` --created 2022-02-03T04:05:06+00:00
			umoci gc --layout $I >/dev/null
			skopeo copy -q oci:$I:` + tag + " docker-archive:$PWD/" + name + ".docker.tar:kiwi:" + tag + ` --additional-tag kiwi:other
			skopeo copy -q oci:$I:` + tag + " oci-archive:$PWD/" + name + ".oci.tar:" + tag + "\n")
	}
	w.sh("mkdir new; umoci init --layout $PWD/new/oci_layout; umoci new --image $PWD/new/oci_layout:base_layer")
	build("bundle1", "latest", "new")
	w.expect("the image", `skopeo inspect --config docker-archive:$PWD/new.docker.tar:kiwi:other | jq -c '[.created, .author, .config, (.history | map([.comment, .created_by, .author]))]'`,
		`["2022-02-03T04:05:06Z","tux",{"User":"root","ExposedPorts":{"80":{}},"Env":["PATH=/bin"],"Entrypoint":["/bin/bash","-x"],"Volumes":{"/var/log":{}},`+
			`"WorkingDir":"/root","Labels":{"name":"value"},"StopSignal":"SIGINT"},[["comment","KIWI 9","tux"]]]`+"\n")
	w.expect("the files", "umoci tree --image new/oci_layout:latest | awk '{print $1, $2, $3, $NF}'",
		"drwxr-xr-x 7 0:0 /\ndrwxr-xr-x 2 0:0 /dev\ndrwxr-xr-x 2 0:0 /etc\n-rw-r--r-- 2 7:8 /etc/one\n-rw-r--r-- 1 0:0 /etc/passwd\n-rw-r--r-- 2 7:8 /etc/two\n"+
			"drwxr-xr-x 2 0:0 /proc\ndrwxr-xr-x 2 0:0 /sys\ndrwxr-xr-x 3 0:0 /usr\ndrwxr-xr-x 2 0:0 /usr/bin\n-rwsr-xr-x 1 0:0 /usr/bin/tool\n")

	w.sh("mkdir derived; skopeo copy -q oci-archive:$PWD/new.oci.tar:latest oci:$PWD/derived/oci_layout:base_layer; rm tree/etc/two; echo three >tree/etc/three")
	build("bundle2", "v2", "derived")
	w.expect("what the derived container adds", "umoci diff --image derived/oci_layout:v2 new/oci_layout:latest | grep -v '^C /etc$'", "D /etc/three\nA /etc/two\n")
	w.expect("the derived container", "umoci cat --image derived/oci_layout:v2 /etc/three; umoci stat --json --image derived/oci_layout:v2 | jq '.manifest.blob.layers | length'", "three\n2\n")
	w.sh("for b in bundle1 bundle2; do umoci umount $b; rm -rf $b; done")
}

// The calls of LXC's template for OCI images (lxc-oci): the blobs are shared by all of its
// layouts, and linked to; the files are moved out of the mounted tree, and what is left is
// removed together with the layout.
func TestLxcsTemplateRunsUnchanged(t *testing.T) {
	imagetest.NeedTools(t, "skopeo", "jq")
	w := newWrapper(t)
	if err := imagetest.WriteLayout(filepath.Join(w.dir, "img"), imagetest.Image{Tag: "a", Layers: []imagetest.Layer{{Text: lower}}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"c1", "c2"} { // the second one finds all blobs in the cache
		w.sh("C=$PWD/cache; D=$C/tmp." + name + "; R=$PWD/" + name + `/rootfs; mkdir -p $D $R
			skopeo copy -q --dest-shared-blob-dir $C oci:img:a oci:$D:latest; ln -s $C/sha256 $D/blobs/sha256
			umoci --log=error unpack --image $D:latest $R.tmp
			find $R.tmp/rootfs -mindepth 1 -maxdepth 1 -exec mv '{}' $R/ \;
			test $(jq -c -r '.config.digest' <$D/blobs/sha256/$(jq -c -r '.manifests[0].digest[7:]' <$D/index.json) | wc -c) = 72
			rm -Rf $D; rm -Rf $R.tmp 2>/dev/null || true
			`)
		w.expect("the container", "cd "+name+"/rootfs; find . -printf '%y%m %U:%G %n %p %l\n' | sort -k4", `d755 0:0 6 . 
d755 0:0 2 ./dev 
c666 0:0 1 ./dev/null 
d755 0:0 2 ./etc 
f644 0:0 1 ./etc/gone 
f644 0:0 1 ./etc/passwd 
f640 0:42 1 ./etc/shadow 
d755 0:0 2 ./usr 
l777 0:0 1 ./usr/link ../etc/passwd
f4755 0:0 2 ./usr/tool 
f4755 0:0 2 ./usr/tool2 
d755 0:0 3 ./var 
d2775 0:8 2 ./var/mail 
`)
	}
}
