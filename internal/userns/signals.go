package userns

import (
	"encoding/json"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"
)

// followed are the signals that are passed on to the program.
var followed = []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2}

// catch takes the followed signals that this process is sent, from now on.
func catch() chan os.Signal {
	signals := make(chan os.Signal, 16)
	for _, s := range followed {
		if !signal.Ignored(s) { // as nohup(1) has it of SIGHUP
			signal.Notify(signals, s)
		}
	}
	return signals
}

// tell passes signals on to a child by the socket that it has, by number: one that is
// sent to a process as it begins would end it, or be lost. It returns when stop is closed.
func tell(child *json.Encoder, signals <-chan os.Signal, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case s := <-signals:
			if n, ok := s.(unix.Signal); ok && child.Encode(int(n)) != nil {
				return // it has ended
			}
		}
	}
}

// hear takes what a parent tells, and returns when the parent is gone.
func hear(parent *json.Decoder, pass func(unix.Signal)) {
	var n int
	for parent.Decode(&n) == nil {
		pass(unix.Signal(n))
	}
}

// signalled is the end of an exec whose program did not run yet.
type signalled struct{ unix.Signal }

func (s signalled) Error() string { return s.String() }

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
