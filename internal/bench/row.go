package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// row is one thing that is measured.
type row struct {
	name       string
	contenders []string // the first is ours
	goals      []goal
	most       float64 // the most that ours may be, in seconds (or unit); 0: none
	unit       string  // "": seconds
	full       bool    // not with -quick
	slow       string  // the contender that is left out with -quick; "": none
	// begin prepares a contender; each call of the trial is one measurement.
	begin func(b *bench, who string) (trial, func() error, error)
}

// goal is a peer whose median ours is compared with.
type goal struct {
	Peer  string  `json:"peer"`
	Limit float64 `json:"limit,omitempty"` // the most that the ratio may be; 0: no target
}

// trial measures once.
type trial func() (float64, error)

// result is what came of a row.
type result struct {
	Name   string               `json:"name"`
	Unit   string               `json:"unit"`
	Ours   string               `json:"ours"` // the contender that is ours
	Goals  []goal               `json:"goals,omitempty"`
	Most   float64              `json:"most,omitempty"`
	Values map[string][]float64 `json:"values"`
	Errors map[string]string    `json:"errors,omitempty"`
}

// median of what a contender took; ok is false where it did not run.
func (r *result) median(who string) (m float64, ok bool) {
	v := slices.Sorted(slices.Values(r.Values[who]))
	if len(v) == 0 {
		return 0, false
	}
	return (v[len(v)/2] + v[(len(v)-1)/2]) / 2, true
}

// ratio is ours by a peer's.
func (r *result) ratio(peer string) (float64, bool) {
	a, ok := r.median(r.Ours)
	p, ok2 := r.median(peer)
	if !ok || !ok2 || p == 0 {
		return 0, false
	}
	return a / p, true
}

// met tells of each target, in their order, whether it is reached.
func (r *result) met() (met []string) {
	judge := func(x float64, measured bool, most float64) {
		switch {
		case most == 0:
		case !measured:
			met = append(met, "not measured")
		case x <= most:
			met = append(met, "yes")
		default:
			met = append(met, "**no**")
		}
	}
	for _, g := range r.Goals {
		x, ok := r.ratio(g.Peer)
		judge(x, ok, g.Limit)
	}
	m, ok := r.median(r.Ours)
	judge(m, ok, r.Most)
	return met
}

// measure runs the rows that are asked for, until it is interrupted.
func (b *bench) measure(ctx context.Context) []result {
	var out []result
	for _, r := range rows() {
		if ctx.Err() != nil {
			break
		}
		if !b.options.rows.MatchString(r.name) || r.full && b.quick {
			continue
		}
		began := time.Now()
		res := b.measureRow(r)
		out = append(out, res)
		line := ""
		for _, who := range r.contenders {
			if m, ok := res.median(who); ok {
				line += fmt.Sprintf("  %s %s", who, figure(m, r.unit))
			}
		}
		fmt.Fprintf(os.Stderr, "%-60s%s  (%.0f s)\n", r.name, line, time.Since(began).Seconds())
		for who, e := range res.Errors {
			fmt.Fprintf(os.Stderr, "    %s: %s\n", who, e)
		}
	}
	return out
}

