package fusefs

import "errors"

// Mounting. Each is wrapped with the path or option it is about.
var (
	// ErrNoFuseDevice: /dev/fuse is missing or may not be opened.
	ErrNoFuseDevice = errors.New("no usable /dev/fuse: load the fuse kernel module and make the device readable and writable")
	// ErrNoFusermount: the helper a plain user mounts with is not installed.
	ErrNoFusermount = errors.New("fusermount3 not found: install the fuse3 package")
	// ErrNotSetuid: the helper is there and cannot mount.
	ErrNotSetuid = errors.New("fusermount3 is not setuid root: reinstall the fuse3 package")
	// ErrAllowOther: /etc/fuse.conf does not let plain users share their mounts.
	ErrAllowOther = errors.New("allow_other is not permitted: add user_allow_other to /etc/fuse.conf")
	// ErrMountMax: plain users have as many FUSE mounts as /etc/fuse.conf lets them.
	ErrMountMax = errors.New("too many FUSE mounts: unmount some, or raise mount_max in /etc/fuse.conf")
	// ErrMayNotMount: root without the capability to mount, as in most containers.
	ErrMayNotMount = errors.New("mounting takes CAP_SYS_ADMIN (without it: mount --no-mount and exec, or unpack --extract)")
	// ErrNotDirectory: the mountpoint is something else.
	ErrNotDirectory = errors.New("mountpoint is not a directory")
	// ErrBusyMountpoint: something is mounted there, or, when unmounting, used.
	ErrBusyMountpoint = errors.New("mountpoint is in use")
	// ErrReplaced: the path of the mountpoint led elsewhere while it was mounted on.
	ErrReplaced = errors.New("the directory was replaced meanwhile")
	// ErrDeadMount: a FUSE mount is there whose server has ended.
	ErrDeadMount = errors.New("a mount whose server has ended is there: unmount it first")
)
