package fusefs

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mounted is a mount that another process serves.
type mounted struct {
	t     testing.TB
	root  string // the mountpoint
	upper string
	log   string
	opt   Options
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
}

// mountFor is how long a test may use one mount before its connection is cut.
const mountFor = 90 * time.Second

// rootOptions is a mount as root makes it.
func rootOptions(passthrough bool) Options {
	return Options{AllowOther: true, DirectMount: true, DefaultPermissions: true, Passthrough: passthrough}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// needPassthrough skips where the kernel has none (before Linux 6.9).
func needPassthrough(t testing.TB) {
	t.Helper()
	needRoot(t)
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	if major < 6 || major == 6 && minor < 9 {
		t.Skipf("Linux %d.%d has no FUSE passthrough", major, minor)
	}
}

// mountDirs makes the directories of a mount, which everyone may enter.
func mountDirs(t testing.TB, owner int) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fusefs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for _, d := range []string{"", "upper", "work", "mnt"} {
		p := filepath.Join(dir, d)
		if err := os.Mkdir(p, 0o755); err != nil && d != "" {
			t.Fatal(err)
		}
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
		if owner != 0 {
			if err := os.Chown(p, owner, owner); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// mount starts a server over the standard tree and an empty upper.
func mount(t testing.TB, opt Options) *mounted {
	t.Helper()
	needRoot(t)
	return mountAs(t, serverConfig{Dir: mountDirs(t, 0), Options: opt}, 0)
}

func mountAs(t testing.TB, cfg serverConfig, uid int) *mounted {
	t.Helper()
	m, err := tryMount(t, cfg, uid)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func tryMount(t testing.TB, cfg serverConfig, uid int) (*mounted, error) {
	t.Helper()
	cfg.LogPath = filepath.Join(cfg.Dir, "log")
	config, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	m := &mounted{
		t: t, root: filepath.Join(cfg.Dir, "mnt"), upper: filepath.Join(cfg.Dir, "upper"), log: cfg.LogPath, opt: cfg.Options,
		cmd: exec.Command(os.Args[0]),
	}
	m.cmd.Env = append(os.Environ(), serverEnv+"="+string(config), "GORACE=atexit_sleep_ms=0")
	var stderr strings.Builder
	m.cmd.Stderr = &stderr
	if uid != 0 {
		m.cmd.Path = copyBinary(t)
		m.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
		m.cmd.Dir = "/"
	}
	if cfg.UserNS {
		m.cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{Size: 65535}},
			GidMappings: []syscall.SysProcIDMap{{Size: 65535}},
		}
	}
	if m.stdin, err = m.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	m.out = bufio.NewReader(stdout)
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := m.out.ReadString('\n'); err != nil {
		_ = m.stdin.Close()
		werr := m.cmd.Wait()
		return nil, fmt.Errorf("server: %s: %w", strings.TrimSpace(stderr.String()), werr)
	}
	abort := func() { _ = m.cmd.Process.Kill() }
	if !cfg.UserNS {
		abort = connectionAbort(t, m.root)
	}
	watchdog := time.AfterFunc(mountFor, func() {
		t.Errorf("the mount is cut off after %v", mountFor)
		abort()
	})
	t.Cleanup(func() {
		m.end(&stderr, abort)
		watchdog.Stop()
	})
	return m, nil
}

// end unmounts and waits for the server, by force if it must.
func (m *mounted) end(stderr *strings.Builder, abort func()) {
	_ = m.stdin.Close()
	if m.cmd == nil {
		return
	}
	done := make(chan error, 1)
	go func() { done <- m.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			m.t.Errorf("server: %v: %s", err, stderr)
		}
	case <-time.After(20 * time.Second):
		m.t.Error("the server does not end")
		abort()
		_ = m.cmd.Process.Kill()
		<-done
	}
	if err := unix.Unmount(m.root, unix.MNT_DETACH); err == nil {
		m.t.Error("the mount was still there")
	}
	if m.t.Failed() {
		if log, err := os.ReadFile(m.log); err == nil {
			m.t.Logf("log:\n%.4000s", log)
		}
	}
}

// connectionAbort finds the way to cut a connection whose server hangs.
func connectionAbort(t testing.TB, root string) func() {
	t.Helper()
	const control = "/sys/fs/fuse/connections"
	if names, err := os.ReadDir(control); err == nil && len(names) == 0 && os.Geteuid() == 0 {
		_ = unix.Mount("none", control, "fusectl", 0, "")
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		// id parent major:minor root mountpoint …
		f := strings.Fields(line)
		if len(f) < 5 || f[4] != root {
			continue
		}
		_, minor, _ := strings.Cut(f[2], ":")
		return func() { _ = os.WriteFile(filepath.Join(control, minor, "abort"), []byte("1"), 0o200) }
	}
	t.Fatalf("%s is not mounted", root)
	return nil
}

// copyBinary puts the test binary where a plain user can run it.
func copyBinary(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	dir := mountDirs(t, 0)
	p := filepath.Join(dir, "server")
	if err := os.WriteFile(p, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

// ask puts a question to the server.
func (m *mounted) ask(question string) string {
	m.t.Helper()
	if _, err := io.WriteString(m.stdin, question+"\n"); err != nil {
		m.t.Fatal(err)
	}
	line, err := m.out.ReadString('\n')
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.TrimSuffix(line, "\n")
}

// stats asks the server for its counters.
func (m *mounted) stats() map[string]uint64 {
	m.t.Helper()
	var out map[string]uint64
	if err := json.Unmarshal([]byte(m.ask("stats")), &out); err != nil {
		m.t.Fatal(err)
	}
	return out
}

// requests is how many requests of a kind f causes.
func (m *mounted) requests(kind string, f func()) uint64 {
	m.t.Helper()
	before := m.stats()[kind]
	f()
	return m.stats()[kind] - before
}

func (m *mounted) path(name string) string { return filepath.Join(m.root, name) }

// logged reports whether the server's log has a text.
func (m *mounted) logged(text string) bool {
	m.t.Helper()
	data, err := os.ReadFile(m.log)
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.Contains(string(data), text)
}
