package tests

import (
	"archive/tar"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// installing is what people do in an image as its root: packages with accounts, several
// owners, set-id programs and file capabilities, and the tools that give files away.
const installing = `export DEBIAN_FRONTEND=noninteractive LC_ALL=C
	apt-get update -qq
	apt-get install -qq -y --no-install-recommends at cron iputils-ping rsync screen >/dev/null 2>&1
	apt-get clean
	rm -rf /var/lib/apt/lists/*
	useradd --create-home somebody
	install -o somebody -g daemon -m 4711 /bin/true /usr/local/bin/tool
	install -d -o mail -g mail -m 2770 /srv/mail
	cp -p /etc/shadow /srv/mail/copied
	cp -p /etc/shadow /srv/mail/given; chown somebody:mail /srv/mail/given
	tar -cpf /srv/t.tar --owner=games:5 --group=games:60 -C /etc cron.d; tar -xpf /srv/t.tar -C /srv; rm /srv/t.tar
	rsync -a --chown=daemon:daemon /etc/cron.d/ /srv/synced/
	mknod -m 620 /srv/tty c 5 0; mknod /srv/disk b 8 0; mkfifo /srv/fifo; chown mail:tty /srv/tty /srv/fifo
	setcap cap_net_bind_service=+ep /usr/local/bin/tool
	su somebody -c "mkdir /tmp/own; touch /tmp/own/file; chmod 600 /tmp/own/file; ln -s file /tmp/own/link"
	setpriv --reuid=man --regid=man --clear-groups sh -c "id -un; touch /tmp/man"`

// TestRealPlainUserInstallsPackagesAsRootDoes does the same as a plain user in our
// mount, with one id and with a range, and as root in the files that stock umoci has
// extracted. The new layers have the same entries, owners, modes, devices and attributes.
func TestRealPlainUserInstallsPackagesAsRootDoes(t *testing.T) {
	layout := realLayout(t)
	imagetest.NeedTools(t, "umoci", "setpriv", "unshare", "newuidmap", "fusermount3")
	u := &plainUser{t, filepath.Dir(layout)}
	script := filepath.Join(u.dir, "script")
	if err := os.WriteFile(script, []byte(installing), 0o644); err != nil {
		t.Fatal(err)
	}
	env.MustCommand(t, "unshare", "--mount", "--pid", "--fork", "--propagation", "private", "sh", "-ec", `cd "$0"
		umoci unpack --image images:minbase stock
		r=stock/rootfs
		mount -t proc proc $r/proc; mount -t tmpfs none $r/dev; mkdir $r/dev/pts
		for d in null zero full random urandom tty; do touch $r/dev/$d; mount --bind /dev/$d $r/dev/$d; done
		ln -s /proc/self/fd $r/dev/fd; ln -s /proc/self/fd/0 $r/dev/stdin
		[ -e $r/etc/resolv.conf ] || touch $r/etc/resolv.conf; mount --bind /etc/resolv.conf $r/etc/resolv.conf
		env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root chroot $r sh -ec "$(cat script)"
		umount $r/etc/resolv.conf $r/dev/* $r/dev $r/proc 2>/dev/null || true
		umoci repack --image images:stock stock`, u.dir)
	want := layerEntries(t, layout, "stock")
	if n := strings.Count(want, "\n"); n < 300 || !strings.Contains(want, "0 4711 1000:1 usr/local/bin/tool") &&
		!strings.Contains(want, "security.capability") {
		t.Fatalf("root's own layer has %d entries:\n%s", n, want)
	}
	layout = giveLayout(t, u.dir, layout)
	u.must(`$um mount --image img:minbase one
		$um exec one sh -ec "$(cat script)"
		$um umount one; $um repack --image img:one one`)
	sub := filepath.Join(u.dir, "sub")
	if err := os.WriteFile(sub, []byte("65534:100000:65536\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	u.must(`$um mount --image img:minbase range; $um umount range`)
	env.MustCommand(t, "unshare", "--mount", "--propagation", "private", "sh", "-ec", `cd "$0"
		mount --bind sub /etc/subuid; mount --bind sub /etc/subgid
		export UMOCI_MOUNT_CACHE="$0/cache" HOME="$0"
		exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -ec '"$0" exec --ids range range sh -ec "$(cat script)"
			"$0" repack --image img:range range' "$1"`, u.dir, env.Bin)
	for _, tag := range []string{"one", "range"} {
		if got := layerEntries(t, layout, tag); got != want {
			t.Errorf("%s: the layer differs from root's:\n%s", tag, difference(want, got))
		}
	}
}

// giveLayout gives a plain user a copy of a layout, and the directory that it is in.
func giveLayout(t *testing.T, dir, layout string) string {
	t.Helper()
	for d := dir; d != env.Dir; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	own := filepath.Join(dir, "img")
	env.MustCommand(t, "cp", "-r", layout, own)
	env.MustCommand(t, "chown", "-R", "65534:65534", own)
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	return own
}

// layerEntries lists the top layer of a tag, sorted: type, mode, owner, name, device,
// target and attributes of each entry.
func layerEntries(t *testing.T, layout, tag string) string {
	t.Helper()
	_, m, _ := imagetest.Manifest(t, layout, tag)
	f, err := os.Open(imagetest.BlobPath(layout, m.Layers[len(m.Layers)-1].Digest))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		name := strings.Trim(strings.TrimPrefix(h.Name, "./"), "/")
		line := fmt.Sprintf("%c %o %d:%d %s", h.Typeflag, h.Mode, h.Uid, h.Gid, name)
		switch h.Typeflag {
		case tar.TypeChar, tar.TypeBlock:
			line += fmt.Sprintf(" %d,%d", h.Devmajor, h.Devminor)
		case tar.TypeSymlink, tar.TypeLink:
			line += " -> " + h.Linkname
		}
		for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			if attr, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
				line += fmt.Sprintf(" %s=%x", attr, h.PAXRecords[key])
			}
		}
		if name != "." && name != "" {
			out = append(out, line)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n") + "\n"
}

// difference lists the lines that only one of two texts has.
func difference(want, got string) string {
	var out strings.Builder
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for _, l := range w {
		if !slices.Contains(g, l) {
			fmt.Fprintln(&out, "-", l)
		}
	}
	for _, l := range g {
		if !slices.Contains(w, l) {
			fmt.Fprintln(&out, "+", l)
		}
	}
	return out.String()
}
