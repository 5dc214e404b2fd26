package fusefs

import (
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Options of a mount.
type Options struct {
	// AllowOther lets other users than the one who mounts in.
	AllowOther bool
	// ReadOnly makes the kernel refuse changes (EROFS) before they come here.
	ReadOnly bool
	// FSName is the first column of mount tables; empty: umoci-mount.
	FSName string
	// Log is told of failures that no caller sees. May be nil.
	Log *slog.Logger
	// Debug logs every request and reply.
	Debug bool
	// DirectMount mounts with fsmount(2), which takes root (of a user namespace
	// too), and lets set-id programs and devices work. Else fusermount3 mounts.
	DirectMount bool
	// Untrusted has set-id programs and devices not work in a direct mount either.
	Untrusted bool
	// On is the directory that is mounted on directly, open; nil: what the path of the
	// mountpoint leads to. Where that is another: ErrReplaced.
	On *os.File
	// Passthrough lets the kernel read and write upper files by itself, where it
	// can: root of the first user namespace, Linux 6.9.
	Passthrough bool
	// MaxWrite is the longest READ and WRITE in bytes; 0: 1 MiB, the most that
	// kernels take.
	MaxWrite int
	// Sleepy leaves idle processors to sleep as they do while requests come in quick
	// succession. Without it root's server keeps them awake meanwhile.
	Sleepy bool
	// DefaultPermissions makes the kernel check modes and ACLs. Without it whoever
	// can reach the mount can do anything in it.
	DefaultPermissions bool
}

// subtype makes the type in mount tables fuse.umoci-mount.
const subtype = "umoci-mount"

const (
	defaultMaxWrite = 1 << 20

	// maxReadAhead is cut to what the kernel offers.
	maxReadAhead = 1 << 20

	// maxBackground is how many requests with nobody waiting (read-ahead, write-back
	// of mappings, RELEASE) the kernel may have open. Its own 12 keeps two cores idle.
	maxBackground = 128
)

// extraCapabilities are asked for beyond go-fuse's own; docs/fuse.md says why
// each, and why not the others.
const extraCapabilities = fuse.CAP_ATOMIC_O_TRUNC |
	fuse.CAP_DONT_MASK |
	fuse.CAP_HANDLE_KILLPRIV_V2 |
	fuse.CAP_SETXATTR_EXT |
	fuse.CAP_PARALLEL_DIROPS |
	fuse.CAP_NO_EXPORT_SUPPORT

// maxWrite is MaxWrite, or the most in its place.
func (opt *Options) maxWrite() int {
	if opt.MaxWrite <= 0 {
		return defaultMaxWrite
	}
	return opt.MaxWrite
}

// mountWords are the options of the mount itself, as mount(2) takes them behind those
// that every FUSE mount has (fuse_fs_parameters in fs/fuse/inode.c).
func (opt *Options) mountWords() []string {
	words := []string{"max_read=" + strconv.Itoa(opt.maxWrite())}
	if opt.DefaultPermissions {
		words = append(words, "default_permissions")
	}
	if opt.AllowOther {
		words = append(words, "allow_other")
	}
	return words
}

// fsName is FSName, or the default.
func (opt *Options) fsName() string {
	if opt.FSName == "" {
		return subtype
	}
	return opt.FSName
}

// protocolOptions is what go-fuse answers INIT with, and how it handles requests. The
// logger must be set.
func (opt *Options) protocolOptions() *fuse.MountOptions {
	level := slog.LevelWarn
	if opt.Debug {
		level = slog.LevelDebug
	}
	mo := &fuse.MountOptions{
		Debug:  opt.Debug,
		Logger: slog.NewLogLogger(opt.Log.Handler(), level),

		MaxWrite:      opt.maxWrite(),
		MaxReadAhead:  maxReadAhead,
		MaxBackground: maxBackground,

		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		EnableAcl:                opt.DefaultPermissions,
		ExtraCapabilities:        extraCapabilities,
		PanicHandler:             opt.onPanic,
	}
	if !opt.Passthrough {
		// Not to be stacked upon costs one level that a file system above may want.
		// And where opens are not asked for, O_TRUNC is a SETATTR (fuse_setattr).
		mo.DisabledCapabilities |= fuse.CAP_PASSTHROUGH | fuse.CAP_ATOMIC_O_TRUNC
	}
	return mo
}

// onPanic keeps the server alive: the request that met the fault fails alone.
func (opt *Options) onPanic(fault any) fuse.Status {
	opt.Log.Error("request handler panicked", slog.String("fault", fmt.Sprint(fault)), slog.String("stack", string(debug.Stack())))
	return fuse.EIO
}
