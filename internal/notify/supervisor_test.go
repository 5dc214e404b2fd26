package notify

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// owners is a Tree of owners alone.
type owners struct {
	Tree
	mu sync.Mutex
	of map[uint64]string // protected by mu; by inode
}

func (o *owners) Chown(ino uint64, uid, gid *uint32) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.of[ino] = fmt.Sprintf("%d:%d", *uid, *gid)
	return nil
}

// onThread calls fn in a thread that ends afterwards, as the first one of a process
// does not.
func onThread(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			fn()
			return
		}
		defer runtime.UnlockOSThread()
		onThread(fn)
	}()
	<-done
}

// supervised calls fn in a thread whose root directory is dir, and whose calls are
// answered. It gives the owners that were recorded of dir/file.
func supervised(t *testing.T, dir string, fn func()) string {
	t.Helper()
	imagetest.NeedRoot(t)
	if !Supported() {
		t.Skip("no filter for this architecture")
	}
	name := filepath.Join(dir, "file")
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	tree := &owners{of: map[uint64]string{}}
	served := make(chan error, 1)
	onThread(func() {
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = errors.Join(unix.Chroot(dir), unix.Chdir("/"))
		}
		var listener *os.File
		if err == nil {
			listener, err = sys.ListenSeccomp(Filter(SetOneID))
		}
		if err != nil {
			served <- err
			return
		}
		go func() {
			err := Serve(listener, Options{Tree: tree, Device: uint64(st.Dev)})
			served <- errors.Join(err, listener.Close())
		}()
		fn()
	})
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	return tree.of[st.Ino]
}

func TestAPathBelowAFileLeavesTheSupervisorAtHome(t *testing.T) {
	owner := supervised(t, t.TempDir(), func() {
		fd, err := unix.Open("file", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		for range 2 * workers {
			if err := unix.Fchownat(fd, "x", 1, 1, 0); !errors.Is(err, unix.ENOTDIR) {
				t.Errorf("chown below a file: %v", err)
			}
		}
		for range 2 * workers {
			if err := unix.Fchownat(unix.AT_FDCWD, "file", 8, 12, 0); err != nil {
				t.Errorf("chown afterwards: %v", err)
			}
		}
	})
	if owner != "8:12" {
		t.Errorf("the owner %q was recorded", owner)
	}
}

func TestAThreadThatCannotReturnHomeIsReplaced(t *testing.T) {
	owner := supervised(t, t.TempDir(), func() {
		chown := func() error { return unix.Fchownat(unix.AT_FDCWD, "file", 8, 12, 0) }
		spoilHomes(t)
		refused := 0
		for range 16 * workers {
			switch err := chown(); {
			case errors.Is(err, unix.EIO):
				refused++
			case err != nil:
				t.Errorf("chown: %v", err)
			}
		}
		if refused == 0 || refused > workers {
			t.Errorf("%d threads could not return, and %d calls were refused", workers, refused)
		}
	})
	if owner != "8:12" {
		t.Errorf("the owner %q was recorded", owner)
	}
}

// spoilHomes puts a pipe in the place of each worker's descriptor of its root directory.
func spoilHomes(t *testing.T) {
	elsewhere := make(chan struct{})
	go func() { // in a thread that sees /proc
		defer close(elsewhere)
		r, w, err := os.Pipe()
		if err != nil {
			t.Error(err)
			return
		}
		defer r.Close()
		defer w.Close()
		homes, end := []int(nil), time.Now().Add(10*time.Second)
		for len(homes) < workers {
			if homes = pathsOfRoot(t); time.Now().After(end) {
				t.Errorf("%d workers have a root directory", len(homes))
				return
			}
		}
		for _, fd := range homes {
			if err := unix.Dup3(int(r.Fd()), fd, unix.O_CLOEXEC); err != nil {
				t.Error(err)
			}
		}
	}()
	<-elsewhere
}

// pathsOfRoot are the process's O_PATH descriptors of the root directory.
func pathsOfRoot(t *testing.T) (fds []int) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		fd, nerr := strconv.Atoi(e.Name())
		if err != nil || nerr != nil || to != "/" {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil && flags&unix.O_PATH != 0 {
			fds = append(fds, fd)
		}
	}
	return fds
}

func TestAResolverReturnsHomeOnEveryWay(t *testing.T) {
	imagetest.NeedRoot(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "inside"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	onThread(func() {
		r, err := newResolver()
		if err != nil {
			t.Error(err)
			return
		}
		root, rerr := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
		file, ferr := unix.Open(filepath.Join(dir, "inside"), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err := errors.Join(rerr, ferr); err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(root)
		defer unix.Close(file)
		for _, c := range []struct {
			name       string
			root, base int
			path       string
			want       error
		}{
			{"a path that is there", root, root, "/inside", nil},
			{"a path that is not", root, root, "none", unix.ENOENT},
			{"a base that is no directory", root, file, "x", unix.ENOTDIR},
			{"a base that is closed", root, -1, "x", unix.EBADF},
			{"a root that is no directory", file, root, "x", unix.ENOTDIR},
		} {
			fd, err := r.open(c.root, c.base, c.path, 0)
			if err == nil {
				_ = unix.Close(fd)
			}
			if !errors.Is(err, c.want) || err != nil && fd != -1 {
				t.Errorf("%s: descriptor %d, %v", c.name, fd, err)
			}
			cwd, err := unix.Getcwd(make([]byte, unix.PathMax)) // counts the NUL
			if serr := unix.Access(dir, unix.F_OK); serr != nil || err != nil || cwd != len("/")+1 {
				t.Errorf("%s: the thread is not at home: %v, %v", c.name, serr, err)
			}
		}
		// Without a way home it is not used again.
		r.close()
		r.home = -1
		for range 2 {
			if _, err := r.open(root, root, "inside", 0); !errors.Is(err, errAstray) || !strings.Contains(err.Error(), unix.EBADF.Error()) {
				t.Errorf("without a home: %v", err)
			}
		}
	})
}
