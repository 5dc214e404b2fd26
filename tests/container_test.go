package tests

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// runtimes are the OCI runtimes that bundles have to run under.
var runtimes = []string{"runc", "crun"}

// nspawn runs bundles too, with options of its own.
const nspawn = "systemd-nspawn"

// container runs commands in a bundle's root file system.
type container struct {
	runtime, bundle string
	wide            bool // the host's network, and what a package manager may do
	binds           map[string]string
}

// wideCapabilities are what package managers need beyond umoci's defaults: the
// same that docker gives.
var wideCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// configure makes config.json run script, without a terminal.
func (c *container) configure(t *testing.T, script string) {
	t.Helper()
	file := filepath.Join(c.bundle, "config.json")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var spec rspec.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	spec.Process.Terminal = false
	spec.Process.Args = []string{"/bin/sh", "-euc", script}
	if c.runtime == nspawn {
		spec.Linux.Resources = nil // limits are systemd's matter, which need not run here
	}
	if c.wide {
		spec.Process.Env = append(spec.Process.Env, "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
		spec.Process.NoNewPrivileges = false
		spec.Process.Capabilities = &rspec.LinuxCapabilities{
			Bounding: wideCapabilities, Effective: wideCapabilities, Permitted: wideCapabilities,
		}
		var namespaces []rspec.LinuxNamespace
		for _, n := range spec.Linux.Namespaces {
			if n.Type != rspec.NetworkNamespace {
				namespaces = append(namespaces, n)
			}
		}
		spec.Linux.Namespaces = namespaces
	}
	for target, source := range c.binds {
		if slices.ContainsFunc(spec.Mounts, func(m rspec.Mount) bool { return m.Destination == target }) {
			continue
		}
		spec.Mounts = append(spec.Mounts, rspec.Mount{
			Destination: target, Type: "bind", Source: source, Options: []string{"rbind", "ro"},
		})
	}
	c.binds = nil // they are in the file now
	if data, err = json.MarshalIndent(spec, "", "  "); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// command is the runtime's command line. A container that a failed test leaves is
// ended with the test.
func (c *container) command(t *testing.T) []string {
	t.Helper()
	state, id := filepath.Join(t.TempDir(), "state"), fmt.Sprintf("umoci-mount-test-%d-%s", os.Getpid(), c.runtime)
	t.Cleanup(func() {
		if left, err := os.ReadDir(state); err == nil && len(left) > 0 {
			env.Command(t, nil, c.runtime, "--root", state, "delete", "--force", id)
		}
	})
	line := []string{c.runtime, "--root", state, "run", "--bundle", c.bundle, id}
	const unified = "/sys/fs/cgroup/unified"
	if _, err := os.Stat(unified); err == nil && c.runtime == "crun" {
		// It refuses machines with cgroups of both versions: show it those of one.
		line = append([]string{"unshare", "--mount", "sh", "-c", "umount " + unified + ` && exec "$0" "$@"`}, line...)
	}
	return line
}

// quoted is a command line for a shell.
func quoted(line []string) string {
	var b strings.Builder
	for _, word := range line {
		b.WriteString("'" + strings.ReplaceAll(word, "'", `'\''`) + "' ")
	}
	return b.String()
}

// run runs a shell script in the container; it has to succeed. The result is what
// it printed.
func (c *container) run(t *testing.T, script string) string {
	t.Helper()
	c.configure(t, script)
	line := c.command(t)
	return env.MustCommand(t, line[0], line[1:]...)
}

// busyboxImage is a layout with tag busybox, whose command is script.
func busyboxImage(t *testing.T, script string) string {
	t.Helper()
	layout := filepath.Join(t.TempDir(), "images")
	env.MustCommand(t, "images/mkbusybox.sh", layout)
	env.MustCommand(t, "umoci", "config", "--image", layout+":busybox", "--clear", "config.cmd",
		"--config.cmd", "/bin/sh", "--config.cmd", "-euc", "--config.cmd", script)
	return layout + ":busybox"
}

// The bundle is run as mount made it, on a terminal: config.json asks for one.
func TestBundlesRunUnchangedUnderEachRuntime(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "umoci", "busybox", "script")
	image := busyboxImage(t, "echo inside $(cat /etc/os-release | head -1); echo made >/root/made; rm /bin/vi; exec true")
	for _, runtime := range runtimes {
		t.Run(runtime, func(t *testing.T) {
			imagetest.NeedTools(t, runtime)
			b := env.Mount(t, image)
			c := &container{runtime: runtime, bundle: b.Path}
			out := env.MustCommand(t, "script", "--quiet", "--return", "--command", quoted(c.command(t)), "/dev/null")
			if !strings.Contains(out, "inside NAME=busybox") {
				t.Errorf("the container printed %q", out)
			}
			if got, err := os.ReadFile(filepath.Join(b.Rootfs(), "root", "made")); err != nil || string(got) != "made\n" {
				t.Errorf("file made inside is %q outside, %v", got, err)
			}
			diff := "\n" + env.Must(t, "diff", b.Path)
			for _, line := range []string{"\nA /root/made\n", "\nD /bin/vi\n"} {
				if !strings.Contains(diff, line) {
					t.Errorf("diff lacks %q:\n%s", line, diff)
				}
			}
			b.Umount(t)
		})
	}
}

func TestCommandsFailAndSucceedUnderEachRuntime(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "umoci", "busybox")
	image := busyboxImage(t, "true")
	for _, runtime := range runtimes {
		t.Run(runtime, func(t *testing.T) {
			imagetest.NeedTools(t, runtime)
			b := env.Mount(t, image)
			c := &container{runtime: runtime, bundle: b.Path}
			if out := c.run(t, "true"); out != "" {
				t.Errorf("true printed %q", out)
			}
			if out := c.run(t, "cd /tmp; mkdir a; echo x >a/b; mv a c; ln c/b d; cat d; rm -r c; stat -c %h d"); out != "x\n1\n" {
				t.Errorf("the script printed %q", out)
			}
			c.configure(t, "exit 7")
			line := c.command(t)
			if r := env.Command(t, nil, line[0], line[1:]...); r.Code != 7 {
				t.Errorf("exit 7 came out as %d", r.Code)
			}
			b.Umount(t)
		})
	}
}

