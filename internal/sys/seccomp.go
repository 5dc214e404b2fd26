package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SeccompData is struct seccomp_data (linux/seccomp.h).
type SeccompData struct {
	Nr   int32 // of the system call
	Arch uint32
	IP   uint64
	Args [6]uint64
}

// Offsets in struct seccomp_data, from where a filter loads.
const (
	FilterNr   = 0
	FilterArch = 4
	FilterArg0 = 16 // the low half, on a machine that puts it first
)

// FilterLoad, FilterEqual and FilterReturn are the instructions that filters are made of
// (struct sock_filter): load a word of struct seccomp_data, skip as many instructions as
// yes or no says after comparing it, and end with an action (SECCOMP_RET_*).
func FilterLoad(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

// FilterEqual compares with k: see FilterLoad.
func FilterEqual(k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: yes, Jf: no, K: k}
}

// FilterReturn ends a filter: see FilterLoad.
func FilterReturn(action uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
}

// AuditArch is the kernel's name of this machine's architecture (linux/audit.h); 0 where
// no filter is known for it.
func AuditArch() uint32 { return auditArchs[runtime.GOARCH] }

var auditArchs = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// SeccompNotif is struct seccomp_notif: one system call that waits for its answer.
type SeccompNotif struct {
	ID    uint64
	PID   uint32 // of the thread, in the reader's pid namespace
	Flags uint32
	Data  SeccompData
}

// SeccompResp is struct seccomp_notif_resp.
type SeccompResp struct {
	ID    uint64
	Val   int64 // what the call returns, where Error is 0
	Error int32 // a negative errno
	Flags uint32
}

// ListenSeccomp puts a filter on the calling thread and on what it executes, and
// returns the descriptor on which the calls come for which the filter says
// SECCOMP_RET_USER_NOTIF. It takes CAP_SYS_ADMIN in the thread's user namespace. The
// caller has locked its goroutine to the thread.
func ListenSeccomp(filter []unix.SockFilter) (*os.File, error) {
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// Once the supervisor works on a call, a signal that does not kill waits: else the
	// call would be made a second time (Linux 5.19).
	for _, flags := range []uintptr{
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
	} {
		fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
		if errno == 0 {
			runtime.KeepAlive(filter)
			return os.NewFile(fd, "seccomp listener"), nil
		}
		if errors.Is(errno, unix.EBUSY) { // has_duplicate_listener in kernel/seccomp.c
			return nil, fmt.Errorf("install seccomp filter: another supervisor is there already, as inside exec: %w", errno)
		}
		if !errors.Is(errno, unix.EINVAL) {
			return nil, fmt.Errorf("install seccomp filter: %w", errno)
		}
	}
	return nil, fmt.Errorf("install seccomp filter: %w", unix.EINVAL)
}

// ReceiveSeccomp waits for a call. ENOENT: it was interrupted before it was read.
func ReceiveSeccomp(fd int, n *SeccompNotif) error {
	*n = SeccompNotif{} // the kernel refuses anything else
	return seccompIoctl(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(n))
}

// AnswerSeccomp answers a call. ENOENT: nobody waits for it any more.
func AnswerSeccomp(fd int, r *SeccompResp) error {
	return seccompIoctl(fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(r))
}

// HurrySeccomp lets caller and supervisor take turns on one processor, which makes each
// call some microseconds shorter; where the kernel cannot (before Linux 6.6), they do not.
func HurrySeccomp(fd int) {
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SET_FLAGS, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
}

// SeccompWaits reports whether a call still waits for its answer: then its PID has
// been that of the caller all the time.
func SeccompWaits(fd int, id uint64) bool {
	return seccompIoctl(fd, unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&id)) == nil
}

func seccompIoctl(fd int, request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
