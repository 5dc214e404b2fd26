package userns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
	"github.com/umoci-mount/umoci-mount/internal/notify"
)

// Network says which network a program sees.
type Network string

// The networks.
const (
	NetworkHost Network = "host" // the caller's; also the zero value
	NetworkNone Network = "none" // a loopback device that is down
)

// Options of Run.
type Options struct {
	Bundle string
	Args   []string // the program, looked for in PATH of Env, and its arguments; none: the image's
	Env    []string // NAME=VALUE, in place of the image's or beside it
	NoEnv  bool     // Env is all there is: nothing of the image's
	Dir    string   // working directory; "": the image's, where it is there, or /
	User   string   // USER[:GROUP] as for an image's config; "": the image's root

	Stdin  io.Reader // nil: nothing to read
	Stdout io.Writer // nil: thrown away
	Stderr io.Writer

	// Binds are mounted read-only at paths of the tree, where the caller has made
	// something to mount on.
	Binds []Bind

	Network Network
	Mode    Mode // ModeAuto chooses
	Tmpfs   bool // /tmp is a tmpfs, and nothing in it is recorded
	NoGrace bool // when ctx ends, the program is killed, and not asked to end before
	Log     *slog.Logger
}

// Bind is a file or directory of the caller's at a path of the tree.
type Bind struct{ Source, Target string }

// LauncherCommand and InitCommand are argv[1] of the processes that Run starts of this
// program, see Main.
const (
	LauncherCommand = "enter-bundle"
	waitCommand     = "enter-bundle-mapped" // the launcher before its ids are mapped
	InitCommand     = "bundle-init"
)

// Main runs the hidden command that args, a whole command line, are of; ok is false
// for another.
func Main(args []string) (code int, ok bool) {
	if len(args) < 2 {
		return 0, false
	}
	switch args[1] {
	case waitCommand:
		return awaitMapping(args), true
	case LauncherCommand:
		return launcherMain(), true
	case InitCommand:
		return initMain(), true
	}
	return 0, false
}

// Exit codes of Run for a program that did not run, as shells have them.
const (
	CodeCannotRun = 126
	CodeNotFound  = 127
	codeSignal    = 128 // + number of the signal that ended the program
)

// spec is what a launcher is told, and in turn an init.
type spec struct {
	Bundle  string
	Rootfs  string
	Args    []string
	Env     []string
	Dir     string
	OwnDir  bool // Dir was asked for: it has to be there
	User    string
	OwnHome bool // Env has the HOME that was asked for
	Network Network
	Tmpfs   bool
	Binds   []Bind
	TTY     bool // standard input is the terminal, and the program gets its foreground
	Mount   bool // the bundle is not mounted
	Filter  int  // notify.Set of the filter; noFilter
	OneID   bool
	Debug   bool
}

const noFilter = -1

// report is what a launcher or an init says at its end.
type report struct {
	Error string `json:",omitempty"`
	Kind  int    `json:",omitempty"` // see bundle.TellError
	Exit  int
}

