package userns

import (
	"errors"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"
)

// followed are the signals that a process passes on to its child.
var followed = []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2}

// follow passes on what this process is sent, until it is stopped.
func follow(child *os.Process) (stop func()) {
	signals := make(chan os.Signal, 16)
	for _, s := range followed {
		if !signal.Ignored(s) { // as nohup(1) has it of SIGHUP
			signal.Notify(signals, s)
		}
	}
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case s := <-signals:
				if err := child.Signal(s); errors.Is(err, os.ErrProcessDone) {
					return
				}
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
	}
}

// mergeEnv puts variables into an environment, in place of those of the same name.
func mergeEnv(env, over []string) []string {
	out := make([]string, 0, len(env)+len(over))
	at := map[string]int{}
	for _, list := range [][]string{env, over} {
		for _, kv := range list {
			name, _, _ := strings.Cut(kv, "=")
			if i, ok := at[name]; ok {
				out[i] = kv
				continue
			}
			at[name] = len(out)
			out = append(out, kv)
		}
	}
	return out
}
