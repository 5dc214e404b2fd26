package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
	"github.com/umoci-mount/umoci-mount/layer"
)

type cacheListOptions struct {
	global *globalOptions
	cache  cacheFlag
	json   bool
}

func newCacheListCommand(global *globalOptions) *cobra.Command {
	o := &cacheListOptions{global: global}
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "list what the cache holds",
		Long: `Lists what the cache holds of layers and of merged trees: size, when it was used last
(to the hour), and whether a mount or a command has it open now.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.OutOrStdout()) },
	}
	f := cmd.Flags()
	o.cache.add(f)
	f.BoolVar(&o.json, "json", false, "write JSON")
	return cmd
}

func (o *cacheListOptions) run(out io.Writer) error {
	log, err := o.global.logger()
	if err != nil {
		return err
	}
	entries, err := bundle.CacheEntries(o.cache.value, log)
	if err != nil {
		return err
	}
	return writeCacheEntries(out, entries, o.json)
}

func writeCacheEntries(out io.Writer, entries []layer.CacheEntry, asJSON bool) error {
	if asJSON {
		if entries == nil {
			entries = []layer.CacheEntry{}
		}
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(entries)
	}
	w := tabwriter.NewWriter(out, 4, 2, 2, ' ', 0)
	fmt.Fprintln(w, "KIND\tNAME\tSIZE\tUSED\tIN USE")
	for i := range entries {
		e := &entries[i]
		in := ""
		if e.InUse {
			in = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", e.Kind, lineName(e.Name), size(e.Bytes), e.Used.Local().Format(time.DateTime), in)
	}
	return w.Flush()
}
