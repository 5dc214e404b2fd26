package layer

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// randomLayers makes layers that get in each other's way: few names, all types,
// symlinks to anywhere. Modes tell entries apart.
func randomLayers(t testing.TB, seed uint64) [][]byte {
	r := rand.New(rand.NewPCG(seed, 1))
	path := func() string {
		parts := make([]string, 1+r.IntN(3))
		for i := range parts {
			parts[i] = string(rune('a' + r.IntN(4)))
		}
		return strings.Join(parts, "/")
	}
	target := func() string {
		return []string{"", "/", "../", "../../", "./"}[r.IntN(5)] + path()
	}
	layers := make([][]byte, 1+r.IntN(3))
	for i := range layers {
		var ents []tent
		for k := range 3 + r.IntN(12) {
			p := path()
			mode := int64(0o600 + r.IntN(0o200))
			switch n := r.IntN(20); {
			case n < 6:
				ents = append(ents, tReg(p, fmt.Sprint(i, k)).mode(mode))
			case n < 12:
				ents = append(ents, tDir(p).mode(mode|0o100))
			case n < 14:
				ents = append(ents, tSym(p, target()))
			case n < 15:
				ents = append(ents, tLink(p, target()))
			case n < 16:
				ents = append(ents, tFifo(p).mode(mode))
			case n < 17:
				ents = append(ents, tDir("."))
			case n < 19:
				dir, name := filepath.Split(p)
				ents = append(ents, tWhite(dir, name))
			default:
				ents = append(ents, tOpaque(p+"/"))
			}
		}
		layers[i] = tarOf(t, ents...)
	}
	return layers
}

func TestRandomLayersMergeAsStockUmociUnpacksThem(t *testing.T) {
	umoci, err := exec.LookPath("umoci")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("takes umoci and root")
	}
	both := 0
	for seed := range uint64(60) {
		layers := randomLayers(t, seed)
		root := filepath.Join(t.TempDir(), "rootfs")
		start := time.Now()
		keep := seed%3 == 0
		out, serr := exec.Command(umoci, "raw", "unpack", fmt.Sprintf("--keep-dirlinks=%t", keep), "--image", writeLayout(t, layers)+":t", root).CombinedOutput()
		im, err := imageOf(t, keep, layers...)
		// 0.4.7 refuses an ancestor that is no directory; later ones replace it.
		if serr != nil && strings.Contains(string(out), "not a directory") {
			continue
		}
		if (err == nil) != (serr == nil) {
			t.Errorf("seed %d: we: %v; stock: %v\n%s", seed, err, serr, out)
			continue
		}
		if err != nil {
			continue
		}
		both++
		ours, stock := maskClock(dump(walkImage(t, im)), dump(walkDisk(t, root)), start)
		if ours != stock {
			t.Errorf("seed %d, keep-dirlinks %t: ours\n%s\nstock\n%s", seed, keep, ours, stock)
		}
	}
	t.Logf("%d trees compared", both)
}