// Run runs a program as root of a bundle's image, and returns its exit code, or 128
// and the number of the signal that ended it. An error says that it did not run, or
// that what was set up for it could not be taken away. The bundle is mounted for the
// time where it is not. When ctx ends, so does the program.
//
// Signals that this process gets are the program's, but with NoGrace: one that comes
// before there is a program is what Run returns.
func Run(ctx context.Context, opt Options) (int, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	var signals chan os.Signal
	if !opt.NoGrace {
		signals = catch()
		defer signal.Stop(signals)
	}
	entry, err := bundle.OpenEntry(opt.Bundle, opt.Log)
	if err != nil {
		return 0, err
	}
	if len(opt.Args) == 0 {
		opt.Args = entry.Args
	}
	if len(opt.Args) == 0 {
		return 0, errors.New("no program to run: none given, and the image has none")
	}
	plan, err := choose(opt.Mode, entry)
	if err != nil {
		return 0, err
	}
	opt.Log.Debug("run in bundle", "bundle", entry.Path, "mode", plan.mode, "mounted", entry.Mounted)
	sp := &spec{
		Bundle: entry.Path, Rootfs: entry.Rootfs, Args: opt.Args, Dir: opt.Dir, OwnDir: opt.Dir != "",
		User: opt.User, Network: opt.Network, Tmpfs: opt.Tmpfs, Binds: opt.Binds, TTY: ownsTerminal(opt.Stdin),
		Mount: !entry.Mounted, Filter: plan.filter, OneID: plan.mode == ModeOneID,
		Debug: opt.Log.Enabled(ctx, slog.LevelDebug),
	}
	if sp.Dir == "" {
		sp.Dir = entry.Dir
	}
	if !opt.NoEnv {
		sp.Env = entry.Env
	}
	sp.Env = mergeEnv(sp.Env, opt.Env)
	sp.OwnHome = slices.ContainsFunc(opt.Env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") })
	if sp.Filter != noFilter && !notify.Supported() {
		if sp.OneID {
			return 0, fmt.Errorf("run as the image's root with one id: not on %s", runtime.GOARCH)
		}
		sp.Filter = noFilter
	}
	return launch(ctx, sp, plan, &opt, signals)
}

// launch starts the launcher and waits for its end.
func launch(ctx context.Context, sp *spec, p *plan, opt *Options, signals chan os.Signal) (code int, err error) {
	exe, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("run in bundle: %w", err)
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return 0, err
	}
	defer ours.Close()
	cmd := exec.Command(exe, LauncherCommand, sp.Bundle)
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = opt.Stdin, opt.Stdout, opt.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = p.attributes(sp.Mount)
	if p.mode == ModeRange {
		cmd.Args[1] = waitCommand
	}
	err = cmd.Start()
	if cerr := theirs.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return 0, p.explain(err)
	}
	stop := context.AfterFunc(ctx, func() {
		grace := endGrace
		if opt.NoGrace {
			grace = 0
		} else {
			select {
			case signals <- unix.SIGTERM:
			default: // there are others
			}
		}
		time.AfterFunc(grace, func() { _ = ours.Close() }) // which ends everything
	})
	defer stop()
	var r report
	ended := make(chan struct{})
	defer close(ended)
	if err = p.mapIDs(ctx, cmd.Process.Pid); err == nil {
		enc := json.NewEncoder(ours)
		if err = enc.Encode(sp); err == nil {
			go tell(enc, signals, ended)
			err = json.NewDecoder(ours).Decode(&r)
		}
	}
	_ = ours.Close() // without an answer: the launcher ends
	werr := cmd.Wait()
	if sp.TTY {
		takeBack(opt.Stdin)
	}
	ws, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case err != nil && p.failed != nil:
		return 0, p.failed
	case err != nil && ws.Signaled() && slices.Contains(followed, os.Signal(ws.Signal())): // a terminal's, as it began
		return signalCode(unix.WaitStatus(ws)), nil
	case err != nil:
		return 0, fmt.Errorf("run in bundle: the launcher ended (%v): %w", werr, err)
	case r.Error != "":
		return r.Exit, bundle.ToldError(r.Error, r.Kind)
	}
	return r.Exit, nil
}

// endGrace is how long a program has to end after its SIGTERM, when the context ends.
const endGrace = 10 * time.Second

// socketPair is a connection to a child: ours, and the end that it inherits.
func socketPair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	file := os.NewFile(uintptr(fds[0]), "launcher")
	defer file.Close()
	theirs = os.NewFile(uintptr(fds[1]), "parent")
	if ours, err = net.FileConn(file); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make a socket pair: %w", err), theirs.Close())
	}
	return ours, theirs, nil
}

// awaitMapping waits until the ids of the launcher's user namespace are there, and
// executes the launcher again: only then is it root, and gets its capabilities.
func awaitMapping(args []string) int {
	fds := []unix.PollFd{{Fd: parentFD, Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return 1
		}
	}
	err := syscall.Exec("/proc/self/exe", append([]string{args[0], LauncherCommand}, args[2:]...), os.Environ())
	fmt.Fprintln(os.Stderr, "run in bundle:", err)
	return 1
}

// parentFD is the socket to the parent, in a launcher and in an init.
const parentFD = 3

// ownsTerminal reports whether a file is the terminal whose foreground processes this
// one is of.
func ownsTerminal(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// takeBack makes this process's group the terminal's foreground again, after a program
// that had it.
func takeBack(r io.Reader) {
	signal.Ignore(unix.SIGTTOU) // which a background process gets for this
	defer signal.Reset(unix.SIGTTOU)
	if f, ok := r.(*os.File); ok {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.TIOCSPGRP, unix.Getpgrp())
	}
}

// signalCode is the exit code for a wait status.
func signalCode(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return codeSignal + int(ws.Signal())
	}
	return ws.ExitStatus()
}
