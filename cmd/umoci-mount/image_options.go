package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/internal/bundle"
	"github.com/umoci-mount/umoci-mount/internal/imageconfig"
)

// platformFlag is --platform: which image of several that one tag has.
type platformFlag struct{ value string }

func (f *platformFlag) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.value, "platform", "", "platform to choose where the tag has several: `OS/ARCH[/VARIANT]`")
}

func (f *platformFlag) parse() (*ispec.Platform, error) {
	if f.value == "" {
		return nil, nil //nolint:nilnil // not given is no error
	}
	p, err := cas.ParsePlatform(f.value)
	if err != nil {
		return nil, usageError{err}
	}
	return p, nil
}

// imageFlag is --image.
type imageFlag struct{ value string }

func (f *imageFlag) add(flags *pflag.FlagSet, what string) {
	flags.StringVar(&f.value, "image", "", what+": `LAYOUT[:TAG]` (default tag latest)")
}

func (f *imageFlag) parse() (layout, tag string, err error) {
	if f.value == "" {
		return "", "", usageError{errors.New("missing mandatory argument: --image")}
	}
	if layout, tag, err = cas.ParseImage(f.value); err != nil {
		return "", "", usageError{err}
	}
	return layout, tag, nil
}

// cacheFlag is --cache-dir.
type cacheFlag struct{ value string }

func (f *cacheFlag) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.value, "cache-dir", "", "`directory` of layer indexes (default $UMOCI_MOUNT_CACHE, or by user)")
}

// imageFlags say which image a command reads.
type imageFlags struct {
	image    imageFlag
	platform platformFlag
	cache    cacheFlag
}

// add adds them; what says what the image is for.
func (f *imageFlags) add(flags *pflag.FlagSet, what string) {
	f.image.add(flags, what)
	f.platform.add(flags)
	f.cache.add(flags)
}

func (f *imageFlags) parse(global *globalOptions) (opt bundle.ImageOptions, err error) {
	if opt.Layout, opt.Tag, err = f.image.parse(); err != nil {
		return opt, err
	}
	if opt.Platform, err = f.platform.parse(); err != nil {
		return opt, err
	}
	opt.CacheDir = f.cache.value
	opt.Log, err = global.logger()
	return opt, err
}

// open calls fn with the image open.
func (f *imageFlags) open(ctx context.Context, global *globalOptions, fn func(*bundle.Image) error) error {
	opt, err := f.parse(global)
	if err != nil {
		return err
	}
	return openImage(ctx, opt, fn)
}

// openImage calls fn with an image open, and shows how far its indexing is.
func openImage(ctx context.Context, opt bundle.ImageOptions, fn func(*bundle.Image) error) error {
	bar := newProgress(os.Stderr)
	opt.Progress = bar.add
	im, err := bundle.OpenImage(ctx, opt)
	bar.finish()
	if err != nil {
		return err
	}
	return errors.Join(fn(im), im.Close())
}

// layoutFlag is --layout.
type layoutFlag struct{ value string }

func (f *layoutFlag) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.value, "layout", "", "path of the image layout: `LAYOUT`")
}

func (f *layoutFlag) parse() (string, error) {
	switch {
	case f.value == "":
		return "", usageError{errors.New("missing mandatory argument: --layout")}
	case strings.Contains(f.value, ":"):
		return "", usageError{fmt.Errorf("--layout %q: a path with a colon could not be named in --image", f.value)}
	}
	return f.value, nil
}

// tagFlag is --tag: where the result goes, if not to --image.
type tagFlag struct{ value string }

func (f *tagFlag) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.value, "tag", "", "`TAG` of the result (default that of --image)")
}

// or is the tag that was given, or other.
func (f *tagFlag) or(flags *pflag.FlagSet, other string) (string, error) {
	if !flags.Changed("tag") {
		return other, nil
	}
	if err := cas.CheckTag(f.value); err != nil {
		return "", usageError{fmt.Errorf("--tag: %w", err)}
	}
	return f.value, nil
}

// historyFlags are --no-history and --history.*.
type historyFlags struct {
	none      bool
	author    string
	comment   string
	created   string
	createdBy string
	flags     *pflag.FlagSet
}

// imageAuthor is the author of a history entry where no flag says one.
const imageAuthor = "the image's"

// add adds them; author says who it is where the flag is not given.
func (f *historyFlags) add(flags *pflag.FlagSet, author string) {
	f.flags = flags
	flags.BoolVar(&f.none, "no-history", false, "add no entry to the image's history")
	flags.StringVar(&f.author, "history.author", "", "author in the history (default "+author+")")
	flags.StringVar(&f.comment, "history.comment", "", "comment in the history")
	flags.StringVar(&f.created, "history.created", "", "creation `time` in the history, as RFC 3339 (default now)")
	flags.StringVar(&f.createdBy, "history.created_by", "", "command in the history")
}

func (f *historyFlags) parse() (imageconfig.History, error) {
	h := imageconfig.History{None: f.none, Now: time.Now()}
	for name, to := range map[string]**string{
		"history.author": &h.Author, "history.comment": &h.Comment, "history.created_by": &h.CreatedBy, "history.created": nil,
	} {
		if !f.flags.Changed(name) {
			continue
		}
		if f.none {
			return h, usageError{fmt.Errorf("--no-history and --%s exclude each other", name)}
		}
		if to != nil {
			value := f.flags.Lookup(name).Value.String()
			*to = &value
		}
	}
	var err error
	if f.flags.Changed("history.created") {
		if h.Created, err = parseTime("--history.created", f.created); err != nil {
			return h, err
		}
	}
	h.Epoch, err = sourceDateEpoch()
	return h, err
}

// parseTime reads the time that a flag gives.
func parseTime(flag, s string) (*time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return nil, usageError{fmt.Errorf("%s %q: want a time as 2006-01-02T15:04:05Z", flag, s)}
	}
	return &t, nil
}
