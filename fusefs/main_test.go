package fusefs

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// serverEnv makes the test binary a server: a process that uses the mount it
// serves would wait for itself.
const serverEnv = "FUSEFS_TEST_SERVER"

func TestMain(m *testing.M) {
	if config := os.Getenv(serverEnv); config != "" {
		if err := serveTest(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(runTests(m))
}

// runTests keeps all temporary directories in one, where no mount may be left: those
// elsewhere are of other packages, whose tests run at the same time.
func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "fusefs-test-")
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.Setenv("TMPDIR", dir))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if left := strings.Count(string(mounts), " "+dir+"/"); left > 0 {
		fmt.Fprintf(os.Stderr, "%d mounts are left over below %s\n", left, dir)
		return 1
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// serverConfig is what the server process is told.
type serverConfig struct {
	Dir      string // holds upper/, work/ and mnt/
	Rootless bool
	Squash   *overlay.Owner
	Options  Options
	LogPath  string
	Facts    bool // opens files as told (fact_test.go)
	UserNS   bool // in a user and a mount namespace of its own
}

// serveTest serves until its standard input ends. Lines there are questions with
// one line of answer: "stats" (the counters as JSON), "unmount", "run" and a shell
// command, or what factOps obeys.
func serveTest(config string) error {
	var cfg serverConfig
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		return err
	}
	logFile, err := os.OpenFile(cfg.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	cfg.Options.Log = slog.New(slog.NewTextHandler(logFile, &slog.HandlerOptions{Level: slog.LevelDebug}))
	fs, err := openUnion(cfg.Dir, cfg.Rootless, cfg.Squash)
	if err != nil {
		return err
	}
	var srv *Server
	var facts *factOps
	if cfg.Facts {
		srv, facts, err = mountWithFacts(fs, filepath.Join(cfg.Dir, "mnt"), cfg.Options)
	} else {
		srv, err = Mount(fs, filepath.Join(cfg.Dir, "mnt"), cfg.Options)
	}
	if err != nil {
		return err
	}
	served := make(chan struct{})
	go func() {
		srv.Serve()
		close(served)
	}()
	fmt.Println("ready")
	unmounted := false
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		word, rest, _ := strings.Cut(in.Text(), " ")
		switch {
		case word == "stats":
			answer, err := json.Marshal(srv.Stats())
			if err != nil {
				return err
			}
			fmt.Println(string(answer))
		case word == "unmount":
			if err := srv.Unmount(); err != nil {
				fmt.Println(err)
				continue
			}
			unmounted = true
			fmt.Println("ok")
		case word == "run":
			fmt.Println(runShell(rest))
		case facts != nil:
			fmt.Println(facts.obey(strings.Fields(in.Text())))
		}
	}
	if !unmounted {
		err = srv.Unmount()
	}
	<-served
	return errors.Join(err, fs.Close())
}

func openUnion(dir string, rootless bool, squash *overlay.Owner) (*overlay.FS, error) {
	upper, err := os.Open(filepath.Join(dir, "upper"))
	if err != nil {
		return nil, err
	}
	defer upper.Close()
	work, err := os.Open(filepath.Join(dir, "work"))
	if err != nil {
		return nil, err
	}
	defer work.Close()
	u, err := overlay.OpenUpper(overlay.UpperOptions{Upper: upper, Work: work, Rootless: rootless})
	if err != nil {
		return nil, err
	}
	return overlay.New(stdLower(), u, overlay.Options{Squash: squash})
}
