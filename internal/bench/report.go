package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// report is what a run found.
type report struct {
	When    string   `json:"when"`
	Machine string   `json:"machine"`
	Program string   `json:"program"`
	Image   string   `json:"image"` // that most rows use
	Runs    int      `json:"runs"`
	Quick   bool     `json:"quick"`
	Missing []string `json:"missing,omitempty"` // peers that are not here
	Rows    []result `json:"rows"`
}

// keepOthers takes the rows that were not measured from the last report, where that is of
// the same machine and program.
func (rep *report) keepOthers(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "benchmarks.json"))
	if os.IsNotExist(err) {
		return nil
	}
	var last report
	if err := errors.Join(err, json.Unmarshal(data, &last)); err != nil {
		return err
	}
	if last.Machine != rep.Machine || last.Program != rep.Program || last.Image != rep.Image || last.Runs != rep.Runs {
		return nil
	}
	for _, r := range rep.Rows {
		i := slices.IndexFunc(last.Rows, func(l result) bool { return l.Name == r.Name })
		if i < 0 {
			last.Rows = append(last.Rows, r)
		} else {
			last.Rows[i] = r
		}
	}
	order := rows()
	place := func(r result) int { return slices.IndexFunc(order, func(o row) bool { return o.name == r.Name }) }
	slices.SortStableFunc(last.Rows, func(a, b result) int { return cmp.Compare(place(a), place(b)) })
	rep.Rows = last.Rows
	return nil
}

// machine is what the figures depend on.
func machine() string {
	var u unix.Utsname
	kernel := ""
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Sprintf("%d processors, Linux %s, %s", runtime.NumCPU(), strings.SplitN(kernel, "-", 2)[0], runtime.GOARCH)
}

// figure is a value for people.
func figure(v float64, unit string) string {
	switch {
	case unit == "MB":
		return fmt.Sprintf("%.0f MB", v)
	case unit != "":
		return fmt.Sprintf("%.1f %s", v, unit)
	case v < 0.1:
		return fmt.Sprintf("%.1f ms", 1000*v)
	case v < 10:
		return fmt.Sprintf("%.2f s", v)
	}
	return fmt.Sprintf("%.1f s", v)
}

// times is a ratio for people.
func times(x float64) string {
	if x < 0.1 {
		return fmt.Sprintf("%.3f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

func (rep *report) write(o options) (err error) {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(o.out, "benchmarks.json"), append(data, '\n'), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(o.out, "benchmarks.svg"), []byte(rep.plot()), 0o644); err != nil {
		return err
	}
	if o.table == "" {
		_, err := io.WriteString(os.Stdout, rep.markdown())
		return err
	}
	return putTable(o.table, rep.markdown())
}

// What is measured stands between these lines of a document.
const (
	beginTable = "<!-- measured: begin -->\n"
	endTable   = "<!-- measured: end -->\n"
)

// putTable puts a table in a document, in place of what is between its marks; the
// whole file where there are none.
func putTable(name, table string) error {
	have, err := os.ReadFile(name)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	before, rest, found := strings.Cut(string(have), beginTable)
	_, after, found2 := strings.Cut(rest, endTable)
	if found && found2 {
		table = before + beginTable + table + endTable + after
	}
	return os.WriteFile(name, []byte(table), 0o644)
}

// markdown is the table of a run.
func (rep *report) markdown() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s; %s; image %s; %s. Medians of %d runs, the contenders of a row in turn; the ratio is ours by the peer's.\n",
		rep.Machine, strings.SplitN(rep.Program, "\n", 2)[0], rep.Image, rep.When[:min(10, len(rep.When))], rep.Runs)
	if len(rep.Missing) > 0 {
		fmt.Fprintf(&s, "Not on this machine: %s.\n", strings.Join(rep.Missing, ", "))
	}
	s.WriteString("\n| what | ours | peers | ratio | target | met |\n| --- | --- | --- | --- | --- | --- |\n")
	for i := range rep.Rows {
		r := &rep.Rows[i]
		own := "failed"
		if m, ok := r.median(r.Ours); ok {
			own = figure(m, r.Unit)
		}
		var ratios []string
		for _, g := range r.Goals {
			if x, ok := r.ratio(g.Peer); ok {
				ratios = append(ratios, times(x)+" × "+g.Peer)
			}
		}
		fmt.Fprintf(&s, "| %s | %s | %s | %s | %s | %s |\n", r.Name, own, strings.Join(r.peers(), ", "),
			strings.Join(ratios, ", "), r.target(), strings.Join(r.met(), ", "))
	}
	return s.String()
}

