package bundle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/user"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	rspec "github.com/opencontainers/runtime-spec/specs-go"
)

// runtimeInput is what a config.json is made from.
type runtimeInput struct {
	image    ispec.Image
	rootfs   string // root.path
	passwd   func(path string) (io.ReadCloser, error)
	uids     []idMapping
	gids     []idMapping
	rootless bool
}

// runtimeConfig converts an image's config to a runtime's, by image-spec's
// conversion.md and, where that leaves a choice, as umoci does.
func runtimeConfig(in runtimeInput) ([]byte, error) {
	if in.image.OS != "linux" {
		return nil, fmt.Errorf("the image is for %q: only linux images make a bundle", in.image.OS)
	}
	spec := runtimeTemplate()
	spec.Root.Path = in.rootfs
	if err := applyProcess(spec, in); err != nil {
		return nil, err
	}
	applyVolumes(spec, in.image.Config.Volumes)
	spec.Annotations = imageAnnotations(in.image)
	applyMappings(spec, in)
	if in.rootless {
		applyRootless(spec)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "\t")
	if err := enc.Encode(spec); err != nil {
		return nil, fmt.Errorf("encode %s: %w", configName, err)
	}
	return b.Bytes(), nil
}

// runtimeVersion is the version of runtime-spec that config.json keeps to. It uses
// nothing newer, crun before 1.9 refuses what is not 1.0, and systemd-nspawn
// --oci-bundle all else.
const runtimeVersion = "1.0.0"

// runtimeTemplate is what every container starts from.
func runtimeTemplate() *rspec.Spec {
	caps := func() []string { return []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"} }
	return &rspec.Spec{
		Version: runtimeVersion,
		Process: &rspec.Process{
			Terminal: true,
			Args:     []string{"sh"},
			Env:      []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"},
			Cwd:      "/",
			Capabilities: &rspec.LinuxCapabilities{
				Bounding: caps(), Effective: caps(), Inheritable: caps(), Permitted: caps(), Ambient: caps(),
			},
			Rlimits:         []rspec.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
			NoNewPrivileges: true,
		},
		Root:     &rspec.Root{},
		Hostname: "umoci-default",
		Mounts:   runtimeMounts(),
		Linux: &rspec.Linux{
			Resources: &rspec.LinuxResources{Devices: []rspec.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Namespaces: []rspec.LinuxNamespace{
				{Type: rspec.CgroupNamespace}, {Type: rspec.PIDNamespace}, {Type: rspec.NetworkNamespace},
				{Type: rspec.IPCNamespace}, {Type: rspec.UTSNamespace}, {Type: rspec.MountNamespace},
			},
			MaskedPaths: []string{
				"/proc/kcore", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
				"/proc/sched_debug", "/sys/firmware", "/proc/scsi",
			},
			ReadonlyPaths: []string{
				"/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
			},
		},
	}
}

func runtimeMounts() []rspec.Mount {
	return []rspec.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
			Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
	}
}

// applyProcess sets arguments, environment, directory and user.
func applyProcess(spec *rspec.Spec, in runtimeInput) error {
	c := in.image.Config
	p := spec.Process
	if args := slices.Concat(c.Entrypoint, c.Cmd); len(args) > 0 {
		p.Args = args
	}
	if c.WorkingDir != "" {
		p.Cwd = c.WorkingDir
	}
	for _, kv := range c.Env {
		setEnv(&p.Env, kv, true)
	}
	who, err := lookupUser(c.User, in.passwd)
	if err != nil {
		return err
	}
	p.User.UID, p.User.GID = uint32(who.Uid), uint32(who.Gid)
	if !in.rootless {
		for _, gid := range who.Sgids {
			p.User.AdditionalGids = append(p.User.AdditionalGids, uint32(gid))
		}
	}
	if who.Home != "" {
		setEnv(&p.Env, "HOME="+who.Home, false)
	}
	return nil
}

// setEnv sets a variable; one that is there is replaced where over is set.
func setEnv(env *[]string, kv string, over bool) {
	name, _, _ := strings.Cut(kv, "=")
	for i, have := range *env {
		if n, _, _ := strings.Cut(have, "="); n == name {
			if over {
				(*env)[i] = kv
			}
			return
		}
	}
	*env = append(*env, kv)
}

// lookupUser resolves "user[:group]" by the image's own files.
func lookupUser(spec string, open func(string) (io.ReadCloser, error)) (*user.ExecUser, error) {
	var readers [2]io.Reader
	for i, path := range []string{"etc/passwd", "etc/group"} {
		f, err := open(path)
		if err != nil {
			return nil, fmt.Errorf("read /%s of the image: %w", path, err)
		}
		if f != nil {
			defer f.Close()
			readers[i] = f
		}
	}
	who, err := user.GetExecUser(spec, nil, readers[0], readers[1])
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %v", ErrUser, spec, err)
	}
	return who, nil
}

