package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

// Options of Build.
type Options struct {
	Spec      *Spec
	Layout    string          // made where it is missing
	Targets   []string        // to build, with what they need; none: all
	Platform  *ispec.Platform // of bases that a tag has several of; nil: see cas.ResolveOptions
	New       ispec.Platform  // of images without a base
	Jobs      int             // targets at once; 0: one a processor
	TagFormat string          // of the second tag, see tagNames; "": none
	Compress  string          // of layers: cas.CompressAuto and so on
	Runtime   string          // what steps run under; RuntimeAuto chooses

	NoCache    bool // do all steps anew
	KeepFailed bool // leave the mount of a target that fails

	CacheDir string // of layer indexes, downloads and work; not ""
	Now      time.Time
	Epoch    *time.Time // SOURCE_DATE_EPOCH; nil: not set
	Report   *Report
	Log      *slog.Logger
}

// dir is a path of what builds have in the cache directory.
func (o *Options) dir(name string) string { return filepath.Join(o.CacheDir, bundle.BuildDir, name) }

// Result is what a target became.
type Result struct {
	Target   string
	Manifest ispec.Descriptor
	Tags     []string
	Cached   bool // all of it
}

// builder is one Build.
type builder struct {
	opt     Options
	plan    *plan
	layout  *cas.Layout
	cache   *cache
	sums    *fileSums
	fetch   *fetcher
	bases   map[string]*cas.Path // of tags in the layout, by name
	runtime string

	workOnce sync.Once
	work     *workdir // made when a step needs it
	workErr  error

	containers atomic.Int64

	mu   sync.Mutex
	done map[*task]*built // protected by mu
}

// built is a finished target.
type built struct {
	path   *cas.Path
	cached bool
}

// Build builds a spec's targets and tags them, when all are done. What is wrong with
// the spec or its files is found before anything runs. Errors: *PosError of ErrSpec and
// of what the file system says; *StepError of steps that fail; ErrRuntime; cas's and
// bundle's. When it fails, nothing is tagged and nothing is mounted, unless
// opt.KeepFailed; what was done stays in the cache.
func Build(ctx context.Context, opt Options) (res []Result, err error) {
	b := &builder{opt: opt, bases: map[string]*cas.Path{}, done: map[*task]*built{}}
	if b.plan, err = newPlan(opt.Spec, opt.Targets); err != nil {
		return nil, err
	}
	if err := b.open(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.layout.Close()) }()
	unpin, err := b.layout.Pin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unpin()) }()
	if err := b.check(ctx); err != nil {
		return nil, err
	}
	opt.Report.begin(len(b.plan.tasks))
	defer opt.Report.end()
	err = b.targets(ctx)
	after := context.WithoutCancel(ctx)
	err = errors.Join(err, b.closeWork(after))
	// What was done is kept also where the rest failed.
	if cerr := errors.Join(b.cache.save(after), b.sums.save(), b.fetch.prune(opt.Now)); err == nil {
		err = cerr
	} else if cerr != nil {
		opt.Log.Warn("the results of steps are not kept", "error", cerr)
	}
	if err != nil {
		return nil, err
	}
	return b.tag(ctx)
}

// open opens the layout and what is remembered.
func (b *builder) open() (err error) {
	b.layout, err = cas.Open(b.opt.Layout)
	if errors.Is(err, fs.ErrNotExist) {
		b.layout, err = cas.Create(b.opt.Layout)
	}
	if err != nil {
		return err
	}
	if b.cache, err = openCache(b.layout, b.opt.Spec.File, b.opt.Now, b.opt.NoCache); err != nil {
		return errors.Join(err, b.layout.Close())
	}
	b.sums = openFileSums(b.opt.dir("files.json"), b.opt.Now)
	b.fetch = newFetcher(b.opt.dir("downloads"), b.opt.Log)
	if b.sums.layout, err = filepath.EvalSymlinks(b.layout.Path()); err != nil {
		return errors.Join(err, b.layout.Close())
	}
	return nil
}

