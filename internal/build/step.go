package build

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/internal/bundle"
	"github.com/umoci-mount/umoci-mount/internal/imageconfig"
)

// step does one step: t.top is its result then.
func (t *targetBuild) step(ctx context.Context, s *step) error {
	start := time.Now()
	t.b.opt.Report.step(t.k.Name, s.label, s.text)
	var err error
	if s.mounts() {
		err = t.mounted(ctx, s)
	} else {
		err = t.direct(ctx, s)
	}
	if err == nil {
		t.b.opt.Report.stepDone(t.k.Name, s.label, time.Since(start))
	}
	return err
}

// mounted does a step on the mount.
func (t *targetBuild) mounted(ctx context.Context, s *step) error {
	if err := t.se.open(ctx, t.top); err != nil {
		return err
	}
	out := t.b.opt.Report.output(t.k.Name)
	err := t.b.runStep(ctx, t.k, s, t.se, t.top, out)
	out.flush()
	if err != nil {
		return err
	}
	return t.commit(ctx, s.kind, s.text)
}

// commit makes a layer of what changed in the mount.
func (t *targetBuild) commit(ctx context.Context, kind, text string) error {
	p, err := t.se.commit(ctx, t.compress(), t.history(kind+" "+text))
	if err == nil {
		t.top = p
	}
	return err
}

// direct does a step without the mount, which has to be taken away for it.
func (t *targetBuild) direct(ctx context.Context, s *step) (err error) {
	inner, err := t.se.hookMounts()
	if err != nil {
		return err
	}
	if len(inner) > 0 {
		return fmt.Errorf("a pre hook has mounted %s: do %s in a target of its own, below this one", inner[0], s.kind)
	}
	if err := t.se.close(ctx); err != nil {
		return err
	}
	history, err := t.entries(ctx, s.kind+" "+s.text, false)
	if err != nil {
		return err
	}
	opt := t.b.deriving(t.top, t.compress(), history)
	if s.kind == stepExpand {
		var list []bundle.Archive
		for i := range s.sources {
			src := &s.sources[i]
			list = append(list, bundle.Archive{Name: src.text, Open: func() (io.ReadCloser, error) { return openArchive(ctx, src.path) }})
		}
		t.top, err = keep(t.top)(bundle.Expand(ctx, opt, list))
		return err
	}
	copies := s.fileCopies()
	for i := range copies {
		if from := s.copies[i].From.Value; from != "" {
			copies[i].From = t.b.source(t.k, from)
		}
	}
	t.top, err = keep(t.top)(bundle.Copy(ctx, opt, copies, t.b.opt.Now))
	return err
}

// keep is a result, or what was there before where it failed.
func keep(was *cas.Path) func(*cas.Path, error) (*cas.Path, error) {
	return func(p *cas.Path, err error) (*cas.Path, error) {
		if err != nil {
			return was, err
		}
		return p, nil
	}
}

// edit is what a target changes in the config and the manifest. An entrypoint without a
// cmd takes the base's away: its arguments were another program's.
func (c *Config) edit() *imageconfig.Edit {
	e := &imageconfig.Edit{
		Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, WorkingDir: c.Workdir, User: c.User, Labels: c.Labels,
		Volumes: c.Volumes, ExposedPorts: c.Ports, Author: c.Author, Annotations: c.Annotations,
	}
	if c.Entrypoint != nil && c.Cmd == nil {
		e.Clear = append(e.Clear, "config.cmd")
	}
	return e
}

// String lists what is set, for the history; "" for nothing.
func (c *Config) String() string {
	var out []string
	list := func(name string, values []string) {
		if len(values) > 0 {
			out = append(out, fmt.Sprintf("%s %q", name, values))
		}
	}
	one := func(name string, value *string) {
		if value != nil {
			out = append(out, fmt.Sprintf("%s %q", name, *value))
		}
	}
	list("entrypoint", c.Entrypoint)
	list("cmd", c.Cmd)
	list("env", c.Env)
	one("workdir", c.Workdir)
	one("user", c.User)
	list("labels", c.Labels)
	list("volumes", c.Volumes)
	list("ports", c.Ports)
	one("author", c.Author)
	list("annotations", c.Annotations)
	return strings.Join(out, "; ")
}
