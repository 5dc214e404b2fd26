package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/internal/bundle"
	"github.com/umoci-mount/umoci-mount/internal/imageconfig"
)

// StepError is a step that failed.
type StepError struct {
	Target, Step string
	Err          error
	Kept         string // bundle with what it left; "": nothing was kept
}

func (e *StepError) Error() string {
	s := fmt.Sprintf("target %s: %s: %v", e.Target, e.Step, e.Err)
	if e.Kept != "" {
		s += fmt.Sprintf(" (mounted at %s/rootfs: look into it, then umoci-mount umount %s)", e.Kept, e.Kept)
	}
	return s
}

func (e *StepError) Unwrap() error { return e.Err }

// targetBuild is one target under way.
type targetBuild struct {
	b     *builder
	k     *task
	base  *cas.Path
	top   *cas.Path // with the steps that are done
	keys  []stepKey // of the steps
	se    *session
	hooks bool
}

// target builds one target.
func (b *builder) target(ctx context.Context, k *task) (_ *built, err error) {
	start := time.Now()
	t := &targetBuild{b: b, k: k, hooks: len(k.Pre)+len(k.Post) > 0}
	key, err := t.begin(ctx)
	if err != nil {
		return nil, err
	}
	var result *cas.Path
	if t.hooks {
		result, err = t.anew(ctx)
	} else {
		var cached bool
		if result, cached, err = t.cached(ctx, key); err == nil && cached {
			b.opt.Report.cached(k.Name)
			return &built{result, true}, nil
		}
	}
	if err != nil {
		return nil, err
	}
	b.opt.Report.done(k.Name, result.Descriptor().Digest, time.Since(start))
	return &built{path: result}, nil
}

// begin finds the base, and the name that the cache knows it by.
func (t *targetBuild) begin(ctx context.Context) (key string, err error) {
	k := t.k
	switch {
	case k.base != nil:
		t.base = t.b.result(k.base)
	case k.Base.Value == Empty:
		created := t.b.opt.Now
		if t.b.opt.Epoch != nil {
			created = *t.b.opt.Epoch
		}
		if t.base, err = t.b.layout.Blank(ctx, t.b.opt.New, created); err != nil {
			return "", err
		}
		t.top = t.base
		return t.b.emptyKey(), nil
	default:
		t.base = t.b.bases[k.Base.Value]
	}
	t.top = t.base
	return t.base.Descriptor().Digest.String(), nil
}

// emptyKey is what the cache knows an image without a base by: not its manifest, which
// has a time.
func (b *builder) emptyKey() string {
	return fmt.Sprintf("%s %s/%s/%s", Empty, b.opt.New.OS, b.opt.New.Architecture, b.opt.New.Variant)
}

// compress is how a step's layer is stored: as it stays where it is the result's, else
// fast.
func (t *targetBuild) compress() string {
	if t.k.Layers == LayersStep || len(t.k.steps) == 1 && !t.hooks {
		return t.b.opt.Compress
	}
	return cas.CompressZstd
}

// stepKeys are the keys of all steps.
func (t *targetBuild) stepKeys(base string) error {
	manifests := t.b.manifests(t.k)
	epoch := ""
	if t.b.opt.Epoch != nil {
		epoch = fmt.Sprint(t.b.opt.Epoch.Unix())
	}
	previous := ""
	for _, s := range t.k.steps {
		key := stepKey{
			Version: cacheVersion, Epoch: epoch, Previous: previous, Kind: s.kind, Text: s.text, Compress: t.compress(),
		}
		if previous == "" {
			key.Base = base
		}
		if s.mounts() {
			key.Env = strings.Join(t.k.Config.Env, "\n")
		}
		var err error
		if key.Inputs, err = t.b.sums.inputs(t.k, s, manifests); err != nil {
			return err
		}
		t.keys = append(t.keys, key)
		previous = key.digest()
	}
	return nil
}

