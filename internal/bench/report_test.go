package main

import (
	"encoding/json"
	"encoding/xml"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func sample() report {
	return report{When: "2026-01-02T03:04:05Z", Machine: "2 processors", Program: "umoci-mount version 1\nmore", Runs: 3, Missing: []string{igzip}, Rows: []result{
		{Name: "fast <row>", Ours: ours, Goals: []goal{{overlay, 1.5}}, Values: map[string][]float64{ours: {1, 9, 2}, overlay: {2, 2, 2}}},
		{Name: "slow row", Ours: ours, Goals: []goal{{overlay, 1.5}, {umoci, 0.5}, {fuseOver, 0.2}}, Values: map[string][]float64{ours: {4}, overlay: {2}, umoci: {10}}, Errors: map[string]string{fuseOver: "broke\nat once"}},
		{Name: "memory", Ours: ours, Most: 25, Unit: "MB", Values: map[string][]float64{ours: {24, 26}}},
		{Name: "no peer", Ours: ours, Goals: []goal{{umoci, 2}}, Values: map[string][]float64{ours: {0.012}}},
		{Name: "user", Ours: userOurs, Goals: []goal{{userOther, 0.2}}, Values: map[string][]float64{userOurs: {1}, userOther: {10}}},
	}}
}

func TestTheTableSaysWhatIsMetAndWhatIsMissing(t *testing.T) {
	rep := sample()
	got := rep.markdown()
	for _, want := range []string{
		"Not on this machine: igzip.",
		"| fast <row> | 2.00 s | overlayfs 2.00 s | 1.00 × overlayfs | ≤ 1.50 × overlayfs | yes |",
		"| slow row | 4.00 s | fuse-overlayfs: broke, overlayfs 2.00 s, umoci 10.0 s | 2.00 × overlayfs, 0.40 × umoci | ≤ 1.50 × overlayfs, ≤ 0.50 × umoci, ≤ 0.20 × fuse-overlayfs | **no**, yes, not measured |",
		"| memory | 25 MB |  |  | ≤ 25 MB | yes |",
		"| no peer | 12.0 ms |  |  | ≤ 2.00 × umoci | not measured |",
		"| user | 1.00 s | fuse-overlayfs, plain user 10.0 s | 0.10 × fuse-overlayfs, plain user | ≤ 0.20 × fuse-overlayfs, plain user | yes |",
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("no line %q in\n%s", want, got)
		}
	}
}

func TestResultsAreWrittenInEachForm(t *testing.T) {
	rep := sample()
	o := options{out: filepath.Join(t.TempDir(), "out"), table: filepath.Join(t.TempDir(), "table.md")}
	if err := rep.write(o); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(o.out, "benchmarks.json"))
	var back report
	if err != nil || json.Unmarshal(data, &back) != nil || len(back.Rows) != 5 {
		t.Errorf("%v: %s", err, data)
	}
	plot, err := os.ReadFile(filepath.Join(o.out, "benchmarks.svg"))
	if err != nil || xml.Unmarshal(plot, new(struct{})) != nil || strings.Count(string(plot), " × ") != 3 {
		t.Errorf("%v: %s", err, plot)
	}
	if table, err := os.ReadFile(o.table); err != nil || string(table) != rep.markdown() {
		t.Errorf("%v: %s", err, table)
	}
	if err := os.WriteFile(o.table, []byte("above\n"+beginTable+"old\n"+endTable+"below\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := rep.write(o); err != nil {
		t.Fatal(err)
	}
	if table, err := os.ReadFile(o.table); err != nil || string(table) != "above\n"+beginTable+rep.markdown()+endTable+"below\n" {
		t.Errorf("%v: %s", err, table)
	}
}

func TestRowsHaveNamesOfTheirOwnAndAPeerThatTheyMeasure(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range rows() {
		if seen[r.name] {
			t.Errorf("two rows %q", r.name)
		}
		seen[r.name] = true
		if r.begin == nil || len(r.contenders) == 0 {
			t.Errorf("row %q measures nothing", r.name)
		}
		for _, g := range r.goals {
			if !slices.Contains(r.contenders[1:], g.Peer) {
				t.Errorf("row %q is compared with %q, which it does not measure", r.name, g.Peer)
			}
		}
	}
}

func TestRowsThatWereNotMeasuredStay(t *testing.T) {
	dir := t.TempDir()
	first := sample()
	if err := first.write(options{out: dir, table: filepath.Join(dir, "t.md")}); err != nil {
		t.Fatal(err)
	}
	again := sample()
	again.Rows = []result{{Name: "memory", Values: map[string][]float64{ours: {7}}}, {Name: "new"}}
	if err := again.keepOthers(dir); err != nil {
		t.Fatal(err)
	}
	if len(again.Rows) != 6 || again.Rows[2].Values[ours][0] != 7 || again.Rows[0].Name != "fast <row>" || again.Rows[5].Name != "new" {
		t.Errorf("%+v", again.Rows)
	}
	other := sample()
	other.Machine, other.Rows = "another", other.Rows[:1]
	if err := other.keepOthers(dir); err != nil || len(other.Rows) != 1 {
		t.Errorf("another machine's rows: %d, %v", len(other.Rows), err)
	}
}
