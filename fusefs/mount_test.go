package fusefs

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// modes are the ways a mount does I/O.
var modes = []struct {
	name        string
	passthrough bool
}{{"cached", false}, {"passthrough", true}}

// eachMode runs a test on a mount of each kind.
func eachMode(t *testing.T, f func(t *testing.T, m *mounted)) {
	t.Helper()
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			if mode.passthrough {
				needPassthrough(t)
			}
			f(t, mount(t, rootOptions(mode.passthrough)))
		})
	}
}

// notPosix are tests of posixtest that fail on ext4 too: FcntlFlockLocksFile
// wants two descriptors of one process to be in each other's way with POSIX locks,
// which belong to the process. TestLocksAreSeenByOtherProcesses stands for it.
var notPosix = map[string]bool{"FcntlFlockLocksFile": true}

func TestPosix(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		for name, f := range posixtest.All {
			if notPosix[name] {
				continue
			}
			t.Run(name, func(t *testing.T) {
				dir := m.path("posix-" + name)
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				f(t, dir)
			})
		}
	})
}

// posixEnv is a directory for TestPosixInDirectory, which is then a process of
// its own.
const posixEnv = "FUSEFS_TEST_POSIX"

func TestPosixInDirectory(t *testing.T) {
	root := os.Getenv(posixEnv)
	if root == "" {
		t.Skip("runs as part of TestPosixAsPlainUser")
	}
	for name, f := range posixtest.All {
		if notPosix[name] {
			continue
		}
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(root, "posix-"+name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			f(t, dir)
		})
	}
}

func TestPosixAsPlainUser(t *testing.T) {
	m := mountPlain(t)
	cmd := exec.Command(copyBinary(t), "-test.run=TestPosixInDirectory", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), posixEnv+"="+m.root, "TMPDIR=/tmp")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: plainUser, Gid: plainUser}}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestPosixInDirectory/FileBasic")) {
		t.Errorf("%v:\n%s", err, out)
	}
}

// plainUser is one whom the machine gives no right beyond its own.
const plainUser = 65534

// mountPlain mounts by fusermount3, as a plain user does.
func mountPlain(t *testing.T) *mounted {
	t.Helper()
	needRoot(t)
	if st, err := os.Stat(fuseDevice); err != nil || st.Mode().Perm()&0o006 != 0o006 {
		t.Skip("plain users may not open " + fuseDevice)
	}
	cfg := serverConfig{
		Dir: mountDirs(t, plainUser), Rootless: true,
		Squash:  &overlay.Owner{UID: plainUser, GID: plainUser},
		Options: Options{DefaultPermissions: true},
	}
	return mountAs(t, cfg, plainUser)
}

func TestTheTreeIsThere(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		for _, name := range []string{"big", "rawbig"} {
			got, err := os.ReadFile(m.path(name))
			if err != nil || !bytes.Equal(got, pattern(bigSize)) {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
		}
		if target, err := os.Readlink(m.path("link")); target != "hello" || err != nil {
			t.Errorf("link leads to %q, %v", target, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(m.path("hard1"), &st); err != nil || st.Nlink != 2 {
			t.Errorf("hard1: %d links, %v", st.Nlink, err)
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(m.root, &fs); err != nil || fs.Namelen != 255 || fs.Blocks == 0 {
			t.Errorf("statfs: %+v, %v", fs, err)
		}
		if _, err := os.ReadFile(m.path("damaged")); !errors.Is(err, syscall.EIO) {
			t.Errorf("a damaged file: %v", err)
		}
		if !m.logged("layer is damaged") {
			t.Error("the damage is not in the log")
		}
	})
}

func TestTheMountHasItsOptions(t *testing.T) {
	m := mount(t, rootOptions(true))
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		f := strings.Fields(line)
		if len(f) < 4 || f[1] != m.root {
			continue
		}
		if f[0] != subtype || f[2] != "fuse."+subtype {
			t.Errorf("source %s, type %s", f[0], f[2])
		}
		for _, want := range []string{"rw", "default_permissions", "allow_other"} {
			if !strings.Contains(","+f[3]+",", ","+want+",") {
				t.Errorf("no %s in %s", want, f[3])
			}
		}
		for _, no := range []string{"nosuid", "nodev", "noexec"} {
			if strings.Contains(","+f[3]+",", ","+no+",") {
				t.Errorf("%s in %s", no, f[3])
			}
		}
	}
	if err := unix.Mknod(m.path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.path("null"), []byte("x"), 0); err != nil {
		t.Errorf("write to a device: %v", err)
	}
}

func TestAReadOnlyMountRefusesChanges(t *testing.T) {
	opt := rootOptions(true)
	opt.ReadOnly = true
	m := mount(t, opt)
	if err := os.WriteFile(m.path("new"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
		t.Errorf("create: %v", err)
	}
	if got, err := os.ReadFile(m.path("hello")); err != nil || len(got) == 0 {
		t.Errorf("read: %v", err)
	}
}

func TestAMountThatCannotBeSaysWhy(t *testing.T) {
	needRoot(t)
	m := mount(t, rootOptions(false))
	dir := mountDirs(t, 0)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, path string
		want       error
	}{
		{"a mountpoint that is not there", filepath.Join(dir, "none"), os.ErrNotExist},
		{"a file", file, ErrNotDirectory},
		{"a directory that something is mounted on", m.root, ErrBusyMountpoint},
	}
	fs, err := openUnion(dir, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv, err := Mount(fs, tt.path, rootOptions(false))
			if srv != nil || !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
		})
	}
}

