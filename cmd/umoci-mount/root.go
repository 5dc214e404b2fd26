package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"

	ispecs "github.com/opencontainers/image-spec/specs-go"
	rspecs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/cas"
)

// version is set by the linker.
var version = "0.1.0-dev"

// globalOptions are the flags of every command.
type globalOptions struct {
	level   string
	verbose bool
	debug   bool
	profile string
}

func (o *globalOptions) addFlags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&o.level, "log", "", "log `level`: debug, info, warn, error or fatal (default warn)")
	f.BoolVar(&o.verbose, "verbose", false, "the same as --log=info")
	f.BoolVar(&o.debug, "debug", false, "the same as --log=debug")
	f.StringVar(&o.profile, "cpu-profile", "", "write a profile of the processor's time to `FILE`")
	if err := f.MarkHidden("cpu-profile"); err != nil { // as umoci has it
		panic(err) // it was defined a line above
	}
}

// startProfile begins what --cpu-profile asks for; run ends it.
func (o *globalOptions) startProfile() error {
	if o.profile == "" {
		return nil
	}
	f, err := os.Create(o.profile)
	if err != nil {
		return fmt.Errorf("write profile: %w", err)
	}
	return pprof.StartCPUProfile(f)
}

// logger writes to stderr what the flags ask for.
func (o *globalOptions) logger() (*slog.Logger, error) {
	name := o.level
	switch {
	case o.verbose && name != "":
		return nil, usageError{fmt.Errorf("--verbose and --log exclude each other")}
	case o.debug:
		name = "debug"
	case o.verbose:
		name = "info"
	case name == "":
		name = "warn"
	}
	levels := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn,
		"error": slog.LevelError, "fatal": slog.LevelError,
	}
	level, ok := levels[name]
	if !ok {
		return nil, usageError{fmt.Errorf("log level %q: want debug, info, warn, error or fatal", name)}
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})), nil
}

// newRootCommand is the whole command line; name is what the program was called
// by.
func newRootCommand(name string) *cobra.Command {
	var global globalOptions
	root := &cobra.Command{
		Use:   name,
		Short: name + " modifies Open Container images, mounted",
		Long: name + ` mounts an OCI image as the writable root file system of a runtime bundle,
without extracting it, and makes a new layer of what was changed.`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,

		SuggestionsMinimumDistance: 2,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := global.logger(); err != nil {
				return err
			}
			// A script's variable that is not set asks for nothing, and not for a default.
			if f := cmd.Flags().Lookup("image"); f != nil && f.Changed && f.Value.String() == "" {
				_, _, err := cas.ParseImage("")
				return usageError{err}
			}
			return global.startProfile()
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	root.SetVersionTemplate(versionText(name))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if !cmd.HasParent() && cmd.Flags().NArg() > 0 { // a flag of the command that is not there
			return unknownCommand(cmd, cmd.Flags().Arg(0))
		}
		return usageError{err}
	})
	global.addFlags(root)
	root.AddCommand(
		newInitCommand(),
		newNewCommand(),
		newTagCommand(),
		newRemoveCommand(),
		newListCommand(),
		newStatCommand(),
		newConfigCommand(),
		newGCCommand(&global),
		newInsertCommand(&global),
		newMountCommand(&global),
		newUmountCommand(),
		newStatusCommand(),
		newRepackCommand(&global),
		newDiffCommand(&global),
		newBuildCommand(&global),
		newCatCommand(&global),
		newTreeCommand(&global),
		newFsckCommand(&global),
		newCacheCommand(&global),
		newExecCommand(&global),
		newShellCommand(&global),
		newMknodCommand(&global),
		newChownCommand(&global),
		newSetxattrCommand(&global),
		newRawCommand(&global),
	)
	if name == umociName {
		renameForUmoci(root)
	}
	setHelp(root)
	return root
}

// unknownCommand names the commands that a mistyped one may have meant.
func unknownCommand(root *cobra.Command, name string) error {
	hint := ""
	if near := root.SuggestionsFor(name); len(near) > 0 {
		hint = fmt.Sprintf(" (did you mean %s?)", strings.Join(near, " or "))
	}
	return usageError{fmt.Errorf("unknown command %q%s", name, hint)}
}

func versionText(name string) string {
	return strings.Join([]string{
		fmt.Sprintf("%s version %s", name, version),
		"image spec: " + ispecs.Version,
		"runtime spec: " + rspecs.Version,
		"go: " + runtime.Version(),
		"",
	}, "\n")
}

// flagHint says which flag an argument may be meant for, where that is not given.
func flagHint(cmd *cobra.Command, args []string) string {
	for _, name := range []string{"image", "layout"} {
		if f := cmd.Flags().Lookup(name); f != nil && !f.Changed && len(args) > 0 {
			return fmt.Sprintf(" (is one of them for --%s?)", name)
		}
	}
	return ""
}

// exactArgs asks for positional arguments by their names.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usageError{fmt.Errorf("invalid number of positional arguments: expected %s%s", cmp.Or(strings.Join(names, " "), "none"), flagHint(cmd, args))}
		}
		for i, a := range args {
			if a == "" {
				return usageError{fmt.Errorf("%s cannot be empty", names[i])}
			}
		}
		return nil
	}
}
