package notify

import (
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// Set says which calls come to the supervisor.
type Set int

const (
	// SetDevices are those that no user namespace allows: devices, trusted.*.
	SetDevices Set = iota
	// SetOneID are also those that take more ids than one.
	SetOneID
)

// Supported reports whether there is a filter for this machine's architecture.
func Supported() bool { return sys.AuditArch() != 0 }

// Filter assembles the program for the kernel (struct sock_filter). Calls of another
// architecture (32-bit programs) go on to the kernel.
//
//	ld  arch
//	jeq AuditArch, 1, 0
//	ret ALLOW
//	ld  nr
//	jeq NUMBER, 0, 1    for each call
//	ret USER_NOTIF
//	ret ALLOW
func Filter(set Set) []unix.SockFilter {
	tell, allow := sys.FilterReturn(unix.SECCOMP_RET_USER_NOTIF), sys.FilterReturn(unix.SECCOMP_RET_ALLOW)
	out := []unix.SockFilter{
		sys.FilterLoad(sys.FilterArch),
		sys.FilterEqual(sys.AuditArch(), 1, 0),
		allow,
		sys.FilterLoad(sys.FilterNr),
	}
	for nr, c := range calls {
		if c.set <= set && nr != unix.SYS_PRCTL {
			out = append(out, sys.FilterEqual(uint32(nr), 0, 1), tell)
		}
	}
	if set >= SetOneID {
		out = append(out,
			sys.FilterEqual(unix.SYS_PRCTL, 0, 4),
			sys.FilterLoad(sys.FilterArg0),
			sys.FilterEqual(unix.PR_SET_KEEPCAPS, 0, 1),
			tell, allow)
	}
	return append(out, allow)
}

// handler answers one kind of call.
type handler struct {
	set Set
	do  func(*call) answer
}

// calls are the system calls that the supervisor knows, by their numbers.
var calls = func() map[int32]handler {
	all := map[int32]handler{
		unix.SYS_FCHOWN:        {SetOneID, func(c *call) answer { return c.chown(c.fd(0), 1) }},
		unix.SYS_FCHOWNAT:      {SetOneID, func(c *call) answer { return c.chown(c.at(0, 1, c.int(4)), 2) }},
		unix.SYS_MKNODAT:       {SetDevices, func(c *call) answer { return c.mknod(c.parent(c.int(0), 1), 2) }},
		unix.SYS_SETXATTR:      {SetDevices, func(c *call) answer { return c.setxattr(c.path(0, true)) }},
		unix.SYS_LSETXATTR:     {SetDevices, func(c *call) answer { return c.setxattr(c.path(0, false)) }},
		unix.SYS_FSETXATTR:     {SetDevices, func(c *call) answer { return c.setxattr(c.fd(0)) }},
		unix.SYS_REMOVEXATTR:   {SetDevices, func(c *call) answer { return c.removexattr(c.path(0, true), 1) }},
		unix.SYS_LREMOVEXATTR:  {SetDevices, func(c *call) answer { return c.removexattr(c.path(0, false), 1) }},
		unix.SYS_FREMOVEXATTR:  {SetDevices, func(c *call) answer { return c.removexattr(c.fd(0), 1) }},
		unix.SYS_SETXATTRAT:    {SetDevices, func(c *call) answer { return c.setxattrat(c.at(0, 1, c.int(2))) }},
		unix.SYS_REMOVEXATTRAT: {SetDevices, func(c *call) answer { return c.removexattr(c.at(0, 1, c.int(2)), 3) }},

		unix.SYS_FSTAT:      {SetOneID, func(c *call) answer { return c.stat(c.fd(0), 1) }},
		sysFstatat:          {SetOneID, func(c *call) answer { return c.stat(c.at(0, 1, c.int(3)&^statFlags), 2) }},
		unix.SYS_STATX:      {SetOneID, func(c *call) answer { return c.statx(c.at(0, 1, c.int(2)&^statFlags)) }},
		unix.SYS_SETUID:     {SetOneID, (*call).setuid},
		unix.SYS_SETGID:     {SetOneID, (*call).setgid},
		unix.SYS_SETREUID:   {SetOneID, (*call).setreuid},
		unix.SYS_SETREGID:   {SetOneID, (*call).setregid},
		unix.SYS_SETRESUID:  {SetOneID, (*call).setresuid},
		unix.SYS_SETRESGID:  {SetOneID, (*call).setresgid},
		unix.SYS_SETFSUID:   {SetOneID, (*call).setfsuid},
		unix.SYS_SETFSGID:   {SetOneID, (*call).setfsgid},
		unix.SYS_SETGROUPS:  {SetOneID, (*call).setgroups},
		unix.SYS_GETUID:     {SetOneID, func(c *call) answer { return value(c.ids().uid.real) }},
		unix.SYS_GETEUID:    {SetOneID, func(c *call) answer { return value(c.ids().uid.effective) }},
		unix.SYS_GETGID:     {SetOneID, func(c *call) answer { return value(c.ids().gid.real) }},
		unix.SYS_GETEGID:    {SetOneID, func(c *call) answer { return value(c.ids().gid.effective) }},
		unix.SYS_GETRESUID:  {SetOneID, func(c *call) answer { return c.getres(c.ids().uid) }},
		unix.SYS_GETRESGID:  {SetOneID, func(c *call) answer { return c.getres(c.ids().gid) }},
		unix.SYS_GETGROUPS:  {SetOneID, (*call).getgroups},
		unix.SYS_EXIT_GROUP: {SetOneID, (*call).exit},
		unix.SYS_CAPSET:     {SetOneID, (*call).capset},
		unix.SYS_PRCTL:      {SetOneID, (*call).keepCaps}, // PR_SET_KEEPCAPS alone
	}
	for nr, h := range archCalls {
		all[nr] = h
	}
	return all
}()