// check finds all that can be found before a step runs: bases, files, URLs, means.
func (b *builder) check(ctx context.Context) error {
	mounts := false
	for _, k := range b.plan.tasks {
		if err := b.checkBases(ctx, k); err != nil {
			return err
		}
		for _, s := range k.steps {
			mounts = mounts || s.mounts()
			for i := range s.sources {
				src := &s.sources[i]
				if src.url == "" {
					continue
				}
				if err := b.fetch.get(ctx, src); err != nil {
					return at(src.pos, fmt.Errorf("%s: %w", s.kind, err))
				}
			}
		}
		if len(k.Pre) > 0 {
			continue // a hook may make them
		}
		if err := checkInputs(k); err != nil {
			return err
		}
	}
	if mounts {
		var err error
		if b.runtime, err = chooseRuntime(b.opt.Runtime); err != nil {
			return err
		}
	}
	return nil
}

// checkBases finds the images of the layout that a target needs.
func (b *builder) checkBases(ctx context.Context, k *task) error {
	find := func(name Text, what string) error {
		if b.bases[name.Value] != nil {
			return nil
		}
		p, err := b.layout.Resolve(ctx, name.Value, cas.ResolveOptions{Platform: b.opt.Platform})
		if err != nil {
			return at(name.Pos, fmt.Errorf("%s %s is no target here, and no tag in %s: %w", what, name.Value, b.opt.Layout, err))
		}
		d := p.Descriptor()
		p = &cas.Path{Walk: []ispec.Descriptor{{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}}}
		if _, err := b.layout.Image(ctx, p); err != nil {
			return at(name.Pos, fmt.Errorf("%s %s: %w", what, name.Value, err))
		}
		b.bases[name.Value] = p
		return nil
	}
	if k.base == nil && k.Base.Value != Empty {
		if err := find(k.Base, "base"); err != nil {
			return err
		}
	}
	for _, c := range k.Copy {
		if c.From.Value == "" || k.from[c.From.Value] != nil {
			continue
		}
		if err := find(c.From, "copy from"); err != nil {
			return err
		}
	}
	return nil
}

// targets builds them, each when what it needs is there.
func (b *builder) targets(ctx context.Context) error {
	jobs := b.opt.Jobs
	if jobs == 0 {
		jobs = runtime.GOMAXPROCS(0)
	}
	slots := make(chan struct{}, jobs)
	ended := map[*task]chan struct{}{}
	for _, k := range b.plan.tasks {
		ended[k] = make(chan struct{})
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, k := range b.plan.tasks {
		group.Go(func() error {
			for _, need := range k.needs {
				select {
				case <-ended[need]:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			defer func() { <-slots }()
			r, err := b.target(ctx, k)
			if err != nil {
				return err
			}
			b.mu.Lock()
			b.done[k] = r
			b.mu.Unlock()
			close(ended[k])
			return nil
		})
	}
	return group.Wait()
}

// result is a finished target's image.
func (b *builder) result(k *task) *cas.Path {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.done[k].path
}

// workdir makes the work directory, once.
func (b *builder) needWork(ctx context.Context) error {
	b.workOnce.Do(func() {
		b.work, b.workErr = newWorkdir(ctx, b.opt.dir("work"), b.opt.Log)
	})
	return b.workErr
}

// closeWork removes the work directory, unless a failed target is kept in it.
func (b *builder) closeWork(ctx context.Context) error {
	if b.work == nil {
		return nil
	}
	if b.work.kept() {
		return b.work.lock.Close()
	}
	ctx, cancel := context.WithTimeout(ctx, unmountLimit)
	defer cancel()
	return b.work.remove(ctx)
}

// manifests are the digests of the images that a target copies from, by name.
func (b *builder) manifests(k *task) map[string]string {
	out := map[string]string{}
	for name := range maps.Keys(k.from) {
		out[name] = b.source(k, name).Descriptor().Digest.String()
	}
	return out
}

// source is an image that a target copies from.
func (b *builder) source(k *task, name string) *cas.Path {
	if t := k.from[name]; t != nil {
		return b.result(t)
	}
	return b.bases[name]
}
