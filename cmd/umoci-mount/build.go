package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/docs"
	"github.com/umoci-mount/umoci-mount/internal/build"
	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

type buildOptions struct {
	global     *globalOptions
	layout     layoutFlag
	platform   platformFlag
	targets    []string
	set        []string
	jobs       int
	tagFormat  string
	compress   string
	runtime    string
	cacheDir   string
	noCache    bool
	keepFailed bool
	dryRun     bool
	schema     bool
}

func newBuildCommand(global *globalOptions) *cobra.Command {
	o := &buildOptions{global: global}
	cmd := &cobra.Command{
		Use:   "build [--layout LAYOUT] [--target NAME]... SPEC",
		Short: "build images from a YAML spec",
		Long: `Builds the targets of SPEC, each from a base (empty, a tag in the layout, or another
target) by copy, install, expand and run, and tags them NAME and NAME-DATE_N when all
are done. Steps work on mounts: nothing is unpacked. A step whose base, text and files
are what they were is not done again. docs/build.md has every key.

SOURCE_DATE_EPOCH, where set, is the time of everything in the results: the same spec
then gives the same digests.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if o.schema {
				return exactArgs()(cmd, args)
			}
			return exactArgs("SPEC")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.schema {
				_, err := cmd.OutOrStdout().Write(docs.BuildSchema)
				return err
			}
			return o.run(cmd.Context(), cmd.OutOrStdout(), args[0])
		},
	}
	f := cmd.Flags()
	o.layout.add(f)
	f.Lookup("layout").DefValue, o.layout.value = "oci", "oci"
	f.Lookup("layout").Usage = "image layout of bases and results: `LAYOUT`, made where it is missing"
	o.platform.add(f)
	f.StringArrayVar(&o.targets, "target", nil, "build the target `NAME`, with what it needs, and no other (repeatable)")
	f.StringArrayVar(&o.set, "set", nil, "set what ${{NAME}} stands for in the spec: `NAME=VALUE` (repeatable)")
	f.IntVar(&o.jobs, "jobs", 0, "targets that are built at once (default one a processor)")
	f.StringVar(&o.tagFormat, "tag-format", build.DefaultTagFormat, "second `tag` of a result, with {name}, {date}, {time} and {n}; empty for none")
	f.StringVar(&o.compress, "compress", cas.CompressAuto, "compression of layers: auto (the base's last layer's), gzip, zstd or none")
	f.StringVar(&o.runtime, "runtime", "", "what commands run under: runc, crun or builtin (default the first there is; a plain user's builtin)")
	f.StringVar(&o.cacheDir, "cache-dir", "", "`directory` of layer indexes, downloads and work (default $UMOCI_MOUNT_CACHE, or by user)")
	f.BoolVar(&o.noCache, "no-cache", false, "do all steps anew")
	f.BoolVar(&o.keepFailed, "keep-failed", false, "leave the mount of a target that failed, to look into")
	f.BoolVar(&o.dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&o.schema, "schema", false, "print the JSON schema of specs, for editors")
	return cmd
}

// runtimes that --runtime takes.
var buildRuntimes = []string{build.RuntimeAuto, build.RuntimeRunc, build.RuntimeCrun, build.RuntimeBuiltin}

func (o *buildOptions) validate() error {
	if err := checkCompress(o.compress); err != nil {
		return err
	}
	if err := build.CheckTagFormat(o.tagFormat); err != nil {
		return usageError{fmt.Errorf("--%w", err)}
	}
	if o.jobs < 0 {
		return usageError{fmt.Errorf("--jobs %d: want a number above 0", o.jobs)}
	}
	if !slices.Contains(buildRuntimes, o.runtime) {
		return usageError{fmt.Errorf("--runtime %q: want runc, crun or builtin", o.runtime)}
	}
	return nil
}

// vars are what --set says.
func (o *buildOptions) vars() (map[string]string, error) {
	out := map[string]string{}
	for _, s := range o.set {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return nil, usageError{fmt.Errorf("--set %q: want NAME=VALUE", s)}
		}
		out[name] = value
	}
	return out, nil
}

func (o *buildOptions) run(ctx context.Context, out io.Writer, file string) error {
	if err := o.validate(); err != nil {
		return err
	}
	vars, err := o.vars()
	if err != nil {
		return err
	}
	spec, err := build.Read(file, vars)
	if err != nil {
		return err
	}
	opt := build.Options{
		Spec: spec, Targets: o.targets, New: hostPlatform(), Jobs: o.jobs, TagFormat: o.tagFormat, Compress: o.compress,
		Runtime: o.runtime, NoCache: o.noCache, KeepFailed: o.keepFailed, Now: time.Now(),
	}
	if opt.Layout, err = o.layout.parse(); err != nil {
		return err
	}
	if opt.Platform, err = o.platform.parse(); err != nil {
		return err
	}
	if opt.Epoch, err = sourceDateEpoch(); err != nil {
		return err
	}
	if opt.CacheDir, err = bundle.CacheDir(o.cacheDir); err != nil {
		return err
	}
	if opt.Log, err = o.global.logger(); err != nil {
		return err
	}
	if o.dryRun {
		return build.DryRun(ctx, opt, out)
	}
	file0, ok := out.(*os.File)
	opt.Report = build.NewReport(out, ok && term.IsTerminal(int(file0.Fd())))
	// A reader who has enough does not end a build, which would leave its mounts.
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, unix.SIGPIPE)
	defer signal.Stop(pipe)
	res, err := build.Build(ctx, opt)
	if err != nil {
		return err
	}
	for _, r := range res {
		fmt.Fprintf(out, "%s: tagged %s\n", r.Target, strings.Join(r.Tags, ", "))
	}
	return nil
}

// isStepError reports whether a build's step failed by itself, and not for an
// interruption, or for want of space.
func isStepError(err error) bool {
	var step *build.StepError
	if !errors.As(err, &step) {
		return false
	}
	for _, other := range []error{context.Canceled, unix.ENOSPC, unix.EDQUOT, unix.EROFS} {
		if errors.Is(err, other) {
			return false
		}
	}
	return true
}
