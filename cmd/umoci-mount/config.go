package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/internal/imageconfig"
)

type configOptions struct {
	image    imageFlag
	platform platformFlag
	tag      tagFlag
	history  historyFlags
	edit     imageconfig.Edit
	created  string
	// strings are the flags of one value, which count where they are given.
	strings map[string]*string
}

func newConfigCommand() *cobra.Command {
	o := &configOptions{strings: map[string]*string{}}
	cmd := &cobra.Command{
		Use:   "config --image LAYOUT[:TAG] [--tag TAG]",
		Short: "change an image's configuration",
		Long: `Changes what an image says of itself, and adds an entry to its history. No layer is
read or written. --clear comes before all other changes. The flags for lists and sets
can be repeated; --config.entrypoint and --config.cmd replace the whole list.`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), cmd.Flags()) },
	}
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *configOptions) addFlags(f *pflag.FlagSet) {
	o.image.add(f, "image to change")
	o.platform.add(f)
	o.tag.add(f)
	o.history.add(f, imageAuthor)
	one := func(name, usage string) {
		o.strings[name] = new(string)
		f.StringVar(o.strings[name], name, "", usage)
	}
	list := func(to *[]string, name, usage string) { f.StringArrayVar(to, name, nil, usage+" (repeatable)") }
	one("config.user", "user, and perhaps group, of the process: `USER[:GROUP]`")
	list(&o.edit.ExposedPorts, "config.exposedports", "add a port: `PORT[/PROTOCOL]`")
	list(&o.edit.Env, "config.env", "set an environment variable: `NAME=VALUE`")
	list(&o.edit.Entrypoint, "config.entrypoint", "an `ARGUMENT` of the entrypoint")
	list(&o.edit.Cmd, "config.cmd", "an `ARGUMENT` of the command")
	list(&o.edit.Volumes, "config.volume", "add a volume: `PATH`")
	list(&o.edit.Labels, "config.label", "set a label: `NAME=VALUE`")
	one("config.workingdir", "working `DIRECTORY` of the process")
	one("config.stopsignal", "`SIGNAL` that ends the process")
	f.StringVar(&o.created, "created", "", "creation `time` of the image, as RFC 3339")
	one("author", "author of the image")
	one("platform.os", "operating system that the image is for")
	one("os", "the same as --platform.os")
	one("platform.arch", "architecture that the image is for")
	one("architecture", "the same as --platform.arch")
	one("platform.variant", "variant of the architecture")
	list(&o.edit.Annotations, "manifest.annotation", "set an annotation of the manifest: `NAME=VALUE`")
	list(&o.edit.Clear, "clear", "clear a `KEY`: config.cmd, config.entrypoint, config.env, config.exposedports, config.labels, config.volume or manifest.annotations")
}

// given is a flag's value; nil where it was not given.
func (o *configOptions) given(f *pflag.FlagSet, names ...string) *string {
	for _, name := range names {
		if f.Changed(name) {
			return o.strings[name]
		}
	}
	return nil
}

func (o *configOptions) run(ctx context.Context, f *pflag.FlagSet) error {
	path, tag, err := o.image.parse()
	if err != nil {
		return err
	}
	to, err := o.tag.or(f, tag)
	if err != nil {
		return err
	}
	history, err := o.history.parse()
	if err != nil {
		return err
	}
	if f.Changed("created") {
		if o.edit.Created, err = parseTime("--created", o.created); err != nil {
			return err
		}
	}
	platform, err := o.platform.parse()
	if err != nil {
		return err
	}
	e := &o.edit
	e.User, e.WorkingDir, e.StopSignal = o.given(f, "config.user"), o.given(f, "config.workingdir"), o.given(f, "config.stopsignal")
	e.Author, e.OS = o.given(f, "author"), o.given(f, "platform.os", "os")
	e.Architecture, e.Variant = o.given(f, "platform.arch", "architecture"), o.given(f, "platform.variant")
	if err := e.Check(); err != nil {
		return usageError{err}
	}
	return changeLayout(ctx, path, func(l *cas.Layout) error {
		from, err := l.Resolve(ctx, tag, cas.ResolveOptions{Platform: platform})
		if err != nil {
			return err
		}
		img, err := l.Image(ctx, from)
		if err != nil {
			return fmt.Errorf("%s:%s: %w", path, tag, err)
		}
		author := img.Config.Author
		if e.Author != nil {
			author = *e.Author
		}
		made, err := l.Commit(ctx, img, cas.Change{Edit: e.Apply, History: history.Entry("umoci config", author, true)})
		if err != nil {
			return err
		}
		return l.Tag(ctx, to, made)
	})
}
