package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/umoci-mount/umoci-mount/cas"
)

// DryRun writes what Build would do, as far as that is known before: nothing is
// downloaded, made or changed. Errors are Build's.
func DryRun(ctx context.Context, opt Options, out io.Writer) (err error) {
	b := &builder{opt: opt, bases: map[string]*cas.Path{}, done: map[*task]*built{}}
	if b.plan, err = newPlan(opt.Spec, opt.Targets); err != nil {
		return err
	}
	b.layout, err = cas.Open(opt.Layout)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		fmt.Fprintf(out, "%s is made\n", opt.Layout)
	case err != nil:
		return err
	default:
		defer func() { err = errors.Join(err, b.layout.Close()) }()
		if b.cache, err = openCache(b.layout, opt.Spec.File, opt.Now, opt.NoCache); err != nil {
			return err
		}
	}
	b.sums = openFileSums(opt.dir("files.json"), opt.Now)
	if b.layout != nil {
		if b.sums.layout, err = filepath.EvalSymlinks(b.layout.Path()); err != nil {
			return err
		}
	}
	for _, k := range b.plan.tasks {
		if err := b.dryTarget(ctx, k, out); err != nil {
			return err
		}
	}
	return nil
}

// dryTarget writes what is known of a target.
func (b *builder) dryTarget(ctx context.Context, k *task, out io.Writer) error {
	if b.layout != nil {
		if err := b.checkBases(ctx, k); err != nil {
			return err
		}
	} else if k.base == nil && k.Base.Value != Empty {
		return at(k.Base.Pos, fmt.Errorf("base %s is no target here, and there is no %s: %w", k.Base.Value, b.opt.Layout, cas.ErrTagNotFound))
	}
	remote := slices.ContainsFunc(k.steps, func(s *step) bool {
		return slices.ContainsFunc(s.sources, func(src source) bool { return src.url != "" })
	})
	if len(k.Pre) == 0 && !remote {
		if err := checkInputs(k); err != nil {
			return err
		}
	}
	state, err := b.dryState(ctx, k, remote)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: from %s: %s\n", k.Name, k.Base.Value, state)
	for _, h := range k.Pre {
		fmt.Fprintf(out, "  pre: %s\n", oneLine(h.Value))
	}
	for _, s := range k.steps {
		fmt.Fprintf(out, "  %s: %s\n", s.label, oneLine(s.text))
	}
	for _, h := range k.Post {
		fmt.Fprintf(out, "  post: %s\n", oneLine(h.Value))
	}
	if s := k.Config.String(); s != "" {
		fmt.Fprintf(out, "  config: %s\n", oneLine(s))
	}
	return nil
}

// dryState says what of a target is in the cache.
func (b *builder) dryState(ctx context.Context, k *task, remote bool) (string, error) {
	switch {
	case b.layout == nil:
		return "everything is done: there is no layout yet", nil
	case len(k.Pre)+len(k.Post) > 0:
		return "everything is done: its hooks run every time", nil
	case remote:
		return "what is done depends on what is downloaded", nil
	}
	for _, need := range k.needs {
		if b.done[need] == nil {
			return "everything is done: " + need.Name + " is built before it", nil
		}
	}
	t := &targetBuild{b: b, k: k}
	var key string
	if k.base == nil && k.Base.Value == Empty {
		key = b.emptyKey()
	} else {
		var err error
		if key, err = t.begin(ctx); err != nil {
			return "", err
		}
	}
	if err := t.stepKeys(key); err != nil {
		return "", err
	}
	final, err := t.finalKey(key)
	if err != nil {
		return "", err
	}
	p, _ := b.cache.find(ctx, k.Name, finalLabel, &final)
	if p != nil {
		b.done[k] = &built{p, true}
		return "cached", nil
	}
	first, why := t.lookUp(ctx)
	if first == len(k.steps) {
		return "its steps are cached, its config is set", nil
	}
	return fmt.Sprintf("done from %s on: %s", k.steps[first].label, why), nil
}
