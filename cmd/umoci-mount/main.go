//go:build !man

// Command umoci-mount mounts OCI images as the writable root file systems of
// runtime bundles, and makes new layers of what changed in them.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
	"github.com/umoci-mount/umoci-mount/internal/userns"
)

func main() {
	os.Exit(run(os.Args))
}

// endSignals are those that end a command in its own time: who closes a terminal, too, is
// to leave no mount behind that nobody serves. Under nohup(1) that is nobody's business.
func endSignals() []os.Signal {
	list := []os.Signal{unix.SIGINT, unix.SIGTERM}
	if !signal.Ignored(unix.SIGHUP) {
		list = append(list, unix.SIGHUP)
	}
	return list
}

func run(args []string) int {
	if len(args) >= 3 && args[1] == bundle.DaemonCommand {
		if err := bundle.RunDaemon(context.Background(), args[2], args[3:]...); err != nil {
			return exitFailure
		}
		return exitOK
	}
	if code, ok := userns.Main(args); ok {
		return code
	}
	ctx, stop := signal.NotifyContext(context.Background(), endSignals()...)
	defer stop()
	cmd := newRootCommand(filepath.Base(args[0]))
	cmd.SetArgs(longFlags(cmd, args[1:]))
	err := cmd.ExecuteContext(ctx)
	pprof.StopCPUProfile()
	if err == nil {
		return exitOK
	}
	var ended programEnd
	if errors.As(err, &ended) && ended.err == nil {
		return ended.code
	}
	code := exitCode(err)
	fmt.Fprintf(os.Stderr, "%s: %v\n", cmd.Name(), explain(err, code))
	return code
}
