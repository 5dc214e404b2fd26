package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/internal/userns"
)

// scratchPoint is where a step finds what it needs of the host: a script, packages.
const scratchPoint = "/.umoci-mount"

// maxShellText is the longest argument that a process can have (MAX_ARG_STRLEN), in
// bytes, with room to spare.
const maxShellText = 128<<10 - 1

// runStep runs a step's commands in the session's root file system.
func (b *builder) runStep(ctx context.Context, k *task, s *step, se *session, base *cas.Path, out io.Writer) (err error) {
	dir, err := os.MkdirTemp(filepath.Join(b.work.path, scratchName), "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o755); err != nil { // a step may change its user
		return err
	}
	args, err := s.arguments(dir)
	if err != nil {
		return err
	}
	env, err := b.environment(ctx, k, base)
	if err != nil {
		return err
	}
	p := &points{rootfs: se.rootfs()}
	if err := p.open(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.undo(), p.close()) }()
	c := &command{bundle: se.dir, rootfs: se.rootfs(), args: args, env: env}
	if err := p.prepare(c, dir); err != nil {
		return err
	}
	switch {
	case b.runtime != RuntimeBuiltin:
		return b.runContainer(ctx, c, out)
	case !userns.HasRange():
		return b.runBuiltin(ctx, c, out)
	}
	// With a range of ids the mount is made inside their namespace, and not here.
	if err := p.close(); err != nil {
		return err
	}
	err = se.unmounted(ctx, func() error { return b.runBuiltin(ctx, c, out) })
	if se.mounted {
		err = errors.Join(err, p.open())
	}
	return err
}

// prepare finds a command's program, and makes what it needs to mount on.
func (p *points) prepare(c *command, scratch string) (err error) {
	if !strings.HasPrefix(c.args[0], scratchPoint+"/") {
		if c.args[0], err = p.program(c.args[0], c.env); err != nil {
			return err
		}
	}
	list := []point{
		{target: "/proc", dir: true}, {target: "/sys", dir: true}, {target: "/dev", dir: true},
		{source: scratch, target: scratchPoint, dir: true},
	}
	if _, err := os.Stat("/etc/resolv.conf"); err == nil {
		list = append(list, point{source: "/etc/resolv.conf", target: "/etc/resolv.conf"})
	}
	for _, pt := range list {
		target, err := p.make(pt)
		if err != nil {
			return err
		}
		if pt.source != "" {
			c.binds = append(c.binds, userns.Bind{Source: pt.source, Target: target})
		}
	}
	return nil
}

// program is the path of one of the image's programs. A runtime would say less where
// there is none.
func (p *points) program(name string, env []string) (string, error) {
	dirs := []string{""}
	if !filepath.IsAbs(name) {
		for _, kv := range env {
			if list, ok := cutEnv(kv, "PATH"); ok {
				dirs = filepath.SplitList(list)
			}
		}
	}
	for _, dir := range dirs {
		at, err := p.resolve(filepath.Join("/", dir, name))
		if err != nil {
			return "", err
		}
		if info, err := p.root.Stat(at); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return filepath.Join("/", dir, name), nil
		}
	}
	return "", fmt.Errorf("the image has no %s", name)
}

// arguments are what a step runs; dir is what it will find at scratchPoint.
func (s *step) arguments(dir string) ([]string, error) {
	switch {
	case s.kind == stepInstall:
		return s.installArguments(dir)
	case s.script == "":
		if len(s.text) > maxShellText {
			return nil, fmt.Errorf("the text has %d bytes: put it in a script file", len(s.text))
		}
		return []string{"/bin/sh", "-e", "-c", s.text}, nil
	}
	data, err := os.ReadFile(s.script)
	if err != nil {
		return nil, err
	}
	name := filepath.Base(s.script)
	if err := writeShared(filepath.Join(dir, name), data, 0o755); err != nil {
		return nil, err
	}
	at := filepath.Join(scratchPoint, name)
	if strings.HasPrefix(string(data), "#!") || strings.HasPrefix(string(data), "\x7fELF") {
		return []string{at}, nil
	}
	return []string{"/bin/sh", "-e", at}, nil
}

// writeShared writes a file that every user can read, whatever the umask.
func writeShared(name string, data []byte, mode os.FileMode) error {
	if err := os.WriteFile(name, data, mode); err != nil {
		return err
	}
	return os.Chmod(name, mode)
}

func (s *step) installArguments(dir string) ([]string, error) {
	var tool string
	args := []string{"", "-i"}
	for i := range s.sources {
		src := &s.sources[i]
		kind, err := packageKind(src.path)
		if err != nil {
			return nil, at(src.pos, err)
		}
		uses := map[string]string{packageDeb: "dpkg", packageRPM: "rpm"}[kind]
		if tool != "" && tool != uses {
			return nil, bad(src.pos, "install: packages of both kinds, .deb and .rpm")
		}
		tool = uses
		// One that a runtime can follow to: a link to the file would lead nowhere there.
		name := strconv.Itoa(i+1) + kind
		if err := linkOrCopy(src.path, filepath.Join(dir, name)); err != nil {
			return nil, err
		}
		args = append(args, filepath.Join(scratchPoint, name))
	}
	args[0] = tool
	return args, nil
}

// linkOrCopy makes to the same file as from, or a copy where that cannot be.
func linkOrCopy(from, to string) (err error) {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o444 == 0o444 {
		if real, err := filepath.EvalSymlinks(from); err == nil && os.Link(real, to) == nil {
			return nil
		}
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(0o644), out.Close())
}

// proxies are variables of the host that a step gets, and no image has.
var proxies = []string{
	"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy",
	"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY",
}

// environment is a step's: defaults, the host's proxies, the image's variables, the
// target's, each over those before.
func (b *builder) environment(ctx context.Context, k *task, base *cas.Path) ([]string, error) {
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "DEBIAN_FRONTEND=noninteractive",
	}
	for _, name := range proxies {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	if b.opt.Epoch != nil {
		env = append(env, "SOURCE_DATE_EPOCH="+strconv.FormatInt(b.opt.Epoch.Unix(), 10))
	}
	img, err := b.layout.Image(ctx, base)
	if err != nil {
		return nil, err
	}
	for _, kv := range append(img.Config.Config.Env, k.Config.Env...) {
		name, _, _ := strings.Cut(kv, "=")
		replaced := false
		for i := range env {
			if _, ok := cutEnv(env[i], name); ok {
				env[i], replaced = kv, true
			}
		}
		if !replaced {
			env = append(env, kv)
		}
	}
	return env, nil
}

// cutEnv is a variable's value where kv sets it.
func cutEnv(kv, name string) (string, bool) { return strings.CutPrefix(kv, name+"=") }
