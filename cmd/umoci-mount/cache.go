package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// newCacheCommand is the parent of the commands on the cache of layer indexes. Each
// is in a file of its own, cache_NAME.go.
func newCacheCommand(global *globalOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache COMMAND",
		Short: "list, prune or fill the cache of layer indexes",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q", "cache "+args[0])}
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(
		newCacheListCommand(global),
		newCachePruneCommand(global),
		newCacheWarmCommand(global),
	)
	return cmd
}
