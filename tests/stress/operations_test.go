package stress

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// operations are what a script can name. Those on a slot do it on an open file.
var operations = map[string]func(w *worker, o op) (string, error){
	"open":      (*worker).open,
	"close":     (*worker).close,
	"read":      (*worker).read,
	"pread":     (*worker).pread,
	"write":     (*worker).write,
	"pwrite":    (*worker).pwrite,
	"append":    (*worker).append,
	"seek":      (*worker).seek,
	"list":      (*worker).list,
	"mapwrite":  (*worker).mapWrite,
	"mapread":   (*worker).mapRead,
	"copy":      (*worker).copy,
	"sendfile":  (*worker).sendfile,
	"lock":      (*worker).lock,
	"fallocate": (*worker).fallocate,
	"same":      (*worker).same,
	"dup":       (*worker).dup,
	"readfile":  (*worker).readFile,
	"writefile": (*worker).writeFile,
	"readdir":   (*worker).readdir,
	"linkopen":  (*worker).linkOpen,

	"ftruncate": func(w *worker, o op) (string, error) { return nothing(unix.Ftruncate(w.slot(o), o.N)) },
	"fsync":     func(w *worker, o op) (string, error) { return nothing(unix.Fsync(w.slot(o))) },
	"fchmod":    func(w *worker, o op) (string, error) { return nothing(unix.Fchmod(w.slot(o), uint32(o.N))) },
	"fchown":    func(w *worker, o op) (string, error) { return nothing(unix.Fchown(w.slot(o), int(o.N), int(o.Off))) },
	"flock": func(w *worker, o op) (string, error) {
		return nothing(unix.Flock(w.slot(o), []int{unix.LOCK_SH, unix.LOCK_EX, unix.LOCK_UN}[o.N]|unix.LOCK_NB))
	},
	"fstat": func(w *worker, o op) (string, error) {
		var st unix.Stat_t
		err := unix.Fstat(w.slot(o), &st)
		return w.stat(&st), err
	},
	"futimens": func(w *worker, o op) (string, error) {
		ts := []unix.Timespec{{Sec: o.N, Nsec: 5}, {Sec: o.N + 1, Nsec: 123456789}}
		return nothing(unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", w.slot(o)), ts, 0))
	},
	"statfs": func(_ *worker, o op) (string, error) {
		var st unix.Statfs_t
		err := unix.Statfs(o.A, &st)
		return fmt.Sprint(st.Namelen), err
	},

	"mkdir":  func(_ *worker, o op) (string, error) { return nothing(unix.Mkdir(o.A, uint32(o.N))) },
	"rmdir":  func(_ *worker, o op) (string, error) { return nothing(unix.Rmdir(o.A)) },
	"unlink": func(_ *worker, o op) (string, error) { return nothing(unix.Unlink(o.A)) },
	"mkfifo": func(_ *worker, o op) (string, error) { return nothing(unix.Mkfifo(o.A, uint32(o.N))) },
	"mknod": func(_ *worker, o op) (string, error) {
		return nothing(unix.Mknod(o.A, unix.S_IFCHR|uint32(o.N), 0x103))
	},
	"symlink":  func(_ *worker, o op) (string, error) { return nothing(unix.Symlink(o.B, o.A)) },
	"link":     func(_ *worker, o op) (string, error) { return nothing(unix.Link(o.A, o.B)) },
	"truncate": func(_ *worker, o op) (string, error) { return nothing(unix.Truncate(o.A, o.N)) },
	"chmod":    func(_ *worker, o op) (string, error) { return nothing(unix.Chmod(o.A, uint32(o.N))) },
	"chown":    func(_ *worker, o op) (string, error) { return nothing(unix.Chown(o.A, int(o.N), int(o.Off))) },
	"lchown":   func(_ *worker, o op) (string, error) { return nothing(unix.Lchown(o.A, int(o.N), int(o.Off))) },
	"access":   func(_ *worker, o op) (string, error) { return nothing(unix.Access(o.A, uint32(o.N))) },
	"chdir":    func(_ *worker, o op) (string, error) { return nothing(unix.Chdir(o.A)) },
	"umask":    func(_ *worker, o op) (string, error) { return fmt.Sprintf("%o", unix.Umask(int(o.N&0o77))), nil },
	"drop":     func(_ *worker, o op) (string, error) { return nothing(dropPages(o.A)) },
	"rename":   renameWith(0), "exchange": renameWith(unix.RENAME_EXCHANGE), "noreplace": renameWith(unix.RENAME_NOREPLACE),
	"utimens": func(_ *worker, o op) (string, error) {
		ts := []unix.Timespec{{Sec: o.N, Nsec: 7}, {Sec: o.N + 2, Nsec: 987654321}}
		return nothing(unix.UtimesNanoAt(unix.AT_FDCWD, o.A, ts, unix.AT_SYMLINK_NOFOLLOW))
	},
	"readlink": func(_ *worker, o op) (string, error) { return os.Readlink(o.A) },
	"stat": func(w *worker, o op) (string, error) {
		var st unix.Stat_t
		err := unix.Stat(o.A, &st)
		return w.stat(&st), err
	},
	"lstat": func(w *worker, o op) (string, error) {
		var st unix.Stat_t
		err := unix.Lstat(o.A, &st)
		return w.stat(&st), err
	},

	"setxattr": func(_ *worker, o op) (string, error) {
		return nothing(unix.Lsetxattr(o.A, o.B, []byte(o.Data), int(o.N)))
	},
	"getxattr": func(_ *worker, o op) (string, error) {
		buf := make([]byte, 65536)
		n, err := unix.Lgetxattr(o.A, o.B, buf)
		return fmt.Sprintf("%q", buf[:max(n, 0)]), err
	},
	"listxattr": func(_ *worker, o op) (string, error) {
		buf := make([]byte, 65536)
		n, err := unix.Llistxattr(o.A, buf)
		return names(buf[:max(n, 0)]), err
	},
	"removexattr": func(_ *worker, o op) (string, error) { return nothing(unix.Lremovexattr(o.A, o.B)) },
	"setacl": func(_ *worker, o op) (string, error) {
		return nothing(unix.Setxattr(o.A, "system.posix_acl_"+o.B, acl(o.N), 0))
	},
}

// dropPages takes a file's pages out of the kernel's cache.
func dropPages(p string) error {
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_ = unix.Fdatasync(fd) // of what has no data: EINVAL
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	return nil
}

func renameWith(flags uint) func(*worker, op) (string, error) {
	return func(_ *worker, o op) (string, error) {
		return nothing(unix.Renameat2(unix.AT_FDCWD, o.A, unix.AT_FDCWD, o.B, flags))
	}
}

func (w *worker) open(o op) (string, error) {
	fd, err := unix.Open(o.A, int(o.N)|unix.O_NONBLOCK|unix.O_CLOEXEC, uint32(o.Off))
	if err != nil {
		return "", err
	}
	if w.fds[o.Slot] >= 0 {
		if err := unix.Close(w.fds[o.Slot]); err != nil {
			return "", err
		}
	}
	w.fds[o.Slot] = fd
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return w.stat(&st), err
}

func (w *worker) close(o op) (string, error) {
	fd := w.slot(o)
	w.fds[o.Slot] = -1
	return nothing(unix.Close(fd))
}

// device reports whether the slot is no plain file: fifos and devices would say what
// depends on others.
func (w *worker) device(o op) bool {
	var st unix.Stat_t
	return unix.Fstat(w.slot(o), &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFREG && st.Mode&unix.S_IFMT != unix.S_IFDIR
}

// aligned makes sizes and a position that O_DIRECT takes. Without passthrough a mount
// takes others too, as the pages go through its server.
func (w *worker) aligned(o op) op {
	if w.unbuffered(o) {
		o.N, o.Off = (o.N+4095)&^4095, o.Off&^4095
		if pos, err := unix.Seek(w.slot(o), 0, unix.SEEK_CUR); err == nil {
			_, _ = unix.Seek(w.slot(o), pos&^4095, unix.SEEK_SET)
		}
	}
	return o
}

// unbuffered reports whether the slot was opened with O_DIRECT. Moving data within the
// kernel to or from it is EINVAL on ext4 where a mount can do it.
func (w *worker) unbuffered(o op) bool {
	flags, err := unix.FcntlInt(uintptr(w.slot(o)), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_DIRECT != 0
}

// buffer is aligned to a page.
func buffer(n int64) []byte {
	b := make([]byte, n+4096)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & 4095
	return b[skip : skip+int(n)]
}

func (w *worker) read(o op) (string, error) {
	if w.device(o) {
		return "", nil
	}
	o = w.aligned(o)
	b := buffer(o.N)
	n, err := unix.Read(w.slot(o), b)
	return digest(b[:max(n, 0)]), err
}

func (w *worker) pread(o op) (string, error) {
	if w.device(o) {
		return "", nil
	}
	o = w.aligned(o)
	b := buffer(o.N)
	n, err := unix.Pread(w.slot(o), b, o.Off)
	return digest(b[:max(n, 0)]), err
}

func (w *worker) write(o op) (string, error) {
	if w.device(o) {
		return "", nil
	}
	o = w.aligned(o)
	b := buffer(o.N)
	copy(b, filled(o))
	n, err := unix.Write(w.slot(o), b)
	return strconv.Itoa(n), err
}

func (w *worker) pwrite(o op) (string, error) {
	if w.device(o) {
		return "", nil
	}
	o = w.aligned(o)
	b := buffer(o.N)
	copy(b, filled(o))
	n, err := unix.Pwrite(w.slot(o), b, o.Off)
	return strconv.Itoa(n), err
}

func (w *worker) append(o op) (string, error) {
	fd, err := unix.Open(o.A, unix.O_WRONLY|unix.O_APPEND|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	n, err := unix.Write(fd, filled(o))
	return strconv.Itoa(n), err
}

func (w *worker) seek(o op) (string, error) {
	if w.device(o) {
		return "", nil
	}
	var st unix.Stat_t
	if unix.Fstat(w.slot(o), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return "", nil // offsets in directories are cookies
	}
	if o.N == unix.SEEK_DATA || o.N == unix.SEEK_HOLE { // where holes are depends on the file system: what is certain is ENXIO at the end
		_, err := unix.Seek(w.slot(o), o.Off, int(o.N))
		if err == nil {
			_, err = unix.Seek(w.slot(o), 0, unix.SEEK_SET)
		}
		return nothing(err)
	}
	n, err := unix.Seek(w.slot(o), o.Off, int(o.N))
	return strconv.FormatInt(n, 10), err
}

// list reads the names of an open directory from its start.
func (w *worker) list(o op) (string, error) {
	fd, err := unix.Openat(w.slot(o), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), "slot")
	defer f.Close()
	return listing(f)
}

func (w *worker) readdir(o op) (string, error) {
	f, err := os.OpenFile(o.A, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return listing(f)
}

func listing(f *os.File) (string, error) {
	entries, err := f.ReadDir(-1)
	var out []string
	for _, e := range entries {
		out = append(out, fmt.Sprintf("%s:%v", e.Name(), e.Type()))
	}
	slices.Sort(out)
	return strings.Join(out, " "), err
}

func (w *worker) mapped(o op, prot int, use func([]byte)) error {
	var st unix.Stat_t
	if err := unix.Fstat(w.slot(o), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 {
		return nil
	}
	off := o.Off % st.Size &^ 4095
	b, err := unix.Mmap(w.slot(o), off, int(min(st.Size-off, 8192)), prot, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	return errors.Join(faulting(func() { use(b) }), unix.Munmap(b))
}

// faulting does what may meet a page that is not there, as where overlayfs says the
// size of one file and maps another.
func faulting(use func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch fault := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }: // debug.SetPanicOnFault
			err = unix.EFAULT
		default:
			panic(fault)
		}
	}()
	use()
	return nil
}

func (w *worker) mapRead(o op) (said string, err error) {
	err = w.mapped(o, unix.PROT_READ, func(b []byte) { said = digest(b) })
	return said, err
}

func (w *worker) mapWrite(o op) (string, error) {
	return nothing(w.mapped(o, unix.PROT_READ|unix.PROT_WRITE, func(b []byte) { copy(b[len(b)/2:], filled(o)) }))
}

// copy copies from a slot to the next one.
func (w *worker) copy(o op) (string, error) {
	to := w.fds[(o.Slot+1)%slots]
	if w.unbuffered(o) || w.unbuffered(op{Slot: (o.Slot + 1) % slots}) {
		return "", nil
	}
	in, out := o.Off, int64(0)
	n, err := unix.CopyFileRange(w.slot(o), &in, to, &out, int(o.N), 0)
	return strconv.Itoa(n), err
}

func (w *worker) sendfile(o op) (string, error) {
	to := op{Slot: (o.Slot + 1) % slots}
	if w.device(o) || w.device(to) || w.unbuffered(o) || w.unbuffered(to) {
		return "", nil
	}
	off := o.Off
	n, err := unix.Sendfile(w.slot(to), w.slot(o), &off, int(o.N))
	return strconv.Itoa(n), err
}

func (w *worker) lock(o op) (string, error) {
	l := unix.Flock_t{Type: []int16{unix.F_RDLCK, unix.F_WRLCK, unix.F_UNLCK}[o.N], Start: o.Off, Len: 100}
	return nothing(unix.FcntlFlock(uintptr(w.slot(o)), unix.F_SETLK, &l))
}

func (w *worker) fallocate(o op) (string, error) {
	n, err := strconv.ParseInt(o.B, 10, 64)
	if err != nil {
		return "", err
	}
	return nothing(unix.Fallocate(w.slot(o), uint32(o.N), o.Off, n))
}

// same tells whether a path is the file that is open, by its numbers.
func (w *worker) same(o op) (string, error) {
	var a, b unix.Stat_t
	if err := unix.Fstat(w.slot(o), &a); err != nil {
		return "", err
	}
	if err := unix.Lstat(o.A, &b); err != nil {
		return "", err
	}
	return fmt.Sprint(a.Ino == b.Ino && a.Dev == b.Dev), nil
}

// dup has the next slot share the file's offset.
func (w *worker) dup(o op) (string, error) {
	next := (o.Slot + 1) % slots
	fd, err := unix.FcntlInt(uintptr(w.slot(o)), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	if w.fds[next] >= 0 {
		if err := unix.Close(w.fds[next]); err != nil {
			return "", err
		}
	}
	w.fds[next] = fd
	return "", nil
}

func (w *worker) linkOpen(o op) (string, error) {
	return nothing(unix.Linkat(w.slot(o), "", unix.AT_FDCWD, o.A, unix.AT_EMPTY_PATH))
}

func (w *worker) readFile(o op) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(o.A, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "no file", nil
	}
	b, err := os.ReadFile(o.A)
	return digest(b), err
}

func (w *worker) writeFile(o op) (string, error) {
	fd, err := unix.Open(o.A, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o666)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	n, err := unix.Write(fd, filled(o))
	return strconv.Itoa(n), err
}
