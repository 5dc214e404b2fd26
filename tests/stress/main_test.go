// Package stress does long seeded sequences of random operations in mounted images:
// on one file against a model of its bytes, by processes in step with a local disk and
// kernel overlayfs, and from many processes at once while the daemon's resources are
// watched.
package stress

import (
	"flag"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

var (
	env *imagetest.Env
	// total is shared out among the tests: see share.
	total = flag.Duration("stresstime", 60*time.Second, "how long the tests of the package take together")
	soak  = flag.Duration("soak", 0, "how long eight processes load one mount at least")
	seed  = flag.Uint64("seed", 1, "of the first sequence; 0: of the time")
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == workerArg { // one of our own children
		os.Exit(loadWorker(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == partyArg {
		os.Exit(party(os.Args[2:]))
	}
	flag.Parse()
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	os.Exit(imagetest.Main(m, func(e *imagetest.Env) { env = e }, 3**total+2**soak+10*time.Minute))
}

// share is the part of the total time that is n of 60 seconds.
func share(n int) time.Duration { return imagetest.Fewer(*total) * time.Duration(n) / 60 }

func source(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)) }
