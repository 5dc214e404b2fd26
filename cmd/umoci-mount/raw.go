package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// newRawCommand is the parent of the commands that work on parts of images and
// bundles. Each of its commands is in a file of its own, raw_NAME.go.
func newRawCommand(global *globalOptions) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "raw COMMAND",
		Short: "work on parts of images and bundles",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q", "raw "+args[0])}
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(
		newRawAddLayerCommand(global),
		newRawMtreeValidateCommand(global),
		newRawRuntimeConfigCommand(global),
		newRawUnpackCommand(global),
	)
	return cmd
}
