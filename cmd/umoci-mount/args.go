package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// longFlags gives flags with a name a second dash where they have one: umoci takes
// "-image" for "--image". What is the value of another flag, what follows "--", and what
// is a program's is left as it is.
func longFlags(root *cobra.Command, args []string) []string {
	cmd, _, err := root.Find(args)
	if err != nil {
		return args // which is reported when they are parsed
	}
	cmd.InitDefaultHelpFlag()
	lookup := func(name string) *pflag.Flag {
		if f := cmd.Flags().Lookup(name); f != nil {
			return f
		}
		return cmd.InheritedFlags().Lookup(name)
	}
	words := 0 // that are no flags
	out := make([]string, 0, len(args))
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if !strings.HasPrefix(arg, "-") {
			words++
		}
		if arg == "--" || words > 1 && cmd.Annotations[programAnnotation] != "" {
			return append(out, args[i:]...)
		}
		var flag *pflag.Flag
		name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		switch {
		case strings.HasPrefix(arg, "--"):
			flag = lookup(name)
		case strings.HasPrefix(arg, "-") && len(name) == 1:
			flag = cmd.Flags().ShorthandLookup(name)
		case strings.HasPrefix(arg, "-") && name != "":
			if flag = lookup(name); flag != nil {
				arg = "-" + arg
			}
		}
		out = append(out, arg)
		if flag != nil && flag.NoOptDefVal == "" && !hasValue && i+1 < len(args) {
			i++
			out = append(out, args[i])
		}
	}
	return out
}
