// Package crash ends programs at bad moments and looks at what is left: the daemon
// of a mount is killed while a program writes, commands are killed at each system
// call that changes something, storage fills up or is damaged, and the power is cut.
package crash

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

var (
	env    *imagetest.Env
	rounds = flag.Int("rounds", 40, "how often the daemon is killed, for root and for a plain user each, and the power cut of a disk")
	seed   = flag.Uint64("seed", 1, "of the first round; 0: of the time")
)

func TestMain(m *testing.M) {
	if os.Getenv(workerVar) != "" { // one of our own children
		os.Exit(worker(os.Args[1:]))
	}
	flag.Parse()
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	use := func(e *imagetest.Env) {
		env = e
		workerBin = filepath.Join(e.Dir, "worker")
		if err := copySelf(workerBin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(imagetest.Main(m, use, 25*time.Minute+time.Duration(*rounds)*3*time.Second))
}

// workerBin is the test binary where a plain user can execute it.
var workerBin string

func copySelf(to string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	data, err := os.ReadFile(exe)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

// baseLayers are what the daemon's tests begin with: files in several directories,
// with links, so that what is done copies up, redirects and whites out.
var baseLayers = []imagetest.Layer{
	{Text: `dir . 0755
dir a 0755
file a/one 0644 "one of the lower layer"
file a/two 0644 @5000
hardlink a/three a/two
dir a/deep 0755
file a/deep/large 0644 @700000
dir b 0755
file b/one 0600 @70000
symlink b/link ../a/one
dir b/c 0755
file b/c/x 0644 "x"
file b/c/y 0644 "y"
`},
	{Text: `file a/four 0644 @300
whiteout b/c/y
dir d 0755
file d/one 0644 @9000
`},
}