// applyVolumes gives each volume a file system of its own.
func applyVolumes(spec *rspec.Spec, volumes map[string]struct{}) {
	var paths []string
	for v := range volumes {
		paths = append(paths, v)
	}
	slices.Sort(paths)
	for _, v := range paths {
		spec.Mounts = append(spec.Mounts, rspec.Mount{
			Destination: v, Type: "tmpfs", Source: "none",
			Options: []string{"rw", "nosuid", "nodev", "noexec", "relatime"},
		})
	}
}

// imageAnnotations are conversion.md's, those that say something; the image's labels win.
func imageAnnotations(img ispec.Image) map[string]string {
	var ports []string
	for p := range img.Config.ExposedPorts {
		ports = append(ports, p)
	}
	slices.Sort(ports)
	a := map[string]string{
		"org.opencontainers.image.os":           img.OS,
		"org.opencontainers.image.architecture": img.Architecture,
		"org.opencontainers.image.variant":      img.Variant,
		"org.opencontainers.image.author":       img.Author,
		"org.opencontainers.image.stopSignal":   img.Config.StopSignal,
		"org.opencontainers.image.exposedPorts": strings.Join(ports, ","),
	}
	if img.Created != nil {
		a["org.opencontainers.image.created"] = img.Created.Format(time.RFC3339Nano)
	}
	maps.DeleteFunc(a, func(_, v string) bool { return v == "" })
	maps.Copy(a, img.Config.Labels)
	return a
}

func applyMappings(spec *rspec.Spec, in runtimeInput) {
	if len(in.uids) == 0 && len(in.gids) == 0 {
		return
	}
	convert := func(list []idMapping) (out []rspec.LinuxIDMapping) {
		for _, m := range list {
			out = append(out, rspec.LinuxIDMapping{ContainerID: m.ContainerID, HostID: m.HostID, Size: m.Size})
		}
		return out
	}
	spec.Linux.UIDMappings, spec.Linux.GIDMappings = convert(in.uids), convert(in.gids)
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, rspec.LinuxNamespace{Type: rspec.UserNamespace})
}

// applyRootless takes out what a plain user's container cannot have.
func applyRootless(spec *rspec.Spec) {
	spec.Linux.Resources = nil
	spec.Process.User.AdditionalGids = nil
	spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(n rspec.LinuxNamespace) bool {
		return n.Type == rspec.NetworkNamespace
	})
	var mounts []rspec.Mount
	for _, m := range spec.Mounts {
		if m.Destination == "/sys" || strings.HasPrefix(m.Destination, "/sys/") {
			continue
		}
		m.Options = slices.DeleteFunc(m.Options, func(o string) bool {
			return strings.HasPrefix(o, "uid=") || strings.HasPrefix(o, "gid=")
		})
		mounts = append(mounts, m)
	}
	mounts = append(mounts, rspec.Mount{
		Destination: "/sys", Type: "none", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"},
	})
	if _, err := os.Stat("/etc/resolv.conf"); err == nil {
		mounts = append(mounts, rspec.Mount{
			Destination: "/etc/resolv.conf", Type: "none", Source: "/etc/resolv.conf",
			Options: []string{"rbind", "ro", "nosuid", "noexec", "nodev"},
		})
	}
	spec.Mounts = mounts
}
