// Command act makes system calls that no program of busybox makes, and prints how they
// went.
package main

import (
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	for args := os.Args[1:]; len(args) > 0; {
		n, err := act(args)
		if err != nil {
			fmt.Printf("%s: %v\n", args[0], err)
		}
		args = args[n:]
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

// act makes the first call of args, and says how many of them were the call's.
func act(args []string) (int, error) {
	open := func() int {
		fd, err := unix.Open(args[1], unix.O_RDONLY, 0)
		if err != nil {
			fmt.Println("open:", err)
		}
		return fd
	}
	switch args[0] {
	case "setxattr":
		return 4, unix.Setxattr(args[1], args[2], []byte(args[3]), 0)
	case "lsetxattr":
		return 4, unix.Lsetxattr(args[1], args[2], []byte(args[3]), 0)
	case "fsetxattr":
		return 4, unix.Fsetxattr(open(), args[2], []byte(args[3]), 0)
	case "createxattr":
		return 4, unix.Setxattr(args[1], args[2], []byte(args[3]), unix.XATTR_CREATE)
	case "removexattr":
		return 3, unix.Removexattr(args[1], args[2])
	case "fremovexattr":
		return 3, unix.Fremovexattr(open(), args[2])
	case "chown":
		return 4, unix.Chown(args[1], number(args[2]), number(args[3]))
	case "fchown":
		return 4, unix.Fchown(open(), number(args[2]), number(args[3]))
	case "fchownat": // of an open descriptor, with no path
		return 4, unix.Fchownat(open(), "", number(args[2]), number(args[3]), unix.AT_EMPTY_PATH)
	case "fchownat-below": // of a path below the open file
		return 4, unix.Fchownat(open(), "x", number(args[2]), number(args[3]), 0)
	case "fchown-removed":
		fd := open()
		if err := unix.Unlink(args[1]); err != nil {
			return 4, err
		}
		return 4, unix.Fchown(fd, number(args[2]), number(args[3]))
	case "mknod":
		return 5, unix.Mknod(args[1], unix.S_IFCHR|0o640, int(unix.Mkdev(uint32(number(args[2])), uint32(number(args[3])))))
	case "umask":
		unix.Umask(number(args[1]))
		return 2, nil
	case "bad-address":
		_, _, errno := unix.Syscall(unix.SYS_FCHOWNAT, ^uintptr(99), 1, 5)
		return 1, errno
	case "become": // UID GID: as a service drops root's privileges, in all threads
		id, group := number(args[1]), number(args[2])
		for _, err := range []error{
			syscall.Setgroups([]int{group, group + 1}), syscall.Setresgid(group, group, group), syscall.Setresuid(id, id, id),
		} {
			if err != nil {
				return 3, err
			}
		}
		return 3, nil
	case "setuid":
		return 2, syscall.Setuid(number(args[1]))
	case "setgid":
		return 2, syscall.Setgid(number(args[1]))
	case "seteuid":
		return 2, syscall.Setreuid(-1, number(args[1]))
	case "touch":
		fd, err := unix.Open(args[1], unix.O_CREAT|unix.O_WRONLY, 0o644)
		if err == nil {
			err = unix.Close(fd)
		}
		return 2, err
	case "ids":
		return 1, ids()
	}
	return len(args), fmt.Errorf("unknown call %q", args[0])
}

// ids prints what the process, in several threads, takes itself for.
func ids() error {
	var r, e, s, gr, ge, gs int
	type raw = [3]uint32
	var u, g raw
	if _, _, errno := unix.Syscall(unix.SYS_GETRESUID, ptr(&u[0]), ptr(&u[1]), ptr(&u[2])); errno != 0 {
		return errno
	}
	if _, _, errno := unix.Syscall(unix.SYS_GETRESGID, ptr(&g[0]), ptr(&g[1]), ptr(&g[2])); errno != 0 {
		return errno
	}
	r, e, s, gr, ge, gs = int(u[0]), int(u[1]), int(u[2]), int(g[0]), int(g[1]), int(g[2])
	groups, err := unix.Getgroups()
	if err != nil {
		return err
	}
	fmt.Println("uid", r, e, s, "gid", gr, ge, gs, "groups", groups, "get", unix.Getuid(), unix.Geteuid(), unix.Getgid(), unix.Getegid())
	return nil
}
