package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	rspec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
	"github.com/umoci-mount/umoci-mount/internal/userns"
)

// Runtimes that steps can run under.
const (
	RuntimeAuto    = "" // root: the first that there is; a plain user: RuntimeBuiltin
	RuntimeRunc    = "runc"
	RuntimeCrun    = "crun"
	RuntimeBuiltin = "builtin" // package userns
)

// runtimeNames are the OCI runtimes.
var runtimeNames = []string{RuntimeRunc, RuntimeCrun}

// ErrRuntime: the machine has not what steps are to run under.
var ErrRuntime = errors.New("cannot run commands of an image")

// chooseRuntime finds what steps run under. A plain user's containers have one id:
// there, only package userns lets a step use others.
func chooseRuntime(want string) (string, error) {
	switch {
	case want == RuntimeBuiltin, want == RuntimeAuto && bundle.PlainUser():
		return RuntimeBuiltin, nil
	case want == RuntimeRunc, want == RuntimeCrun:
		if _, err := exec.LookPath(want); err != nil {
			return "", fmt.Errorf("--runtime %s: %w: %w", want, ErrRuntime, err)
		}
		return want, nil
	}
	for _, name := range runtimeNames {
		if _, err := exec.LookPath(name); err == nil {
			return name, nil
		}
	}
	return RuntimeBuiltin, nil
}

// command is what a step runs in a root file system.
type command struct {
	bundle string
	rootfs string
	args   []string
	env    []string
	binds  []userns.Bind // read-only
}

// exitError is a command that failed.
type exitError struct {
	code   int
	signal syscall.Signal // 0: none
}

func (e *exitError) Error() string {
	if e.signal != 0 {
		return fmt.Sprintf("killed by signal %d (%v)", e.signal, e.signal)
	}
	return fmt.Sprintf("exit code %d", e.code)
}

// asExit turns the end of a process into an *exitError.
func asExit(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	e := &exitError{code: exit.ExitCode()}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.signal = ws.Signal()
	}
	return e
}

// killWait is how long output is waited for after a command's end.
const killWait = 10 * time.Second

// runContainer runs a command under an OCI runtime. When ctx ends it is killed.
func (b *builder) runContainer(ctx context.Context, c *command, out io.Writer) (err error) {
	id := fmt.Sprintf("umoci-mount-%s-%d", filepath.Base(b.work.path), b.containers.Add(1))
	dir := filepath.Join(b.work.path, scratchName, id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	spec := containerSpec(c, os.Geteuid(), os.Getegid())
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		return err
	}
	state := filepath.Join(b.work.path, stateName, b.runtime)
	cmd := exec.CommandContext(ctx, b.runtime, "--root", state, "run", "--bundle", dir, id)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's ^C is this process' to handle
	cmd.WaitDelay = killWait
	remove := func() error {
		out, err := exec.Command(b.runtime, "--root", state, "delete", "--force", id).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s delete: %w: %s", b.runtime, err, out)
		}
		return nil
	}
	cmd.Cancel = func() error {
		if err := remove(); err != nil {
			return errors.Join(err, cmd.Process.Kill())
		}
		return nil
	}
	err = cmd.Run()
	if ctx.Err() != nil {
		_ = remove() // where the kill met it while it was being made; often it is gone
		return ctx.Err()
	}
	return asExit(err)
}

// runBuiltin runs a command by this program's own means. When ctx ends it is killed.
func (b *builder) runBuiltin(ctx context.Context, c *command, out io.Writer) error {
	code, err := userns.Run(ctx, userns.Options{
		Bundle: c.bundle, Args: c.args, Env: c.env, NoEnv: true, Dir: "/", User: "0:0", Binds: c.binds,
		Stdout: out, Stderr: out, NoGrace: true, Log: b.opt.Log,
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return err
	case code > signalCode:
		// A terminal's ^C may have met the command before this process has taken note.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(signalWait):
		}
		return &exitError{signal: syscall.Signal(code - signalCode)}
	case code != 0:
		return &exitError{code: code}
	}
	return nil
}

// signalWait is how long this process may take to note a signal that its group was sent.
const signalWait = 100 * time.Millisecond

// signalCode and a signal's number are the exit code of who was killed by it (sh(1)).
const signalCode = 128

// buildCapabilities are what a step may do: what package managers and installers need.
var buildCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// containerSpec is the runtime's config.json: root of the image, the host's network, and
// namespaces of its own for the rest.
func containerSpec(c *command, uid, gid int) *rspec.Spec {
	spec := &rspec.Spec{
		Version: "1.0.2", // crun before 1.9 refuses what is not 1.0
		Process: &rspec.Process{
			Args: c.args, Env: c.env, Cwd: "/",
			Capabilities: &rspec.LinuxCapabilities{
				Bounding: buildCapabilities, Effective: buildCapabilities, Permitted: buildCapabilities,
			},
		},
		Root:     &rspec.Root{Path: c.rootfs},
		Hostname: "build",
		Mounts: []rspec.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
				Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777"}},
		},
		Linux: &rspec.Linux{
			Namespaces: []rspec.LinuxNamespace{
				{Type: rspec.PIDNamespace}, {Type: rspec.IPCNamespace}, {Type: rspec.UTSNamespace}, {Type: rspec.MountNamespace},
			},
			MaskedPaths:   []string{"/proc/kcore", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	if uid == 0 {
		spec.Linux.Resources = &rspec.LinuxResources{Devices: allowedDevices()}
		spec.Mounts = append(spec.Mounts, rspec.Mount{
			Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"},
		})
	} else {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, rspec.LinuxNamespace{Type: rspec.UserNamespace})
		spec.Linux.UIDMappings = []rspec.LinuxIDMapping{{HostID: uint32(uid), Size: 1}}
		spec.Linux.GIDMappings = []rspec.LinuxIDMapping{{HostID: uint32(gid), Size: 1}}
		spec.Mounts = append(spec.Mounts, rspec.Mount{
			Destination: "/sys", Type: "none", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"},
		})
	}
	for _, b := range c.binds {
		spec.Mounts = append(spec.Mounts, rspec.Mount{
			Destination: b.Target, Type: "bind", Source: b.Source, Options: []string{"rbind", "ro", "nosuid", "nodev"},
		})
	}
	return spec
}

// allowedDevices lets a step make any device, as archives and packages do, and use the
// usual ones.
func allowedDevices() []rspec.LinuxDeviceCgroup {
	list := []rspec.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"}, {Allow: true, Type: "b", Access: "m"},
	}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}} {
		list = append(list, rspec.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &d[0], Minor: &d[1], Access: "rwm"})
	}
	ptys := int64(136)
	return append(list, rspec.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &ptys, Access: "rwm"})
}
