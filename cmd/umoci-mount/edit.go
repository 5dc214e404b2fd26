package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/bundle"
)

// changeNote is in the help text of each command that changes a bundle.
const changeNote = `

The bundle may be mounted or not. Ids and paths are those of the image, also where
the mount shows others. For what the kernel refuses a plain user whatever the mount
would say; all else can be done in BUNDLE/rootfs.`

// atLeast asks for positional arguments, of which the last may be repeated.
func atLeast(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usageError{fmt.Errorf("invalid number of positional arguments: expected at least %s", strings.Join(names, " "))}
		}
		for _, a := range args {
			if a == "" {
				return usageError{errors.New("arguments cannot be empty")}
			}
		}
		return nil
	}
}

// applyChanges makes changes in a bundle, and ends with the first that fails.
func applyChanges(ctx context.Context, global *globalOptions, dir string, changes []bundle.Edit) (err error) {
	log, err := global.logger()
	if err != nil {
		return err
	}
	c, err := bundle.OpenEditor(ctx, bundle.Locate(dir), log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for _, ch := range changes {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.Apply(ch); err != nil {
			return err
		}
	}
	return nil
}

type mknodOptions struct {
	global *globalOptions
	mode   string
	owner  string
}

func newMknodCommand(global *globalOptions) *cobra.Command {
	o := &mknodOptions{global: global}
	cmd := &cobra.Command{
		Use:   "mknod BUNDLE PATH TYPE [MAJOR MINOR]",
		Short: "make a device or a fifo in a bundle, as the image's root",
		Long: `Makes PATH in the bundle's tree. TYPE is b (block device), c or u (character device)
or p (fifo). It belongs to the image's root, unless --owner says another.` + changeNote,
		Args: cobra.RangeArgs(3, 5),
		RunE: func(cmd *cobra.Command, args []string) error {
			ch, err := o.change(args[1:])
			if err != nil {
				return usageError{err}
			}
			return applyChanges(cmd.Context(), o.global, args[0], []bundle.Edit{ch})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.mode, "mode", "m", "0666", "permission bits, in octal; no umask is applied")
	f.StringVar(&o.owner, "owner", "", "`USER[:GROUP]` of the image, numbers or names (default 0:0)")
	return cmd
}

// change is what PATH TYPE [MAJOR MINOR] asks for.
func (o *mknodOptions) change(args []string) (ch bundle.Edit, err error) {
	mode, err := strconv.ParseUint(o.mode, 8, 12)
	if err != nil {
		return ch, fmt.Errorf("mode %q: want octal permission bits", o.mode)
	}
	ch = bundle.Edit{Op: bundle.EditMknod, Path: args[0], Mode: uint32(mode), Owner: o.owner}
	types := map[string]uint32{"b": unix.S_IFBLK, "c": unix.S_IFCHR, "u": unix.S_IFCHR, "p": unix.S_IFIFO}
	typ, ok := types[args[1]]
	switch {
	case !ok:
		return ch, fmt.Errorf("type %q: want b, c, u or p", args[1])
	case typ == unix.S_IFIFO && len(args) > 2:
		return ch, errors.New("a fifo has no device number")
	case typ != unix.S_IFIFO && len(args) != 4:
		return ch, errors.New("a device takes MAJOR and MINOR")
	}
	ch.Mode |= typ
	if typ == unix.S_IFIFO {
		return ch, nil
	}
	major, err1 := strconv.ParseUint(args[2], 0, 12)
	minor, err2 := strconv.ParseUint(args[3], 0, 20)
	if err1 != nil || err2 != nil {
		return ch, fmt.Errorf("device %s %s: want numbers below 4096 and 1048576", args[2], args[3])
	}
	ch.Rdev = unix.Mkdev(uint32(major), uint32(minor))
	return ch, nil
}

type chownOptions struct {
	global        *globalOptions
	recursive     bool
	noDereference bool
}

func newChownCommand(global *globalOptions) *cobra.Command {
	o := &chownOptions{global: global}
	cmd := &cobra.Command{
		Use:   "chown BUNDLE [USER][:[GROUP]] PATH...",
		Short: "change owners in a bundle, in the image's ids",
		Long: `Gives each PATH of the bundle's tree another owner, as chown(1) does: numbers, or
names in the image's own /etc/passwd and /etc/group. USER alone leaves the group, and
"USER:" takes the user's own.` + changeNote,
		Args: atLeast("BUNDLE", "OWNER", "PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var changes []bundle.Edit
			for _, p := range args[2:] {
				changes = append(changes, bundle.Edit{
					Op: bundle.EditOwner, Path: p, Owner: args[1],
					Recursive: o.recursive, Follow: !o.noDereference && !o.recursive,
				})
			}
			return applyChanges(cmd.Context(), o.global, args[0], changes)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.recursive, "recursive", "R", false, "everything below directories too; no symlink is followed")
	f.BoolVarP(&o.noDereference, "no-dereference", "h", false, "change a symlink, not what it leads to")
	cmd.Flags().Bool("help", false, "help for chown") // -h is taken
	return cmd
}

type setxattrOptions struct {
	global        *globalOptions
	remove        bool
	noDereference bool
}

func newSetxattrCommand(global *globalOptions) *cobra.Command {
	o := &setxattrOptions{global: global}
	cmd := &cobra.Command{
		Use:   "setxattr BUNDLE NAME VALUE PATH...",
		Short: "set an extended attribute in a bundle, of any namespace",
		Long: `Sets the extended attribute NAME (user.*, security.*, trusted.*) of each PATH of the
bundle's tree. VALUE is text, or 0x and hexadecimal, or 0s and base64, as for
setfattr(1). With --remove there is no VALUE: the attribute is removed.` + changeNote,
		Args: atLeast("BUNDLE", "NAME", "VALUE or PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			changes, err := o.changes(args[1:])
			if err != nil {
				return usageError{err}
			}
			return applyChanges(cmd.Context(), o.global, args[0], changes)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.remove, "remove", false, "remove the attribute")
	f.BoolVar(&o.noDereference, "no-dereference", false, "change a symlink, not what it leads to")
	return cmd
}

// changes are what NAME [VALUE] PATH... asks for.
func (o *setxattrOptions) changes(args []string) ([]bundle.Edit, error) {
	ch := bundle.Edit{Op: bundle.EditRemoveXattr, Name: args[0], Follow: !o.noDereference}
	if space, name, ok := strings.Cut(ch.Name, "."); !ok || name == "" || len(ch.Name) > 255 ||
		space != "user" && space != "security" && space != "trusted" {
		return nil, fmt.Errorf("attribute %q: want user.NAME, security.NAME or trusted.NAME", ch.Name)
	}
	paths := args[1:]
	if !o.remove {
		value, err := parseXattrValue(args[1])
		if err != nil {
			return nil, err
		}
		ch.Op, ch.Value, paths = bundle.EditSetXattr, value, args[2:]
	}
	if len(paths) == 0 {
		return nil, errors.New("no PATH")
	}
	var out []bundle.Edit
	for _, p := range paths {
		ch.Path = p
		out = append(out, ch)
	}
	return out, nil
}

// parseXattrValue reads a value as setfattr(1) writes it, but for quotes.
func parseXattrValue(s string) ([]byte, error) {
	var value []byte
	var err error
	switch {
	case strings.HasPrefix(s, "0x"), strings.HasPrefix(s, "0X"):
		value, err = hex.DecodeString(s[2:])
	case strings.HasPrefix(s, "0s"), strings.HasPrefix(s, "0S"):
		value, err = base64.StdEncoding.DecodeString(s[2:])
	default:
		value = []byte(s)
	}
	if err != nil {
		return nil, fmt.Errorf("value %q: %w", s, err)
	}
	return value, nil
}
