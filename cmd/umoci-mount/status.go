package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

type statusOptions struct {
	json  bool
	stats bool
}

func newStatusCommand() *cobra.Command {
	o := &statusOptions{}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "list the live mounts",
		Args:  exactArgs(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), os.Stdout) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.json, "json", false, "write JSON")
	f.BoolVar(&o.stats, "stats", false, "show what the daemons hold, and the kernel's requests by kind")
	return cmd
}

func (o *statusOptions) run(ctx context.Context, out io.Writer) error {
	mounts, err := bundle.Status(ctx)
	if err != nil {
		return err
	}
	if o.json {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(mounts)
	}
	w := tabwriter.NewWriter(out, 4, 2, 2, ' ', 0)
	fmt.Fprintln(w, "BUNDLE\tIMAGE\tPID\tUPTIME\tUPPER")
	for _, m := range mounts {
		m.Bundle, m.Image = lineName(m.Bundle), lineName(m.Image)
		if m.Error != "" {
			fmt.Fprintf(w, "%s\t%s\t-\t%s\t%s\n", m.Bundle, m.Image, m.Error, size(m.Upper))
			continue
		}
		uptime := time.Duration(m.Uptime * float64(time.Second)).Round(time.Second)
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", m.Bundle, m.Image, m.PID, uptime, size(m.Upper))
	}
	if err := w.Flush(); err != nil || !o.stats {
		return err
	}
	return writeRequests(out, mounts)
}

func writeRequests(out io.Writer, mounts []bundle.MountStatus) error {
	w := tabwriter.NewWriter(out, 4, 2, 2, ' ', 0)
	for _, m := range mounts {
		var names []string
		for name := range m.Requests {
			names = append(names, name)
		}
		slices.Sort(names)
		fmt.Fprintf(w, "\n%s\n", lineName(m.Bundle))
		fmt.Fprintf(w, "  memory\t%s, heap %s\n  goroutines\t%d\n  descriptors\t%d\n", size(m.Resident), size(m.Heap), m.Goroutines, m.Descriptors)
		for _, name := range names {
			fmt.Fprintf(w, "  %s\t%d\n", name, m.Requests[name])
		}
	}
	return w.Flush()
}
