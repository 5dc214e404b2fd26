package tests

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

// debianSpec is five targets over Debian: packages installed, a program compiled and
// copied to another target, a service with its user and volume.
const debianSpec = `debian:
  base: minbase
  install:
    - packages/greeting.deb
    - packages/greeting-data.deb
  env: {LC_ALL: C}
program:
  base: compiler
  copy: greet.c /src/
  run: |
    gcc -O2 -o /src/greet /src/greet.c
    /src/greet
service:
  base: debian
  layers: step
  copy: { from: program, source: /src/greet, dest: /usr/local/bin/ }
  run:
    - |
      groupadd --gid 900 greeter
      useradd --uid 900 --gid 900 --home-dir /var/lib/greeter --create-home greeter
    - |
      chown -R greeter:greeter /var/lib/greeter
      dpkg -l greeting greeting-data >/var/lib/greeter/packages
  entrypoint: /usr/local/bin/greet "the world"
  user: greeter
  volumes: /var/lib/greeter
  workdir: /tmp
small:
  base: debian
  run: |
    rm -rf /usr/share/doc /usr/share/locale
    mv /usr/share/zoneinfo /opt/zoneinfo
purged:
  base: small
  run: dpkg --purge greeting greeting-data
`

const greetC = `#include <stdio.h>
int main(int n, char **v) { printf("hello %s\n", n > 1 ? v[1] : "nobody"); return 0; }
`

// debianPackages makes two packages: one configures itself, and needs the other.
const debianPackages = `mkdir -p packages; cd packages
for name in greeting greeting-data; do
	mkdir -p $name/DEBIAN $name/usr/share/$name $name/etc
	printf 'Package: %s\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: test\n' $name >$name/DEBIAN/control
	echo $name >$name/usr/share/$name/file; echo conf >$name/etc/$name.conf
	echo /etc/$name.conf >$name/DEBIAN/conffiles
done
echo 'Depends: greeting-data' >>greeting/DEBIAN/control
printf '#!/bin/sh\nset -e\nmkdir -p /var/lib/greeting\nchown daemon:games /var/lib/greeting\nchmod 2770 /var/lib/greeting\n' >greeting/DEBIAN/postinst
chmod 755 greeting/DEBIAN/postinst
for name in greeting greeting-data; do dpkg-deb --root-owner-group --build $name $name.deb >/dev/null; done
`

func TestRealBuildOverDebian(t *testing.T) {
	layout := realLayout(t)
	imagetest.NeedTools(t, "umoci", "runc", "dpkg-deb", "jq")
	dir := filepath.Dir(layout)
	for name, content := range map[string]string{"spec.yaml": debianSpec, "greet.c": greetC} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sh := func(script string) string {
		t.Helper()
		return env.MustCommand(t, "sh", "-ec", "cd "+dir+"\nexport um="+env.Bin+"\n"+script)
	}
	sh(debianPackages)
	for _, tag := range []string{"minbase", "compiler"} {
		env.Must(t, "cache", "warm", "--image", layout+":"+tag)
	}
	start := time.Now()
	out := sh("$um build --layout images spec.yaml")
	t.Logf("five targets took %v\n%s", time.Since(start), out)
	start = time.Now()
	out = sh("$um build --layout images spec.yaml")
	took := time.Since(start)
	t.Logf("again: %v", took)
	if n := strings.Count(out, ": cached\n"); n != 5 || strings.Contains(out, "not cached") {
		t.Errorf("the second run did something:\n%s", out)
	}
	if took > 5*time.Second {
		t.Errorf("the second run took %v", took)
	}

	expect(t, "what the service prints", "hello the world\n", sh(`/usr/bin/umoci unpack --image images:service b
		jq '.process.terminal = false' b/config.json >c; mv c b/config.json
		runc --root "$PWD/state" run -b b umoci-mount-e2e-$$; rm -rf b`))
	_, m, c := imagetest.Manifest(t, layout, "service")
	_, base, _ := imagetest.Manifest(t, layout, "debian")
	if len(m.Layers) != len(base.Layers)+3 {
		t.Errorf("service has %d layers on top of %d", len(m.Layers)-len(base.Layers), len(base.Layers))
	}
	expect(t, "config", "greeter /tmp [/var/lib/greeter]", fmt.Sprint(c.Config.User, " ", c.Config.WorkingDir, " ", slices.Collect(maps.Keys(c.Config.Volumes))))
	for tag, script := range map[string]string{
		"debian":  `test "$(stat -c '%U:%G %a' r/var/lib/greeting)" = "daemon:games 2770"; test -e r/etc/greeting.conf; chroot r dpkg --audit; chroot r dpkg -V`,
		"service": `test "$(stat -c '%u:%g' r/var/lib/greeter)" = 900:900; grep -q '^ii  greeting-data' r/var/lib/greeter/packages`,
		"small":   `test ! -e r/usr/share/doc; test -d r/opt/zoneinfo/Europe; test ! -e r/usr/share/zoneinfo`,
		"purged":  `test ! -e r/etc/greeting.conf; test ! -e r/usr/share/greeting; test -d r/opt/zoneinfo/Europe`,
	} {
		sh(`/usr/bin/umoci unpack --image images:` + tag + ` b; cd b; ln -s rootfs r; ` + script + `; cd ..; rm -rf b`)
	}
}