func TestNspawnRunsABundle(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "umoci", "busybox", nspawn)
	b := env.Mount(t, busyboxImage(t, "true"))
	(&container{runtime: nspawn, bundle: b.Path}).configure(t, "echo made >/root/made; cat /root/made")
	if out := env.MustCommand(t, nspawn, "--quiet", "--register=no", "--keep-unit", "--oci-bundle="+b.Path); strings.TrimSpace(out) != "made" {
		t.Errorf("the container printed %q", out)
	}
	b.Umount(t)
}

// workScript is what somebody does in a Debian container. /mnt/project is a
// repository; the packages are small and need nothing else.
const workScript = `
apt-get -q update
apt-get -q -y --no-install-recommends install jq less file
dpkg -V jq less file
echo '{"answer": 42}' | jq .answer

git clone /mnt/project /srv/project
cd /srv/project
make -j2
./hello
git -c user.name=t -c user.email=t@example.org commit -q --allow-empty -m more
git fsck --strict
cd /

rm -rf /usr/share/doc
mv /usr/share/zoneinfo /opt/tz
test -e /opt/tz/Europe/Berlin
test ! -e /usr/share/zoneinfo
chown -R 1000:1000 /srv /opt/tz /usr/share/perl
touch /etc/motd && cp -a /etc/skel /home/user && chown -R 1001:1001 /home/user
sed -i 's/^root:[^:]*/root:*/' /etc/shadow
useradd -m -s /bin/sh someone
`

// makeProject makes a repository with a program of three files and a thousand
// others.
func makeProject(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "project")
	files := map[string]string{
		"main.c":   "#include <stdio.h>\n#include \"say.h\"\nint main(void) { return puts(say()) < 0; }\n",
		"say.c":    "#include \"say.h\"\nconst char *say(void) { return \"hello from the container\"; }\n",
		"say.h":    "const char *say(void);\n",
		"Makefile": "hello: main.o say.o\n\t$(CC) -o $@ $^\n",
	}
	for i := range 1000 {
		files[fmt.Sprintf("data/%02d/%d.txt", i%50, i)] = strings.Repeat(fmt.Sprintf("line %d\n", i), 1+i%300)
	}
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	git := func(args ...string) {
		t.Helper()
		identity := []string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.org"}
		env.MustCommand(t, "git", append(identity, args...)...)
	}
	git("init", "-q")
	git("add", ".")
	git("commit", "-q", "-m", "first")
	return dir
}

// The loop with the changes made from inside: installing, cloning, building,
// deleting, moving, changing owners.
func TestRealWorkUnderRunc(t *testing.T) {
	l := &loop{layout: realLayout(t), tag: "compiler"}
	imagetest.NeedTools(t, "runc", "git")
	project := makeProject(t)
	l.edit = func(t *testing.T, root string) {
		c := &container{runtime: "runc", bundle: filepath.Dir(root), wide: true, binds: map[string]string{
			"/etc/resolv.conf": "/etc/resolv.conf", "/mnt/project": project,
		}}
		// What the packages' checksums say of our tree, they say of a stock one.
		stock := filepath.Join(t.TempDir(), "stock")
		env.MustCommand(t, "umoci", "unpack", "--image", l.image(l.tag), stock)
		want := env.Command(t, nil, "chroot", filepath.Join(stock, "rootfs"), "dpkg", "-V").Stdout
		if err := os.RemoveAll(stock); err != nil {
			t.Fatal(err)
		}
		if got := c.run(t, "dpkg -V || true"); got != want {
			t.Errorf("dpkg -V says %.2000q, on a stock tree %.2000q", got, want)
		}
		out := c.run(t, workScript)
		for _, s := range []string{"\n42\n", "\nhello from the container\n"} {
			if !strings.Contains(out, s) {
				t.Errorf("the work did not print %q: %s", s, out[max(0, len(out)-4000):])
			}
		}
	}
	l.run(t)
}
