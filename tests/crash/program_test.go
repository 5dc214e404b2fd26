package crash

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// hostile does, as a program that is confined to the tree, what may upset the daemon or
// lead it out of its upper directory. What the kernel refuses is as good as what it does.
func hostile(root, seed, outside string) error {
	if err := errors.Join(unix.Chroot(root), unix.Chdir("/")); err != nil {
		return err
	}
	var n uint64
	if _, err := fmt.Sscan(seed, &n); err != nil {
		return err
	}
	h := &hostileProgram{outside: outside, rnd: rand.New(rand.NewPCG(n, 1))}
	if err := os.WriteFile("own", []byte("data"), 0o644); err != nil {
		return err
	}
	for _, odd := range []func() error{h.ioctls, h.attributes, h.handles, h.locks, h.renames, h.swaps, h.fileHandles, h.devices, h.sizes} {
		if err := odd(); err != nil {
			return err
		}
	}
	return nil
}

type hostileProgram struct {
	outside string // what is no name in the tree, and one on the host
	rnd     *rand.Rand
}

// ioctls are of any number and size, on files of both layers and on directories.
func (h *hostileProgram) ioctls() error {
	buf := make([]byte, 1<<14)
	for _, name := range []string{"own", "a/one", "a"} {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		for range 300 {
			number := h.rnd.Uint32()
			if h.rnd.IntN(2) == 0 {
				number = number&0xc000ffff | h.rnd.Uint32N(1<<14)<<16 // _IOC(any direction, any size, any type)
			}
			_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(number), uintptr(unsafe.Pointer(&buf[0])))
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	return nil
}

// attributes are large, many, and named as those of the upper directory's own format.
func (h *hostileProgram) attributes() error {
	for _, value := range []int{0, 1, 4 << 10, 64 << 10} {
		for _, name := range []string{
			"user.big", "trusted.overlay.redirect", "trusted.overlay.opaque", "user.overlay.redirect", "user.overlay.metacopy", "user.overlay.origin",
			"user.overlay.overlay.redirect", "user.umoci-mount.ino", "user.containers.override_stat", "security.capability", "system.posix_acl_access",
			"user." + strings.Repeat("n", 250),
		} {
			_ = unix.Setxattr("own", name, bytes.Repeat([]byte("/"), value), 0)
			_ = unix.Setxattr("a", name, bytes.Repeat([]byte("../"), value/3), 0)
		}
	}
	for i := range 1000 {
		_ = unix.Setxattr("own", fmt.Sprint("user.many", i), []byte("value"), 0)
	}
	list := make([]byte, 1<<16)
	if _, err := unix.Listxattr("own", list); err != nil && !errors.Is(err, unix.ERANGE) {
		return fmt.Errorf("list attributes: %w", err)
	}
	return nil
}

// handles are many open files, most of them without a name.
func (h *hostileProgram) handles() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	var open []int
	defer func() {
		for _, fd := range open {
			_ = unix.Close(fd)
		}
	}()
	for i := range min(1500, int(limit.Cur)-100) {
		fd, err := unix.Open(fmt.Sprint("many", i%100), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return fmt.Errorf("file %d: %w", i, err)
		}
		open = append(open, fd)
		if _, err := unix.Write(fd, []byte{byte(i)}); err != nil {
			return fmt.Errorf("file %d: %w", i, err)
		}
		if i%3 > 0 {
			if err := unix.Unlink(fmt.Sprint("many", i%100)); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
		}
	}
	for i, fd := range open {
		var b [1]byte
		if _, err := unix.Pread(fd, b[:], 0); err != nil {
			return fmt.Errorf("file %d: %w", i, err)
		}
	}
	return nil
}

// locks are thousands on one file, and leases and watches beside them.
func (h *hostileProgram) locks() error {
	fd, err := unix.Open("own", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for i := range int64(5000) {
		lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 2 * i, Len: 1}
		if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock); err != nil {
			return fmt.Errorf("lock %d: %w", i, err)
		}
	}
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
	return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
}

// renames have all flags there are, and places that cannot be.
func (h *hostileProgram) renames() error {
	if err := os.MkdirAll("r/s/t", 0o755); err != nil {
		return err
	}
	names := []string{"r", "r/s", "r/s/t", "own", "a", "a/one", "", ".", "r/..", "r/s/..", "missing", ".wh.own", strings.Repeat("x", 255)}
	for range 1000 {
		from, to := names[h.rnd.IntN(len(names))], names[h.rnd.IntN(len(names))]
		if from == "own" || to == "own" {
			continue
		}
		_ = unix.Renameat2(unix.AT_FDCWD, "/"+from, unix.AT_FDCWD, "/"+to, uint(h.rnd.UintN(16)))
		_ = os.MkdirAll("r/s/t", 0o755)
	}
	return nil
}

