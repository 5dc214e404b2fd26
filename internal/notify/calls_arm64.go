package notify

import "golang.org/x/sys/unix"

const sysFstatat = unix.SYS_FSTATAT

var archCalls = map[int32]handler{}