// finalKey is the key of the whole target.
func (t *targetBuild) finalKey(base string) (stepKey, error) {
	c := t.k.Config
	c.Pos = Pos{}
	data, err := json.Marshal(struct {
		Layers, Compress string
		Config           Config
		Texts            []string
	}{t.k.Layers, t.b.opt.Compress, c, t.texts()})
	key := stepKey{Version: cacheVersion, Base: base, Kind: "target", Text: string(data)}
	if t.b.opt.Epoch != nil {
		key.Epoch = fmt.Sprint(t.b.opt.Epoch.Unix())
	}
	if n := len(t.keys); n > 0 {
		key.Previous = t.keys[n-1].digest()
	}
	return key, err
}

// finalLabel is the cache's name of a whole target, which no step has.
const finalLabel = "target"

// cached builds a target from what the cache has of it.
func (t *targetBuild) cached(ctx context.Context, base string) (_ *cas.Path, all bool, err error) {
	if err := t.stepKeys(base); err != nil {
		return nil, false, err
	}
	final, err := t.finalKey(base)
	if err != nil {
		return nil, false, err
	}
	if p, _ := t.b.cache.find(ctx, t.k.Name, finalLabel, &final); p != nil {
		for i := range t.keys { // they are in use, too
			t.b.cache.find(ctx, t.k.Name, t.k.steps[i].label, &t.keys[i])
		}
		return p, true, nil
	}
	first, why := t.lookUp(ctx)
	for _, s := range t.k.steps[:first] {
		t.b.opt.Report.stepCached(t.k.Name, s)
	}
	if first < len(t.k.steps) {
		t.b.opt.Report.notCached(t.k.Name, t.k.steps[first].label, why)
	}
	if err := t.steps(ctx, first); err != nil {
		return nil, false, err
	}
	p, err := t.finish(ctx)
	if err == nil {
		t.b.cache.put(t.k.Name, finalLabel, &final, p)
	}
	return p, false, err
}

// lookUp finds the last step of which the cache has the result, makes that the top, and
// says why the next one, first, has to be done.
func (t *targetBuild) lookUp(ctx context.Context) (first int, why string) {
	for i, s := range t.k.steps {
		p, no := t.b.cache.find(ctx, t.k.Name, s.label, &t.keys[i])
		switch {
		case p != nil:
			t.top, first = p, i+1
		case i == first:
			why = no
		}
	}
	return first, why
}

// anew builds a target with hooks: what they do is not known, so nothing is taken from
// the cache.
func (t *targetBuild) anew(ctx context.Context) (*cas.Path, error) {
	t.b.opt.Report.notCached(t.k.Name, t.k.steps0(), "its hooks run every time")
	if err := t.steps(ctx, 0); err != nil {
		return nil, err
	}
	return t.finish(ctx)
}

// steps0 names the first of a target's steps.
func (k *task) steps0() string {
	if len(k.steps) == 0 {
		return "the target"
	}
	return k.steps[0].label
}

// steps does the steps from first on, and the hooks.
func (t *targetBuild) steps(ctx context.Context, first int) (err error) {
	if first == len(t.k.steps) && !t.hooks {
		return nil
	}
	if err := t.b.needWork(ctx); err != nil {
		return err
	}
	t.se = t.b.newSession(t.k.Name)
	defer func() {
		var failed *StepError
		if errors.As(err, &failed) && t.b.opt.KeepFailed && t.se.mounted && ctx.Err() == nil {
			if kerr := t.b.work.keep(); kerr == nil {
				failed.Kept = t.se.dir
				return
			}
		}
		err = errors.Join(err, t.se.close(ctx))
	}()
	if err := t.runHooks(ctx, "pre", t.k.Pre); err != nil {
		return err
	}
	if t.hooks {
		if err := checkInputs(t.k); err != nil {
			return err
		}
	}
	for i, s := range t.k.steps[first:] {
		if err := t.step(ctx, s); err != nil {
			return t.fail(s.pos, s.label, s, err)
		}
		if !t.hooks {
			t.b.cache.put(t.k.Name, s.label, &t.keys[first+i], t.top)
		}
	}
	return t.runHooks(ctx, "post", t.k.Post)
}

