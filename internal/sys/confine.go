package sys

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoFilter is of machines whose system call numbers are not known here.
var ErrNoFilter = errors.New("no system call filter for this architecture")

// x32Calls are numbers of amd64's second set of calls (__X32_SYSCALL_BIT).
const x32Calls = 0x40000000

// refusedCalls start programs, look into other processes, change what is mounted where,
// talk to others, or change the kernel. Who only serves files has no use for them.
var refusedCalls = []uint32{
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD,
	unix.SYS_MOUNT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_FSOPEN, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_OPEN_BY_HANDLE_AT,
	unix.SYS_SOCKET, unix.SYS_CONNECT, unix.SYS_BIND,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP,
	unix.SYS_KEXEC_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_REBOOT,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_QUOTACTL, unix.SYS_ACCT, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
	unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_SYSLOG,
}

// Confine has the kernel refuse (EPERM) to all threads of this process, for good, what
// a server of files has no use for (seccomp(2), SECCOMP_FILTER_FLAG_TSYNC). It takes
// no_new_privs or CAP_SYS_ADMIN.
func Confine() error {
	arch := AuditArch()
	if arch == 0 {
		return ErrNoFilter
	}
	filter := confinement(arch)
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("install seccomp filter: %w", errno)
	}
	return nil
}

// confinement assembles the filter (struct sock_filter).
//
//	ld  arch
//	jeq ARCH, 1, 0
//	ret ERRNO(EPERM)
//	ld  nr
//	jge x32Calls, 0, 1
//	ret ERRNO(EPERM)
//	jeq NUMBER, 0, 1    for each call
//	ret ERRNO(EPERM)
//	ret ALLOW
func confinement(arch uint32) []unix.SockFilter {
	refuse := FilterReturn(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM))
	out := []unix.SockFilter{
		FilterLoad(FilterArch),
		FilterEqual(arch, 1, 0),
		refuse,
		FilterLoad(FilterNr),
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jf: 1, K: x32Calls},
		refuse,
	}
	for _, nr := range refusedCalls {
		out = append(out, FilterEqual(nr, 0, 1), refuse)
	}
	return append(out, FilterReturn(unix.SECCOMP_RET_ALLOW))
}
