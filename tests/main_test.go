// Package tests runs the program as its users do: in processes of its own, on
// images that stock tools or internal/imagetest made, and against what stock tools
// make of them.
package tests

import (
	"os"
	"testing"
	"time"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// env is set by TestMain and not changed after.
var env *imagetest.Env

func TestMain(m *testing.M) {
	os.Exit(imagetest.Main(m, func(e *imagetest.Env) { env = e }, 24*time.Minute))
}
