package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// The groups of commands in the help text.
const (
	groupMount  = "mount"
	groupImage  = "image"
	groupLayout = "layout"
)

// groups say which group a command is in; others are listed first.
var groups = map[string]string{
	"mount": groupMount, "unpack": groupMount, "umount": groupMount, "status": groupMount, "diff": groupMount,
	"exec": groupMount, "shell": groupMount,
	"mknod": groupMount, "chown": groupMount, "setxattr": groupMount,
	"repack": groupImage, "new": groupImage, "tag": groupImage, "remove": groupImage, "stat": groupImage,
	"config": groupImage, "insert": groupImage, "cat": groupImage, "tree": groupImage,
	"init": groupLayout, "list": groupLayout, "gc": groupLayout, "fsck": groupLayout,
}

// umociName is what the program is called where it stands for umoci.
const umociName = "umoci"

// renameForUmoci makes the alias "unpack" the name: it is what stands in help texts.
func renameForUmoci(root *cobra.Command) {
	for _, cmd := range root.Commands() {
		if cmd.Name() == "mount" {
			cmd.Use = strings.Replace(cmd.Use, "mount", "unpack", 1)
			cmd.Aliases = []string{"mount"}
		}
	}
}

// setHelp makes the help texts those of umoci in form, which scripts look into, and
// help a command that fails for what there is no help on.
func setHelp(root *cobra.Command) {
	for _, id := range []string{groupMount, groupImage, groupLayout} {
		root.AddGroup(&cobra.Group{ID: id, Title: id})
	}
	for _, cmd := range root.Commands() {
		cmd.GroupID = groups[cmd.Name()]
	}
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { writeHelp(cmd.OutOrStdout(), cmd) })
	root.SetHelpCommand(&cobra.Command{
		Use:     "help [COMMAND]",
		Aliases: []string{"h"},
		Short:   "show what there is, or what a command does",
		Args:    cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usageError{fmt.Errorf("unknown command %q", strings.Join(args, " "))}
			}
			cmd.InitDefaultHelpFlag()
			cmd.InitDefaultVersionFlag()
			return cmd.Help()
		},
	})
}

func writeHelp(w io.Writer, cmd *cobra.Command) {
	fmt.Fprintf(w, "NAME:\n   %s - %s\n\nUSAGE:\n   %s\n", cmd.CommandPath(), cmd.Short, usageLine(cmd))
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(w, "\nALIASES:\n   %s\n", strings.Join(cmd.Aliases, ", "))
	}
	if cmd.Long != "" {
		fmt.Fprintf(w, "\n%s\n", cmd.Long)
	}
	if !cmd.HasParent() {
		fmt.Fprintf(w, "\nVERSION:\n   %s\n", cmd.Version)
	}
	if cmd.HasAvailableSubCommands() {
		writeCommands(w, cmd)
	}
	title := "OPTIONS"
	if !cmd.HasParent() {
		title = "GLOBAL OPTIONS"
	}
	if flags := cmd.LocalFlags().FlagUsages(); flags != "" {
		fmt.Fprintf(w, "\n%s:\n%s", title, flags)
	}
	if flags := cmd.InheritedFlags().FlagUsages(); flags != "" {
		fmt.Fprintf(w, "\nGLOBAL OPTIONS:\n%s", flags)
	}
}

func usageLine(cmd *cobra.Command) string {
	if cmd.HasAvailableSubCommands() {
		return cmd.CommandPath() + " [OPTION]... COMMAND [OPTION]... [ARGUMENT]..."
	}
	return cmd.UseLine()
}

func writeCommands(w io.Writer, cmd *cobra.Command) {
	t := tabwriter.NewWriter(w, 0, 2, 2, ' ', 0)
	fmt.Fprint(t, "\nCOMMANDS:\n")
	for _, group := range []string{"", groupMount, groupImage, groupLayout} {
		indent := "   "
		var lines []string
		for _, c := range cmd.Commands() {
			if c.GroupID == group && (c.IsAvailableCommand() || c.Name() == "help") {
				lines = append(lines, strings.Join(slices.Concat([]string{c.Name()}, c.Aliases), ", ")+"\t"+c.Short)
			}
		}
		if group != "" && len(lines) > 0 {
			fmt.Fprintf(t, "\n   %s:\n", group)
			indent += "  "
		}
		for _, line := range lines {
			fmt.Fprintln(t, indent+line)
		}
	}
	_ = t.Flush() // as with every write here: nobody reads the help then
}
