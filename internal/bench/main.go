package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// options of a run.
type options struct {
	bin    string // the program
	images string // an image layout with tags minbase, compiler and, unless quick, large
	work   string // scratch, on the disk that is measured
	out    string // JSON and plot
	table  string // Markdown; "": standard output
	rows   *regexp.Regexp
	runs   int
	image  string // the tag that most rows use
	quick  bool
	user   string // the plain user of the rows for one; "": none
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin/umoci-mount", "the `program` to measure")
	flag.StringVar(&o.images, "images", "/var/tmp/umoci-mount-images/images", "`layout` with the images of make bench-images")
	flag.StringVar(&o.work, "work", "/var/tmp/umoci-mount-bench", "`directory` to work in, on the disk that counts")
	flag.StringVar(&o.out, "out", "build/bench", "`directory` of results")
	flag.StringVar(&o.table, "table", "", "`file` of the table (default standard output)")
	flag.StringVar(&o.user, "user", "", "plain `user` for the rows of one")
	rows := flag.String("rows", "", "measure only rows whose names match this `regexp`; the others stay as the last run had them")
	flag.IntVar(&o.runs, "runs", 5, "how `often` each contender runs")
	flag.StringVar(&o.image, "image", "large", "`tag` of the image that most rows use")
	flag.BoolVar(&o.quick, "quick", false, "a few rows with the small image alone, three runs")
	flag.Parse()
	if err := run(o, *rows); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(o options, rows string) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("it mounts overlayfs and drops caches: run it as root")
	}
	if o.rows, err = regexp.Compile(rows); err != nil {
		return err
	}
	if o.quick {
		o.runs, o.image = min(o.runs, 3), "minbase"
	}
	for _, path := range []*string{&o.bin, &o.images, &o.work, &o.out} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	b, err := prepare(o)
	if err != nil {
		return err
	}
	defer b.close()
	began := time.Now()
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	results := b.measure(interrupted)
	rep := report{
		When: began.UTC().Format(time.RFC3339), Machine: machine(), Program: strings.TrimSpace(b.output(o.bin, "--version")),
		Image: o.image, Runs: o.runs, Quick: o.quick, Missing: b.missing, Rows: results,
	}
	if rows != "" {
		if err := rep.keepOthers(o.out); err != nil {
			return err
		}
	}
	return rep.write(o)
}
