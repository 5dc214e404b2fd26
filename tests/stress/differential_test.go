package stress

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

const (
	scriptOps     = 400
	snapshotEvery = 100
	// shrinkTries bounds the shorter scripts that are tried for a failure.
	shrinkTries = 400
	replays     = "testdata/scripts"
)

// Three processes do the same operations on a mount, on the local disk and on kernel
// overlayfs, step by step: every answer has to be the same, and the trees. Where
// overlayfs alone differs from the disk, it is left behind. A script that fails is
// made short and kept: rerun it by moving it to testdata/scripts.
func TestRandomProcessesSeeTheSameInThreeWorlds(t *testing.T) {
	imagetest.NeedFuse(t)
	imagetest.NeedRoot(t)
	m := newMaker(t)
	began, whole, differing := time.Now(), 0, map[string]int{}
	scripts, succeeded := 0, 0
	for s := *seed; scripts < 2 || time.Since(began) < share(25); s, scripts = s+1, scripts+1 {
		var flags []string
		if s%2 == 1 {
			flags = []string{"--passthrough"}
		}
		ops := script(s, scriptOps)
		r := m.run(t, ops, flags)
		if r.failure == "" {
			succeeded += r.succeeded
			if r.left == "" {
				whole++
			} else {
				differing[r.left]++
			}
			continue
		}
		short := m.shrink(t, ops[:r.at+1], flags)
		name := filepath.Join(os.TempDir(), fmt.Sprintf("stress-%d.script", s))
		if err := save(name, short); err != nil {
			t.Error(err)
		}
		t.Fatalf("seed %d (%v), operation %d: %s\nin short (%s):\n%s", s, flags, r.at, r.failure, name, m.explain(t, short, flags))
	}
	t.Logf("%d scripts of %d operations, %d %% of which succeed; in %d scripts overlayfs is as a local disk too",
		scripts, scriptOps, 100*succeeded/(scripts*scriptOps), whole)
	for what, n := range differing {
		t.Logf("overlayfs alone differs, %d times: %s", n, what)
	}
}