func (b *bench) measureRow(r row) result {
	res := result{Name: r.name, Unit: r.unit, Ours: r.contenders[0], Goals: r.goals, Most: r.most, Values: map[string][]float64{}, Errors: map[string]string{}}
	sweep := func(keep int) {
		if err := b.sweep(keep); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", r.name+":", err)
		}
	}
	trials := map[string]trial{}
	var ends []func() error
	for _, who := range r.contenders {
		if b.quick && who == r.slow {
			res.Errors[who] = "not measured by -quick: it takes long"
			continue
		}
		if slices.Contains(b.missing, who) || (who == userOurs || who == userOther) && b.user == "" {
			res.Errors[who] = "not here"
			continue
		}
		t, end, err := r.begin(b, who)
		if err != nil {
			res.Errors[who] = err.Error()
			continue
		}
		trials[who] = t
		if end != nil {
			ends = append(ends, end)
		}
	}
	begun := len(b.disks)
	for n := range b.runs {
		// In turn, each first once: what disturbs one disturbs all.
		turn := n % len(r.contenders)
		for _, who := range slices.Concat(r.contenders[turn:], r.contenders[:turn]) {
			if trials[who] == nil {
				continue
			}
			v, err := trials[who]()
			sweep(begun)
			if err != nil {
				res.Errors[who] = err.Error()
				delete(trials, who)
				delete(res.Values, who)
				continue
			}
			res.Values[who] = append(res.Values[who], v)
		}
	}
	for _, end := range slices.Backward(ends) {
		if err := end(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", r.name+":", err)
		}
	}
	sweep(0)
	return res
}

// timed is how long f takes, in seconds.
func timed(f func() error) (float64, error) {
	began := time.Now()
	err := f()
	return time.Since(began).Seconds(), err
}

// in is a row whose contenders do the same work in their view of the image: hot, each
// time after twice without being measured, as kernels give up what was not used for a
// while (DAMON), and what a first run reads makes FUSE ask for times of access in the
// second; or cold, with the kernel's caches dropped each time.
func in(name, script string, cold bool, contenders ...string) row {
	return row{name: name, contenders: contenders, begin: func(b *bench, who string) (trial, func() error, error) {
		v, err := b.mount(who, b.tag())
		if err != nil {
			return nil, nil, err
		}
		work := func() error { return sh(v.root+".log", b.as(who), `cd "$0"; `+script, v.root) }
		return func() (float64, error) {
			for n := 0; n < 2 && !cold; n++ {
				if err := work(); err != nil {
					return 0, err
				}
			}
			if err := settle(cold); err != nil {
				return 0, err
			}
			return timed(work)
		}, v.end, nil
	}}
}

// anew is a row whose contenders change their view, and have a new one each time.
func anew(name, script string, contenders ...string) row {
	return anewAfter("", name, script, contenders...)
}

// anewAfter is anew with something to be done before, which is not measured.
func anewAfter(before, name, script string, contenders ...string) row {
	return row{name: name, contenders: contenders, begin: func(b *bench, who string) (trial, func() error, error) {
		return func() (seconds float64, err error) {
			v, err := b.mount(who, b.tag())
			if err != nil {
				return 0, err
			}
			defer func() { err = errors.Join(err, v.end()) }()
			// The names are known: a mount of a moment ago has yet to hear of them.
			if err := sh(v.root+".log", b.as(who), `cd "$0"; find . -ls >/dev/null; `+before, v.root); err != nil {
				return 0, err
			}
			if err := settle(false); err != nil {
				return 0, err
			}
			return timed(func() error { return sh(v.root+".log", b.as(who), `cd "$0"; `+script, v.root) })
		}, nil, nil
	}}
}

// anewTwice is anew for what fills hundreds of megabytes of the page cache: it is done once
// before, without being measured. A virtual machine gives its host back what was free for
// two seconds (mm/page_reporting.c), and each page of it costs whoever fills it next a
// fault in the host: half a second for 512 MB, several times what writing them takes.
func anewTwice(name, script string, contenders ...string) row {
	return anewAfter(script, name, script, contenders...)
}

// as is the user that a contender's work is done by; "" for root.
func (b *bench) as(who string) string {
	if who == userOurs || who == userOther {
		return b.user
	}
	return ""
}

// notQuick leaves the row out of -quick.
func (r row) notQuick() row {
	r.full = true
	return r
}

// quickWithout leaves a contender out of -quick.
func (r row) quickWithout(who string) row {
	r.slow = who
	return r
}

// against adds a peer whose ratio counts, and the target; 0: there is none.
func (r row) against(peer string, limit float64) row {
	r.goals = append(slices.Clip(r.goals), goal{peer, limit})
	return r
}