func TestADeadMountIsNamed(t *testing.T) {
	m := mount(t, rootOptions(false))
	if err := m.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = m.cmd.Wait()
	err := checkMountpoint(m.root)
	if !errors.Is(err, ErrDeadMount) {
		t.Errorf("%v, want %v", err, ErrDeadMount)
	}
	if err := unix.Unmount(m.root, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	m.cmd = nil
}

func TestAllowOtherIsReadFromTheConfiguration(t *testing.T) {
	tests := []struct {
		name, text string
		want       bool
	}{
		{"commented out", "# see user_allow_other\n#user_allow_other\n", false},
		{"on a line", "mount_max = 10\nuser_allow_other\n", true},
		{"indented, no newline", "  user_allow_other ", true},
		{"with a value", "user_allow_other = 1\n", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := filepath.Join(t.TempDir(), "fuse.conf")
			if err := os.WriteFile(p, []byte(tt.text), 0o644); err != nil {
				t.Fatal(err)
			}
			if got := userAllowOther(p); got != tt.want {
				t.Errorf("%v", got)
			}
		})
	}
	if userAllowOther(filepath.Join(t.TempDir(), "none")) {
		t.Error("a missing file permits it")
	}
}

func TestABusyMountSaysSo(t *testing.T) {
	m := mount(t, rootOptions(true))
	f, err := os.Open(m.path("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if got := m.ask("unmount"); !strings.Contains(got, ErrBusyMountpoint.Error()) {
		t.Errorf("unmount with an open file: %s", got)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got := m.ask("unmount"); got != "ok" {
		t.Errorf("unmount: %s", got)
	}
}

func TestAPanicIsEIOWithItsStackInTheLog(t *testing.T) {
	opt := Options{}
	if st := panicStatus(&opt); !errors.Is(syscall.Errno(st), syscall.EIO) {
		t.Errorf("a panic is answered with %v", st)
	}
}

func TestAPlainUserIsToldWhatIsMissing(t *testing.T) {
	needRoot(t)
	st, err := os.Stat(fuseDevice)
	if err != nil {
		t.Skip(err)
	}
	want, opt := ErrNoFuseDevice, Options{}
	if st.Mode().Perm()&0o006 == 0o006 {
		if userAllowOther(fuseConf) {
			t.Skip("nothing is missing")
		}
		want, opt = ErrAllowOther, Options{AllowOther: true}
	}
	_, err = tryMount(t, serverConfig{Dir: mountDirs(t, plainUser), Rootless: true, Options: opt}, plainUser)
	if err == nil || !strings.Contains(err.Error(), want.Error()) {
		t.Errorf("%v, want %v", err, want)
	}
}

// TestADirectoryReplacedMeanwhileIsNotMountedOn: nor is what its name leads to now.
func TestADirectoryReplacedMeanwhileIsNotMountedOn(t *testing.T) {
	needRoot(t)
	for name, replace := range map[string]func(dir string) error{
		"nothing happens": func(string) error { return nil },
		"it is moved away": func(dir string) error {
			return os.Rename(dir+"/mnt", dir+"/moved")
		},
		"a symlink takes its place": func(dir string) error {
			return errors.Join(os.Rename(dir+"/mnt", dir+"/moved"), os.Symlink("victim", dir+"/mnt"))
		},
		"another directory takes its place": func(dir string) error {
			return unix.Renameat2(unix.AT_FDCWD, dir+"/mnt", unix.AT_FDCWD, dir+"/victim", unix.RENAME_EXCHANGE)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "mnt")
			if err := errors.Join(os.Mkdir(path, 0o700), os.Mkdir(filepath.Join(dir, "victim"), 0o700)); err != nil {
				t.Fatal(err)
			}
			on, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(on)
			device, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(device)
			opt := rootOptions(false)
			made, err := newMount(device, &opt)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(made)
			if err := replace(dir); err != nil {
				t.Fatal(err)
			}
			want := 0
			if err = attach(made, on, path); name == "nothing happens" {
				want = 1
			}
			if errors.Is(err, ErrReplaced) != (want == 0) {
				t.Errorf("attach: %v", err)
			}
			table, err := os.ReadFile("/proc/self/mountinfo")
			if n := strings.Count(string(table), dir+"/"); err != nil || n != want {
				t.Errorf("%d mounts, want %d (%v)", n, want, err)
			}
			if want > 0 {
				if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
