package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

type rawMtreeValidateOptions struct {
	global        *globalOptions
	manifest      string
	path          string
	rootless      bool
	addKeywords   string
	useKeywords   string
	umociKeywords bool
}

func newRawMtreeValidateCommand(global *globalOptions) *cobra.Command {
	o := &rawMtreeValidateOptions{global: global}
	cmd := &cobra.Command{
		Use:    "mtree-validate --manifest FILE --path DIR",
		Short:  "compare a directory with an mtree manifest",
		Hidden: true, // as umoci's: for tests
		Long: `Compares DIR with the mtree(5) manifest in FILE, as gomtree does, and prints a line
for each path that differs. The keywords are the manifest's own unless others are
asked for.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.manifest, "manifest", "f", "", "the manifest: `FILE`")
	f.StringVar(&o.manifest, "file", "", "the same as --manifest")
	f.StringVarP(&o.path, "path", "p", "", "the directory that the manifest is of: `DIR`")
	f.BoolVar(&o.rootless, "rootless", false, "look into directories and files that their modes close, too")
	f.StringVarP(&o.addKeywords, "add-keywords", "K", "", "compare these `KEYWORDS` too (a comma or blank between them)")
	f.StringVarP(&o.useKeywords, "use-keywords", "k", "", "compare these `KEYWORDS` alone")
	f.BoolVar(&o.umociKeywords, "umoci-keywords", false, "compare the keywords that umoci compares")
	return cmd
}

func (o *rawMtreeValidateOptions) validate() error {
	switch {
	case o.manifest == "":
		return usageError{errors.New("missing mandatory argument: --manifest")}
	case o.path == "":
		return usageError{errors.New("missing mandatory argument: --path")}
	}
	return nil
}

func (o *rawMtreeValidateOptions) run(ctx context.Context, out io.Writer) error {
	if err := o.validate(); err != nil {
		return err
	}
	deltas, err := bundle.ValidateMtree(ctx, bundle.ValidateOptions{
		Manifest: o.manifest, Path: o.path, Rootless: o.rootless, UmociKeywords: o.umociKeywords,
		Use: keywordList(o.useKeywords), Add: keywordList(o.addKeywords),
	})
	if err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	for _, line := range deltas {
		fmt.Fprintln(w, line)
	}
	if err := w.Flush(); err != nil || len(deltas) == 0 {
		return err
	}
	return fmt.Errorf("validation failed: %d differences found", len(deltas))
}

func keywordList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}
