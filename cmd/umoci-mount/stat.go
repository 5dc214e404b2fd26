package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/internal/imageconfig"
)

func newStatCommand() *cobra.Command {
	var image imageFlag
	var platform platformFlag
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "stat --image LAYOUT[:TAG]",
		Short: "show an image's manifest, config and history",
		Long: `Shows what an image says of itself. The text is for people and may change; scripts
want --json.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, tag, err := image.parse()
			if err != nil {
				return err
			}
			which, err := platform.parse()
			if err != nil {
				return err
			}
			return withLayout(path, func(l *cas.Layout) error {
				from, err := l.Resolve(cmd.Context(), tag, cas.ResolveOptions{Platform: which})
				if err != nil {
					return err
				}
				s, err := imageconfig.ReadStat(cmd.Context(), l, from)
				if err != nil {
					return fmt.Errorf("%s:%s: %w", path, tag, err)
				}
				if asJSON {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(s)
				}
				return s.WriteText(cmd.OutOrStdout())
			})
		},
	}
	image.add(cmd.Flags(), "image to show")
	platform.add(cmd.Flags())
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}
