package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

type cachePruneOptions struct {
	global    *globalOptions
	cache     cacheFlag
	all       bool
	olderThan string
	maxSize   string
	layouts   []string
	dryRun    bool
	json      bool
}

func newCachePruneCommand(global *globalOptions) *cobra.Command {
	o := &cachePruneOptions{global: global}
	cmd := &cobra.Command{
		Use:   "prune [--all] [--older-than AGE] [--max-size SIZE] [--layout LAYOUT]...",
		Short: "remove what the cache need not keep",
		Long: `Removes from the cache what one of the options names, and lists it. What a mount or a
command has in use stays. Whatever is removed is made again when it is needed.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	f := cmd.Flags()
	o.cache.add(f)
	f.BoolVar(&o.all, "all", false, "remove all that is not in use")
	f.StringVar(&o.olderThan, "older-than", "", "remove what was not used for `AGE`: as 30d, 12h or 90m")
	f.StringVar(&o.maxSize, "max-size", "", "leave no more than `SIZE`, as 500MB or 2GiB; what was used longest ago goes")
	f.StringArrayVar(&o.layouts, "layout", nil, "remove what no image in `LAYOUT` needs (repeatable: in none of them)")
	f.BoolVar(&o.dryRun, "dry-run", false, "list what would be removed, and remove nothing")
	f.BoolVar(&o.json, "json", false, "write JSON")
	return cmd
}

func (o *cachePruneOptions) run(ctx context.Context, out io.Writer) error {
	opt := bundle.CachePruneOptions{
		CacheDir: o.cache.value, All: o.all, Layouts: o.layouts, MaxBytes: -1, DryRun: o.dryRun, Now: time.Now(),
	}
	if !o.all && o.olderThan == "" && o.maxSize == "" && len(o.layouts) == 0 {
		return usageError{errors.New("nothing says what to remove: want --all, --older-than, --max-size or --layout")}
	}
	var err error
	if o.olderThan != "" {
		if opt.OlderThan, err = parseAge(o.olderThan); err != nil {
			return usageError{fmt.Errorf("--older-than %w", err)}
		}
	}
	if o.maxSize != "" {
		if opt.MaxBytes, err = parseSize(o.maxSize); err != nil {
			return usageError{fmt.Errorf("--max-size %w", err)}
		}
	}
	if opt.Log, err = o.global.logger(); err != nil {
		return err
	}
	removed, err := bundle.PruneCache(ctx, opt)
	if werr := writeCacheEntries(out, removed, o.json); err == nil {
		err = werr
	}
	return err
}

// parseAge reads a duration: Go's form, or days as "30d".
func parseAge(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil && n > 0 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q: want an age as 30d, 12h or 90m", s)
	}
	return d, nil
}

// sizeUnits are what a size may end with, the longer ones first.
var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"KIB", 1 << 10}, {"MIB", 1 << 20}, {"GIB", 1 << 30}, {"TIB", 1 << 40},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"T", 1 << 40}, {"B", 1}, {"", 1},
}

// parseSize reads a number of bytes with a unit, as "500MB" or "2GiB".
func parseSize(s string) (int64, error) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(strings.ToUpper(s), u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > (1<<62)/u.bytes {
			break
		}
		return n * u.bytes, nil
	}
	return 0, fmt.Errorf("%q: want a size as 500MB or 2GiB", s)
}
