package notify

import "golang.org/x/sys/unix"

const sysFstatat = unix.SYS_NEWFSTATAT

// archCalls are those that newer architectures do without. (The x32 form of a call has
// another number and goes on to the kernel.)
var archCalls = map[int32]handler{
	unix.SYS_STAT:   {SetOneID, func(c *call) answer { return c.stat(c.path(0, true), 1) }},
	unix.SYS_LSTAT:  {SetOneID, func(c *call) answer { return c.stat(c.path(0, false), 1) }},
	unix.SYS_CHOWN:  {SetOneID, func(c *call) answer { return c.chown(c.path(0, true), 1) }},
	unix.SYS_LCHOWN: {SetOneID, func(c *call) answer { return c.chown(c.path(0, false), 1) }},
	unix.SYS_MKNOD:  {SetDevices, func(c *call) answer { return c.mknod(c.parent(unix.AT_FDCWD, 0), 1) }},
}
