package build

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

// Kinds of steps, in the order in which a target does them.
const (
	stepCopy    = "copy"
	stepInstall = "install"
	stepExpand  = "expand"
	stepRun     = "run"
)

// step is what a target does at once, and what the cache knows by itself.
type step struct {
	kind  string
	pos   Pos
	label string // "copy", "run 2"
	text  string // as in the spec: for the cache's key, the history and the user

	copies  []CopyItem
	sources []source // of install and expand
	script  string   // of run: path of a host's file; "": text is shell text
}

// mounts reports whether a step works on a mount.
func (s *step) mounts() bool { return s.kind == stepInstall || s.kind == stepRun }

// inputPos is where the spec names one of a step's inputs.
func (s *step) inputPos(i int) Pos {
	if s.kind == stepCopy {
		return s.copies[i].Pos
	}
	return s.sources[i].pos
}

// source is a file that a step needs.
type source struct {
	pos  Pos
	text string // as in the spec
	path string // of the host; "": url says where it is
	url  string // http or https
	sum  string // sha256 that it has to have, in hex; "": any
}

// task is one target of a plan.
type task struct {
	*Target
	steps []*step
	base  *task   // nil: BaseTag or the base without files
	needs []*task // base and what is copied from
	from  map[string]*task
}

// newTask lists a target's steps.
func newTask(dir string, t *Target) (*task, error) {
	k := &task{Target: t, from: map[string]*task{}}
	if len(t.Copy) > 0 {
		s := &step{kind: stepCopy, pos: t.Copy[0].Pos, label: stepCopy, copies: slices.Clone(t.Copy)}
		var texts []string
		for i := range s.copies {
			c := &s.copies[i]
			texts = append(texts, c.String())
			if c.From.Value == "" {
				c.Source = hostPath(dir, c.Source)
			}
		}
		s.text = strings.Join(texts, "; ")
		k.steps = append(k.steps, s)
	}
	for _, list := range []struct {
		kind  string
		texts []Text
	}{{stepInstall, t.Install}, {stepExpand, t.Expand}} {
		if len(list.texts) == 0 {
			continue
		}
		s := &step{kind: list.kind, pos: list.texts[0].Pos, label: list.kind}
		var texts []string
		for _, text := range list.texts {
			src, err := newSource(dir, text)
			if err != nil {
				return nil, err
			}
			s.sources = append(s.sources, src)
			texts = append(texts, text.Value)
		}
		s.text = strings.Join(texts, " ")
		k.steps = append(k.steps, s)
	}
	for i, text := range t.Run {
		s := &step{kind: stepRun, pos: text.Pos, label: stepRun, text: text.Value}
		if len(t.Run) > 1 {
			s.label = fmt.Sprintf("%s %d", stepRun, i+1)
		}
		var err error
		if s.script, err = scriptFile(dir, text); err != nil {
			return nil, err
		}
		k.steps = append(k.steps, s)
	}
	return k, nil
}

func (c *CopyItem) String() string {
	var b strings.Builder
	if c.From.Value != "" {
		b.WriteString(c.From.Value + ":")
	}
	b.WriteString(c.Source + " " + c.Dest)
	if c.Owner != "" {
		b.WriteString(" owner " + c.Owner)
	}
	if c.Mode != nil {
		fmt.Fprintf(&b, " mode %#o", *c.Mode)
	}
	return b.String()
}

// hostPath is a path of a spec in dir.
func hostPath(dir, name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(dir, name)
}

// scriptFile is the host's file that run names, "" for shell text. One word is a file
// where there is one, but not the host's programs, which the image has too; a word that
// begins with "./" or "../" can be nothing else.
func scriptFile(dir string, t Text) (string, error) {
	word := strings.TrimSpace(t.Value)
	if strings.ContainsAny(word, " \t\n;&|<>()$`\"'\\*?=") {
		return "", nil
	}
	name := hostPath(dir, word)
	info, err := os.Stat(name)
	switch {
	case err == nil && info.Mode().IsRegular():
		if filepath.IsAbs(word) && isProgram(name) {
			return "", nil
		}
		return name, nil
	case !strings.HasPrefix(word, "./") && !strings.HasPrefix(word, "../"):
		return "", nil
	case err != nil:
		return "", at(t.Pos, fmt.Errorf("run: %w", err))
	}
	return "", bad(t.Pos, "run: %s is no file", name)
}

// isProgram reports whether a file is an executable of machine code (elf(5)).
func isProgram(name string) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // it was read only
	var magic [4]byte
	_, err = io.ReadFull(f, magic[:])
	return err == nil && string(magic[:]) == "\x7fELF"
}

// plan is the targets to build, each after what it needs.
type plan struct {
	spec  *Spec
	tasks []*task
}

// newPlan resolves bases. names are the targets wanted; none: all.
func newPlan(spec *Spec, names []string) (*plan, error) {
	byName := map[string]*task{}
	var all []*task
	for _, t := range spec.Targets {
		k, err := newTask(spec.Dir, t)
		if err != nil {
			return nil, err
		}
		byName[t.Name] = k
		all = append(all, k)
	}
	for _, k := range all {
		need := func(name string) *task {
			other := byName[name]
			if other != nil && !slices.Contains(k.needs, other) {
				k.needs = append(k.needs, other)
			}
			return other
		}
		k.base = need(k.Base.Value)
		for _, c := range k.Copy {
			if c.From.Value != "" {
				k.from[c.From.Value] = need(c.From.Value)
			}
		}
	}
	wanted := all
	if len(names) > 0 {
		wanted = nil
		for _, name := range names {
			if byName[name] == nil {
				return nil, fmt.Errorf("--target %s: %s has no such target", name, spec.File)
			}
			wanted = append(wanted, byName[name])
		}
	}
	p := &plan{spec: spec}
	o := ordering{state: map[*task]int{}}
	for _, k := range all { // a cycle is an error also where nobody wants it now
		if err := o.visit(k); err != nil {
			return nil, err
		}
	}
	keep := map[*task]bool{}
	for _, k := range wanted {
		markNeeded(k, keep)
	}
	for _, k := range o.sorted {
		if keep[k] {
			p.tasks = append(p.tasks, k)
		}
	}
	return p, nil
}

func markNeeded(k *task, keep map[*task]bool) {
	if keep[k] {
		return
	}
	keep[k] = true
	for _, n := range k.needs {
		markNeeded(n, keep)
	}
}

// ordering is a topological sort, which keeps the spec's order where it can.
type ordering struct {
	state  map[*task]int // 1: on the path, 2: done
	path   []*task
	sorted []*task
}

func (o *ordering) visit(k *task) error {
	switch o.state[k] {
	case 2:
		return nil
	case 1:
		i := slices.Index(o.path, k)
		var names []string
		for _, t := range o.path[i:] {
			names = append(names, t.Name)
		}
		return bad(k.Base.Pos, "targets need each other: %s -> %s", strings.Join(names, " -> "), k.Name)
	}
	o.state[k] = 1
	o.path = append(o.path, k)
	for _, n := range k.needs {
		if err := o.visit(n); err != nil {
			return err
		}
	}
	o.path = o.path[:len(o.path)-1]
	o.state[k] = 2
	o.sorted = append(o.sorted, k)
	return nil
}

// fileCopies are a step's copies as bundle takes them.
func (s *step) fileCopies() []bundle.FileCopy {
	var out []bundle.FileCopy
	for _, c := range s.copies {
		out = append(out, bundle.FileCopy{Source: c.Source, Dest: c.Dest, Owner: c.Owner, Mode: c.Mode})
	}
	return out
}
