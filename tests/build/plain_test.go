package build

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// plainSpec does what needs privileges elsewhere: owners, devices, attributes.
const plainSpec = `root: {expand: [root.tar.gz, odd.tar]}
files:
  base: root
  copy:
    - { source: data, dest: /data, owner: "33:34" }
    - { from: root, source: /owned, dest: /again }
    - data/x /bin/x
commands:
  base: files
  layers: step
  run:
    - echo one >/one; chmod 4755 /one; mkdir /made; ln -s x /made/l; ln /one /made/two
    - mkdir /service; chown 100:200 /service; chmod 2770 /service; mknod /made/node c 7 8; chown 1:1 /made/node; chown 5:5 /made/two
    - rm -r /data; mv /made /moved; echo 2 >>/etc/passwd; test "$(id -u)" = 0
  entrypoint: /bin/cat
  user: daemon
`

func TestAPlainUserBuildsTheSameLayersAsRoot(t *testing.T) {
	t.Parallel()
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "setpriv", "fusermount3", "setfattr", "runc", "crun", "unshare", "newuidmap")
	files := map[string]string{"root.tar.gz": busyboxTar(t), "data/x": "x\n", "data/sub/y": "y\n", "spec.yaml": plainSpec}
	w := newWorld(t, files)
	w.sh(`mkdir odd; cd odd; echo o >owned; chown 12:34 owned; chmod 640 owned; mknod node c 7 7; mkdir closed; chmod 0 closed
		setfattr -n user.note -v n owned; chown 1:1 closed; cd ..; tar --numeric-owner --xattrs -cf odd.tar -C odd owned node closed
		rm -r odd; chmod -R a+rX .`)
	u := &world{t: t, dir: filepath.Join(t.TempDir(), "user")}
	env.MustCommand(t, "cp", "-a", w.dir, u.dir)
	for dir := u.dir; len(dir) > len("/var/tmp"); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	err := filepath.WalkDir(u.dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, 65534, 65534))
	})
	if err != nil {
		t.Fatal(err)
	}
	w.env = []string{"SOURCE_DATE_EPOCH=1700000000"}
	w.must("build", "spec.yaml")
	// A second user has a range of ids, so that commands see other owners.
	env.MustCommand(t, "cp", "-a", u.dir, u.dir+"-range")
	w.write("sub", "65534:100000:65536\n")
	env.MustCommand(t, "unshare", "--mount", "--propagation", "private", "sh", "-ec", `cd "$0"
		mount --bind "$2" /etc/subuid; mount --bind "$2" /etc/subgid
		export HOME=$PWD UMOCI_MOUNT_CACHE=$PWD/cache SOURCE_DATE_EPOCH=1700000000
		sed -i 's/^    - rm -r/    - test "$(stat -c %u:%g \/owned)" = 12:34; rm -r/' spec.yaml
		exec setpriv --reuid=65534 --regid=65534 --clear-groups "$1" build spec.yaml`, u.dir+"-range", env.Bin, w.path("sub"))
	// A machine with both kinds of cgroups mounted is none for crun's plain users.
	out := env.MustCommand(t, "unshare", "--mount", "--propagation", "private", "sh", "-ec", `cd "$0"
		umount /sys/fs/cgroup/unified 2>/dev/null || true
		export HOME=$PWD um="$1" XDG_RUNTIME_DIR=$PWD UMOCI_MOUNT_CACHE=$PWD/cache SOURCE_DATE_EPOCH=1700000000
		user="setpriv --reuid=65534 --regid=65534 --clear-groups"
		$user "$um" build spec.yaml
		# What has one id only can be done under an OCI runtime too.
		sed -i 's/^    - mkdir .service.*/    - "true"/' spec.yaml
		for runtime in runc crun; do
			$user "$um" build --no-cache --runtime $runtime --tag-format "" --layout $runtime spec.yaml
			test "$($user "$um" tree --image $runtime:commands /moved | wc -l)" = 3
		done`, u.dir, env.Bin)
	contains(t, "the output", out, "commands: tagged")
	for _, tag := range []string{"root", "files", "commands"} {
		_, rm, _ := imagetest.Manifest(t, w.path("oci"), tag)
		_, um, _ := imagetest.Manifest(t, u.path("oci"), tag)
		if _, ranged, _ := imagetest.Manifest(t, u.dir+"-range/oci", tag); fmt.Sprint(ranged.Layers) != fmt.Sprint(rm.Layers) {
			t.Errorf("%s of a plain user with a range: layers %v, want %v", tag, ranged.Layers, rm.Layers)
		}
		r, _ := json.MarshalIndent(rm, "", " ")
		p, _ := json.MarshalIndent(um, "", " ")
		expect(t, tag+" of the plain user", string(r), string(p))
		if string(r) != string(p) {
			t.Log(strings.TrimSpace(env.MustCommand(t, env.Bin, "diff", "--image", w.path("oci")+":"+tag, u.path("oci")+":"+tag)))
		}
	}
}