// Scripts that failed once.
func TestScriptsThatFailedOncePass(t *testing.T) {
	imagetest.NeedFuse(t)
	imagetest.NeedRoot(t)
	files, err := filepath.Glob(filepath.Join(replays, "*.script"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatalf("%s has no scripts", replays)
	}
	m := newMaker(t)
	for _, file := range files {
		ops, err := load(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, flags := range [][]string{nil, {"--passthrough"}} {
			if r := m.run(t, ops, flags); r.failure != "" {
				t.Errorf("%s (%v), operation %d: %s", file, flags, r.at, r.failure)
			}
		}
	}
}

// outcome is how a script went.
type outcome struct {
	at      int    // the operation that failed
	failure string // "": ours is as the local disk
	left    string // where overlayfs alone differed first
	lines   []string

	succeeded int // operations
}

// run does a script in new worlds.
func (m *maker) run(t *testing.T, ops []op, flags []string) (r outcome) {
	t.Helper()
	worlds := m.worlds(t, flags...)
	defer func() { end(t, worlds) }()
	left := func(what string) {
		if r.left = what; len(worlds) == 3 {
			end(t, worlds[2:])
			worlds = worlds[:2]
		}
	}
	for i, o := range ops {
		said, err := inStep(t, worlds, o)
		if err != nil {
			t.Fatalf("operation %d, %s: %v", i, o, err)
		}
		if strings.HasPrefix(said[0], "ok") {
			r.succeeded++
		}
		r.lines = append(r.lines, fmt.Sprintf("%s\n    ours %s\n    disk %s", o, said[0], said[1]))
		if said[0] != said[1] {
			r.at, r.failure = i, r.lines[i]
			if len(said) == 3 {
				r.failure += "\n    overlayfs " + said[2]
			}
			return r
		}
		if len(said) == 3 && said[2] != said[1] {
			left(o.Kind + ": " + said[2] + ", on a disk " + said[1])
		}
		if (i+1)%snapshotEvery != 0 && i != len(ops)-1 {
			continue
		}
		if said, err = inStep(t, worlds, op{Kind: "snapshot"}); err != nil {
			t.Fatalf("after operation %d: %v", i, err)
		}
		if said[0] != said[1] {
			r.at, r.failure = i, "the trees differ (- disk, + ours):\n"+differences(said[1], said[0])
			return r
		}
		if len(said) == 3 && withoutDirLinks(said[2]) != withoutDirLinks(said[1]) {
			left("tree:\n" + differences(said[1], said[2]))
		}
	}
	return r
}

// inStep does an operation in each world at once; which takes too long is said.
func inStep(t *testing.T, worlds []*world, o op) ([]string, error) {
	t.Helper()
	said, errs := make([]string, len(worlds)), make([]error, len(worlds))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i, w := range worlds {
			said[i], errs[i] = w.do(o)
		}
	}()
	select {
	case <-done:
	case <-time.After(replyLimit):
		return nil, fmt.Errorf("no answer within %v", replyLimit)
	}
	for i, err := range errs {
		if err != nil {
			return nil, fmt.Errorf("%s: %w", worlds[i].name, err)
		}
	}
	said[0] = withoutCopyUps(said[0], said[1])
	if len(said) == 3 {
		said[2] = withoutCopyUps(said[2], said[1])
		if withoutDirLinks(said[2]) == withoutDirLinks(said[1]) {
			said[2] = said[1] // the link count of directories is not overlayfs' business
		}
	}
	return said, nil
}

// withoutCopyUps takes out of an answer the changes of ctime that a disk does not have:
// a copy-up is one, by an open for writing or of a directory for what is below it.
func withoutCopyUps(said, disk string) string {
	for i := range 4 {
		if mark := fmt.Sprintf(" ctime%d", i); !strings.Contains(disk, mark) {
			said = strings.Replace(said, mark, "", 1)
		}
	}
	return said
}

func withoutDirLinks(s string) string {
	var out strings.Builder
	for {
		before, after, found := strings.Cut(s, " links ")
		out.WriteString(before)
		if !found {
			return out.String()
		}
		s = strings.TrimLeft(after, "0123456789")
	}
}

// differences are the lines that only one of two texts has.
func differences(a, b string) string {
	in := func(s string) map[string]bool {
		set := map[string]bool{}
		for line := range strings.Lines(s) {
			set[line] = true
		}
		return set
	}
	as, bs := in(a), in(b)
	var out strings.Builder
	for line := range strings.Lines(a) {
		if !bs[line] {
			out.WriteString("- " + line)
		}
	}
	for line := range strings.Lines(b) {
		if !as[line] {
			out.WriteString("+ " + line)
		}
	}
	return out.String()
}

// shrink leaves out of a failing script what the failure does not need: halves, then
// ever smaller parts.
func (m *maker) shrink(t *testing.T, ops []op, flags []string) []op {
	t.Helper()
	tries := 0
	for size := len(ops) / 2; size > 0 && tries < shrinkTries; {
		smaller := false
		for from := 0; from < len(ops) && tries < shrinkTries; {
			part := append(append([]op{}, ops[:from]...), ops[min(from+size, len(ops)):]...)
			tries++
			if r := m.run(t, part, flags); r.failure != "" {
				ops, smaller = part[:r.at+1], true
			} else {
				from += size
			}
		}
		if !smaller || size > 1 {
			size /= 2
		}
	}
	return ops
}

// explain runs a script once more, for its answers.
func (m *maker) explain(t *testing.T, ops []op, flags []string) string {
	t.Helper()
	r := m.run(t, ops, flags)
	return strings.Join(r.lines, "\n") + "\n" + r.failure
}

func save(name string, ops []op) error {
	var b bytes.Buffer
	for _, o := range ops {
		fmt.Fprintln(&b, o)
	}
	return os.WriteFile(name, b.Bytes(), 0o644)
}

func load(name string) ([]op, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var ops []op
	for in := bufio.NewScanner(f); in.Scan(); {
		var o op
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", name, len(ops)+1, err)
		}
		ops = append(ops, o)
	}
	return ops, nil
}