// fail says which step an error is of; s is nil for a hook. An interruption is nobody's.
func (t *targetBuild) fail(pos Pos, label string, s *step, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	var already *PosError
	if errors.As(err, &already) {
		pos = already.Pos
		err = already.Err
	}
	var input *bundle.InputError
	if s != nil && errors.As(err, &input) {
		pos = s.inputPos(input.Index)
		err = input // without what was done with it
	}
	return at(pos, &StepError{Target: t.k.Name, Step: label, Err: err})
}

// runHooks runs shell text on the host, with the root file system mounted.
func (t *targetBuild) runHooks(ctx context.Context, name string, hooks []Text) error {
	if len(hooks) == 0 {
		return nil
	}
	if err := t.se.open(ctx, t.top); err != nil {
		return t.fail(hooks[0].Pos, name, nil, err)
	}
	for _, h := range hooks {
		t.b.opt.Report.step(t.k.Name, name, h.Value)
		out := t.b.opt.Report.output(t.k.Name)
		cmd := exec.CommandContext(ctx, "/bin/sh", "-e", "-c", h.Value)
		cmd.Dir = t.b.opt.Spec.Dir
		cmd.Env = append(os.Environ(), "UMOCI_MOUNT_ROOTFS="+t.se.rootfs(), "UMOCI_MOUNT_TARGET="+t.k.Name, "ROOTFS="+t.se.rootfs())
		cmd.Stdout, cmd.Stderr = out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = killWait
		err := asExit(cmd.Run())
		out.flush()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return t.fail(h.Pos, name, nil, err)
		}
	}
	if err := t.commit(ctx, name, hooks[0].Value); err != nil {
		return t.fail(hooks[0].Pos, name, nil, err)
	}
	return nil
}

// history is the entry of a change; what says what was done.
func (t *targetBuild) history(what string) imageconfig.History {
	by := "umoci-mount build " + t.k.Name + ": " + what
	return imageconfig.History{CreatedBy: &by, Author: t.k.Config.Author, Now: t.b.opt.Now, Epoch: t.b.opt.Epoch}
}

// entries is history as an image has it.
func (t *targetBuild) entries(ctx context.Context, what string, empty bool) ([]ispec.History, error) {
	img, err := t.b.layout.Image(ctx, t.base)
	if err != nil {
		return nil, err
	}
	h := t.history(what)
	return h.Entry("", img.Config.Author, empty), nil
}

// texts are what steps and hooks do, for the history.
func (t *targetBuild) texts() []string {
	var out []string
	for _, h := range t.k.Pre {
		out = append(out, "pre "+h.Value)
	}
	for _, s := range t.k.steps {
		out = append(out, s.kind+" "+s.text)
	}
	for _, h := range t.k.Post {
		out = append(out, "post "+h.Value)
	}
	return out
}

// finish makes the target's image of what the steps left: its layers, its config.
func (t *targetBuild) finish(ctx context.Context) (*cas.Path, error) {
	edit := t.k.Config.edit()
	edit.Created = &t.b.opt.Now
	if t.b.opt.Epoch != nil {
		edit.Created = t.b.opt.Epoch
	}
	if err := edit.Check(); err != nil {
		return nil, at(t.k.Config.Pos, err)
	}
	var config []ispec.History
	var err error
	if what := t.k.Config.String(); what != "" {
		if config, err = t.entries(ctx, what, true); err != nil {
			return nil, err
		}
	}
	if t.k.Layers == LayersStep || len(t.texts()) == 0 {
		img, err := t.b.layout.Image(ctx, t.top)
		if err != nil {
			return nil, err
		}
		return t.b.layout.Commit(ctx, img, cas.Change{History: config, Edit: edit.Apply})
	}
	history, err := t.entries(ctx, strings.Join(t.texts(), "; "), false)
	if err != nil {
		return nil, err
	}
	return bundle.Squash(ctx, t.b.deriving(t.base, t.b.opt.Compress, slices.Concat(history, config)), t.top, edit.Apply)
}

// deriving are options for images that are made without a mount.
func (b *builder) deriving(from *cas.Path, compress string, history []ispec.History) bundle.DeriveOptions {
	return bundle.DeriveOptions{
		Layout: b.layout, From: from, Compress: compress, History: history, Epoch: b.opt.Epoch, CacheDir: b.opt.CacheDir, Log: b.opt.Log,
	}
}
