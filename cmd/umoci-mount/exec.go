package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
	"github.com/umoci-mount/umoci-mount/internal/userns"
)

// programAnnotation marks a command whose arguments behind the first are a program's.
const programAnnotation = "program"

// programEnd is how a program ended that was run in a bundle.
type programEnd struct {
	code int
	err  error // what went wrong beside it, or kept it from running
}

func (e programEnd) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e programEnd) Unwrap() error { return e.err }

type execOptions struct {
	global  *globalOptions
	user    string
	env     []string
	dir     string
	network string
	ids     string
	tmpfs   bool
}

const execNote = `

The program's root is BUNDLE/rootfs; /proc, /dev and /sys are made for it, and
/etc/resolv.conf is the machine's. It is root of the image, also for a plain user: what
takes privileges or other ids (chown, mknod, setcap, dropping to a service's user) is
recorded for repack, or is real where the user has ranges in /etc/subuid and the bundle
is not mounted. A bundle that is not mounted is, for the time.

The exit code is the program's, 128 and the signal's number where it was killed, 127
where it is not there and 126 where it cannot be run.`

func newExecCommand(global *globalOptions) *cobra.Command {
	o := &execOptions{global: global}
	cmd := &cobra.Command{
		Use:   "exec [OPTION]... BUNDLE [--] [PROGRAM [ARGUMENT]...]",
		Short: "run a program in a bundle, as root of the image",
		Long:  "Runs PROGRAM, or the image's own, in the bundle's tree." + execNote,
		Args:  atLeast("BUNDLE"),
		// They stand before BUNDLE: what is behind it is the program's.
		DisableFlagsInUseLine: true,
		Annotations:           map[string]string{programAnnotation: "yes"},
		RunE: func(cmd *cobra.Command, args []string) error {
			program := args[1:]
			if len(program) > 0 && program[0] == "--" {
				program = program[1:]
			}
			return o.run(cmd.Context(), args[0], program)
		},
	}
	o.addFlags(cmd)
	return cmd
}

// shellScript runs the shell that people would rather have.
const shellScript = `if command -v bash >/dev/null 2>&1; then exec bash; fi; exec sh`

func newShellCommand(global *globalOptions) *cobra.Command {
	o := &execOptions{global: global}
	cmd := &cobra.Command{
		Use:   "shell [OPTION]... BUNDLE",
		Short: "run a shell in a bundle, as root of the image",
		Long:  "Runs bash, or sh, in the bundle's tree." + execNote,
		Args:  exactArgs("BUNDLE"),

		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), args[0], []string{"sh", "-c", shellScript})
		},
	}
	o.addFlags(cmd)
	return cmd
}

func (o *execOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringVarP(&o.user, "user", "u", "", "run as `USER[:GROUP]` of the image (default its root)")
	f.StringArrayVarP(&o.env, "env", "e", nil, "set a variable: `NAME=VALUE`, or NAME for this environment's (repeatable)")
	f.StringVarP(&o.dir, "workdir", "w", "", "run in `DIRECTORY` of the image (default the image's)")
	f.StringVar(&o.network, "network", "host", "`NETWORK` to see: host, or none")
	f.StringVar(&o.ids, "ids", "auto", "`IDS` of a plain user's program: range (/etc/subuid), one, or auto")
	f.BoolVar(&o.tmpfs, "tmpfs", false, "give it a /tmp of which nothing is recorded")
}

func (o *execOptions) run(ctx context.Context, dir string, program []string) error {
	log, err := o.global.logger()
	if err != nil {
		return err
	}
	opt := userns.Options{
		Bundle: bundle.Locate(dir), Args: program, Dir: o.dir, User: o.user, Tmpfs: o.tmpfs, Log: log,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	}
	if opt.Mode, err = userns.ParseMode(o.ids); err != nil {
		return usageError{fmt.Errorf("--%w", err)}
	}
	opt.Network = userns.Network(o.network)
	if !slices.Contains([]userns.Network{userns.NetworkHost, userns.NetworkNone}, opt.Network) {
		return usageError{fmt.Errorf("--network %q: want host or none", o.network)}
	}
	for _, kv := range slices.Concat([]string{"TERM"}, o.env) {
		name, _, given := strings.Cut(kv, "=")
		if !given {
			value, ok := os.LookupEnv(name)
			if !ok {
				continue
			}
			kv = name + "=" + value
		}
		opt.Env = append(opt.Env, kv)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// A signal is the program's to act upon.
	code, err := userns.Run(context.WithoutCancel(ctx), opt)
	if err != nil || code != 0 {
		return programEnd{code, err}
	}
	return nil
}