// The same steps by hand: what stock umoci takes for small and purged, apart from what
// the steps' commands themselves take.
func TestRealBuildIsFasterThanStepsByHand(t *testing.T) {
	layout := realLayout(t)
	imagetest.NeedTools(t, "umoci", "runc")
	dir := filepath.Dir(layout)
	spec := "one: {base: compiler, run: touch /one}\ntwo: {base: one, run: rm -r /usr/share/doc}\n"
	if err := os.WriteFile(filepath.Join(dir, "spec.yaml"), []byte(spec), 0o644); err != nil {
		t.Fatal(err)
	}
	timed := func(script string) time.Duration {
		t.Helper()
		start := time.Now()
		env.MustCommand(t, "sh", "-ec", "cd "+dir+"\n"+script)
		return time.Since(start)
	}
	env.Must(t, "cache", "warm", "--image", layout+":compiler")
	stock := timed(`for step in "compiler one touch /one" "one two rm -r /usr/share/doc"; do
		set -- $step; from=$1 to=$2; shift 2
		/usr/bin/umoci unpack --image images:$from b
		chroot b/rootfs "$@"
		/usr/bin/umoci repack --image images:$to b
		rm -rf b
	done`)
	ours := timed(env.Bin + " build --no-cache --layout images spec.yaml")
	t.Logf("two steps over the compiler image: stock umoci by hand %v, build %v: %.1f times less", stock, ours, float64(stock)/float64(ours))
	if ours > stock/2 { // it is ten times less; the machine may be busy
		t.Errorf("build took %v, stock umoci %v", ours, stock)
	}
}

// What dpkg and useradd write in their logs has the time in it.
const plainDebianSpec = `installed:
  base: minbase
  install: [packages/greeting.deb, packages/greeting-data.deb]
  run:
    - useradd --system --create-home --home-dir /var/lib/greeter greeter; chown -R greeter:games /var/lib/greeter
    - rm -rf /usr/share/doc /var/log/*; chmod 4755 /usr/bin/env; mknod /opt/odd c 7 7
`

// The user has a range of ids: with one alone, a program that gives a file the owner
// that it sees at another, as useradd does, gives it root's.
func TestRealBuildAsAPlainUserGivesRootsLayers(t *testing.T) {
	layout := realLayout(t)
	imagetest.NeedTools(t, "dpkg-deb", "setpriv", "fusermount3", "newuidmap", "unshare")
	dir := worldDir(t)
	env.MustCommand(t, "cp", "-a", layout, filepath.Join(dir, "root"))
	env.MustCommand(t, "cp", "-a", layout, filepath.Join(dir, "user"))
	if err := os.WriteFile(filepath.Join(dir, "spec.yaml"), []byte(plainDebianSpec), 0o644); err != nil {
		t.Fatal(err)
	}
	env.MustCommand(t, "sh", "-ec", `cd "$0"; um=$1; export SOURCE_DATE_EPOCH=1700000000
		`+debianPackages+`cd ..
		"$um" build --layout root spec.yaml
		chown -R 65534:65534 user; mkdir home; chown 65534:65534 home
		export HOME=$PWD/home UMOCI_MOUNT_CACHE=$PWD/home/cache
		echo 65534:100000:65536 >sub
		unshare --mount --propagation private sh -ec 'mount --bind sub /etc/subuid; mount --bind sub /etc/subgid
			exec setpriv --reuid=65534 --regid=65534 --clear-groups "$0" build --layout user spec.yaml' "$um"`, dir, env.Bin)
	_, want, _ := imagetest.Manifest(t, filepath.Join(dir, "root"), "installed")
	_, got, _ := imagetest.Manifest(t, filepath.Join(dir, "user"), "installed")
	if w, g := want.Layers[len(want.Layers)-1].Digest, got.Layers[len(got.Layers)-1].Digest; w != g {
		t.Errorf("the plain user's layer is %s, root's %s: they differ in\n%s", g, w,
			env.Must(t, "diff", "--image", filepath.Join(dir, "root")+":installed", filepath.Join(dir, "user")+":installed"))
	}
}
