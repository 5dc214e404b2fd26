package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/fusefs"
	"github.com/umoci-mount/umoci-mount/internal/build"
	"github.com/umoci-mount/umoci-mount/internal/bundle"
	"github.com/umoci-mount/umoci-mount/internal/userns"
	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// Exit codes; docs/cli.md has the table. 1 is what umoci gives for everything.
const (
	exitOK         = 0
	exitFailure    = 1  // anything that is not below
	exitUsage      = 2  // wrong flags or arguments
	exitNotFound   = 3  // no such layout, tag, blob or bundle
	exitImage      = 4  // the image is malformed, damaged, or of an unknown type
	exitState      = 5  // already mounted, not mounted, exists, made from another image
	exitBusy       = 6  // in use: mount, layout or bundle
	exitMeans      = 7  // the machine lacks something: /dev/fuse, fusermount3, xattrs
	exitPermission = 8  // not permitted
	exitSpace      = 9  // no space, quota or read-only file system
	exitInterrupt  = 10 // interrupted by a signal
	exitSpec       = 11 // a build's spec is wrong
	exitStep       = 12 // a build's step failed
)

// usageError is an error of the command line itself.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// exitCodes is searched in order: the first error found in the chain counts.
var exitCodes = []struct {
	err  error
	code int
}{
	{context.Canceled, exitInterrupt},
	{build.ErrSpec, exitSpec},
	{build.ErrRuntime, exitMeans},
	{cas.ErrBadTag, exitUsage},
	{bundle.ErrRootTarget, exitUsage},
	{fusefs.ErrNoFuseDevice, exitMeans},
	{fusefs.ErrNoFusermount, exitMeans},
	{fusefs.ErrNotSetuid, exitMeans},
	{fusefs.ErrAllowOther, exitMeans},
	{fusefs.ErrMountMax, exitMeans},
	{fusefs.ErrMayNotMount, exitMeans},
	{overlay.ErrUnsuitable, exitMeans},
	{userns.ErrNoRange, exitMeans},
	{userns.ErrNamespace, exitMeans},
	{bundle.ErrBusy, exitBusy},
	{bundle.ErrInUse, exitBusy},
	{cas.ErrBusy, exitBusy},
	{fusefs.ErrBusyMountpoint, exitBusy},
	{bundle.ErrExists, exitState},
	{bundle.ErrMounted, exitState},
	{bundle.ErrNotMounted, exitState},
	{bundle.ErrOtherImage, exitState},
	{bundle.ErrUnmapped, exitState},
	{bundle.ErrOtherLayout, exitState},
	{cas.ErrExists, exitState},
	{bundle.ErrNotBundle, exitNotFound},
	{cas.ErrTagNotFound, exitNotFound},
	{cas.ErrAmbiguous, exitNotFound},
	{cas.ErrNotLayout, exitNotFound},
	{cas.ErrBlobNotFound, exitImage},
	{cas.ErrDigest, exitImage},
	{cas.ErrMalformed, exitImage},
	{cas.ErrMediaType, exitImage},
	{cas.ErrTooLarge, exitImage},
	{bundle.ErrUser, exitImage},
	{bundle.ErrDamaged, exitImage},
	{layer.ErrDigest, exitImage},
	{layer.ErrDiffID, exitImage},
	{layer.ErrFormat, exitImage},
	{layer.ErrUnsupported, exitImage},
	{unix.ENOSPC, exitSpace},
	{unix.EDQUOT, exitSpace},
	{unix.EROFS, exitSpace},
	{fs.ErrPermission, exitPermission},
	{fs.ErrNotExist, exitNotFound},
	{overlay.ErrNotDir, exitNotFound},
	{overlay.ErrReadOnly, exitSpace},
	{unix.ENOTDIR, exitNotFound},
}

func exitCode(err error) int {
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	if isStepError(err) {
		return exitStep
	}
	var ended programEnd
	if errors.As(err, &ended) && ended.code != 0 {
		return ended.code
	}
	var corrupt *layer.CorruptError
	if errors.As(err, &corrupt) {
		return exitImage
	}
	for _, e := range exitCodes {
		if errors.Is(err, e.err) {
			return e.code
		}
	}
	return exitFailure
}

// explain makes one line of an error, and adds what to do where that is known.
func explain(err error, code int) string {
	s := strings.ReplaceAll(err.Error(), "\n", "; ")
	if code == exitInterrupt {
		s = strings.ReplaceAll(s, context.Canceled.Error(), "interrupted")
	}
	if code == exitUsage {
		s += " (see --help)"
	}
	if _, err := os.Stat("/proc/self"); err != nil && strings.Contains(s, "/proc/self/") {
		s += " (mount /proc: mount -t proc proc /proc)"
	}
	return s
}