// swaps puts a symlink in a directory's place and back, while files are made in it: a
// server that walked its upper directory by path would follow.
func (h *hostileProgram) swaps() error {
	if err := errors.Join(os.Mkdir("swapped", 0o755), os.Symlink(h.outside, "link")); err != nil {
		return err
	}
	end := time.Now().Add(500 * time.Millisecond)
	var all sync.WaitGroup
	all.Go(func() {
		for time.Now().Before(end) {
			_ = unix.Renameat2(unix.AT_FDCWD, "swapped", unix.AT_FDCWD, "link", unix.RENAME_EXCHANGE)
		}
	})
	for w := range 3 {
		all.Go(func() {
			dir, err := unix.Open("swapped", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			for i := 0; time.Now().Before(end); i++ {
				name := fmt.Sprintf("evil%d-%d", w, i%50)
				_ = os.WriteFile("swapped/"+name, []byte("evil"), 0o644)
				_ = os.Remove("swapped/" + name)
				if err == nil {
					_ = unix.Mkdirat(dir, name+"d", 0o755)
					_ = unix.Unlinkat(dir, name+"d", unix.AT_REMOVEDIR)
				}
			}
			if err == nil {
				_ = unix.Close(dir)
			}
		})
	}
	all.Wait()
	return nil
}

// fileHandles are made up, and opened.
func (h *hostileProgram) fileHandles() error {
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for range 500 {
		handle := make([]byte, 4*(1+h.rnd.IntN(8)))
		for i := range handle {
			handle[i] = byte(h.rnd.Uint32N(4))
		}
		opened, err := unix.OpenByHandleAt(fd, unix.NewFileHandle([]int32{0x81, 0x82, 1, 2}[h.rnd.IntN(4)], handle), unix.O_RDONLY)
		if err == nil {
			_ = unix.Close(opened)
		}
	}
	return nil
}

// devices and fifos are made, opened, and never asked of the daemon.
func (h *hostileProgram) devices() error {
	for i, mode := range []uint32{unix.S_IFBLK, unix.S_IFCHR, unix.S_IFIFO, unix.S_IFSOCK} {
		name := fmt.Sprint("node", i)
		if err := unix.Mknod(name, mode|0o666, int(unix.Mkdev(250, 17))); err != nil {
			continue // a plain user
		}
		if fd, err := unix.Open(name, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
			_ = unix.Close(fd)
		}
		_ = os.Truncate(name, 100)
		_ = os.Link(name, name+"l")
	}
	_ = unix.Mknod("whiteout", unix.S_IFCHR, 0)
	return nil
}

// sizes are those at the ends of what a file can have.
func (h *hostileProgram) sizes() error {
	fd, err := unix.Open("sizes", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, n := range []int64{1<<63 - 1, 1<<63 - 4096, 1 << 62, 16 << 40, -1, 1 << 40} {
		_ = unix.Ftruncate(fd, n)
		_, _ = unix.Pwrite(fd, []byte("x"), n)
		_ = unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, n, 1<<62)
		_, _ = unix.Seek(fd, n, unix.SEEK_HOLE)
		_, _ = unix.Pread(fd, make([]byte, 10), n)
	}
	return unix.Ftruncate(fd, 0)
}

func TestAProgramThatAsksForOddThingsNeitherEndsTheDaemonNorGetsOut(t *testing.T) {
	imagetest.NeedFuse(t)
	imagetest.NeedRoot(t)
	for mode, flags := range map[string][]string{"root": nil, "root, passthrough": {"--passthrough"}, "plain user": nil} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, baseLayers, mode == "plain user", flags...)
			outside := filepath.Join(w.bundle, "outside")
			if err := os.Mkdir(outside, 0o777); err != nil {
				t.Fatal(err)
			}
			pid := w.daemon()
			for i := range 2 {
				// Seen from the upper directory; in the tree it leads nowhere.
				target := []string{outside, "../outside"}[i%2]
				cmd := w.child("hostile", w.root(), fmt.Sprint(*seed+uint64(i)), target)
				if w.user != nil {
					cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER
					cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: nobody, Size: 1}}
					cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: nobody, Size: 1}}
					cmd.SysProcAttr.Credential = &syscall.Credential{NoSetGroups: true}
				}
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				w.must("sh", "-c", `cd "$0" && find . -delete 2>/dev/null; mkdir -p a && echo x >a/one`, w.root())
			}
			if names, err := os.ReadDir(outside); err != nil || len(names) > 0 {
				t.Errorf("outside: %v, %v", names, err)
			}
			if now := w.daemon(); now != pid {
				t.Errorf("the daemon was %d, now it is %d", pid, now)
			}
			if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
				entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
				if err != nil {
					t.Fatal(err)
				}
				if len(entries) < 100 {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("the daemon has %d descriptors", len(entries))
				}
			}
			if mb := resident(t, pid); mb > 128 {
				t.Errorf("the daemon has %d MiB", mb)
			}
			w.um("repack", "--image", w.image("after"))
			w.um("umount")
			w.must(env.Bin, "fsck", "--layout", filepath.Join(w.dir, "img"))
		})
	}
}

// resident is a process's memory in MiB.
func resident(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	kb := 0
	for line := range strings.Lines(string(data)) {
		_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &kb)
	}
	return kb >> 10
}