// peers are the others' medians, by name; one that failed says why.
func (r *result) peers() []string {
	var out []string
	for who := range r.Values {
		if m, ok := r.median(who); ok && who != r.Ours {
			out = append(out, who+" "+figure(m, r.Unit))
		}
	}
	for who, e := range r.Errors {
		if who != r.Ours {
			out = append(out, who+": "+strings.SplitN(e, "\n", 2)[0])
		}
	}
	slices.Sort(out)
	return out
}

func (r *result) target() string {
	var out []string
	for _, g := range r.Goals {
		if g.Limit > 0 {
			out = append(out, "≤ "+times(g.Limit)+" × "+g.Peer)
		}
	}
	if r.Most > 0 {
		out = append(out, "≤ "+figure(r.Most, r.Unit))
	}
	return strings.Join(out, ", ")
}

const (
	plotLabel = 380 // pixels for a row's name
	plotWidth = 420 // of the longest bar
	plotRow   = 22  // height of a row
	plotMost  = 3.0 // ratios above are cut
)

// plot draws each row's first ratio as a bar, with the peer's at 1 and the target as a
// mark.
func (rep *report) plot() string {
	var rows []*result
	for i := range rep.Rows {
		r := &rep.Rows[i]
		if len(r.Goals) == 0 {
			continue
		}
		if _, ok := r.ratio(r.Goals[0].Peer); ok {
			rows = append(rows, r)
		}
	}
	at := func(x float64) float64 { return plotLabel + min(x, plotMost)/plotMost*plotWidth }
	escape := strings.NewReplacer("&", "&amp;", "<", "&lt;")
	var s strings.Builder
	height := plotRow*len(rows) + 50
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", plotLabel+plotWidth+170, height)
	s.WriteString(`<rect width="100%" height="100%" fill="white"/>` + "\n")
	for i, r := range rows {
		g := r.Goals[0]
		x, _ := r.ratio(g.Peer)
		y := 10 + plotRow*i
		colour := "#888"
		if g.Limit > 0 {
			colour = map[bool]string{true: "#3a7", false: "#c54"}[x <= g.Limit]
		}
		fmt.Fprintf(&s, `<text x="%d" y="%d" text-anchor="end">%s</text>`, plotLabel-8, y+14, escape.Replace(r.Name))
		fmt.Fprintf(&s, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, plotLabel, y+3, at(x)-plotLabel, plotRow-8, colour)
		if g.Limit > 0 {
			fmt.Fprintf(&s, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="black" stroke-width="2"/>`, at(g.Limit), at(g.Limit), y+1, y+plotRow-3)
		}
		fmt.Fprintf(&s, `<text x="%.1f" y="%d">%s × %s</text>`+"\n", at(max(x, g.Limit))+6, y+14, times(x), g.Peer)
	}
	fmt.Fprintf(&s, `<line x1="%.1f" x2="%.1f" y1="5" y2="%d" stroke="#666" stroke-dasharray="3"/>`, at(1), at(1), height-35)
	fmt.Fprintf(&s, `<text x="%.1f" y="%d" text-anchor="middle">1: as the peer. Shorter is faster; the black marks are the targets.</text>`+"\n</svg>\n", at(1), height-15)
	return s.String()
}
