package fusefs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/overlay"
)

// factOps opens files as it is told, right or wrong, to see what the kernel makes
// of it. ioModes is built on the answers.
type factOps struct {
	*ops
	server *Server

	mu   sync.Mutex
	next []string // protected by mu; words for the next open
	ids  []int32  // protected by mu; registered backing files
}

// mountWithFacts is Mount with opens that obey.
func mountWithFacts(fs *overlay.FS, path string, opt Options) (*Server, *factOps, error) {
	o := &factOps{ops: newOps(fs, opt.Log, true)}
	var err error
	o.server, err = newServer(o, o.ops, path, &opt)
	return o.server, o, err
}

// Open obeys the words: cached, direct, keep, pass0, pass1.
func (o *factOps) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	h, err := o.fs.Open(overlay.Ino(in.NodeId), in.Flags)
	if err != nil {
		return o.status(opOpen, in.NodeId, err)
	}
	out.Fh = o.files.add(&file{h: h})
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, word := range o.next {
		switch word {
		case "cached":
		case "direct":
			out.OpenFlags |= fuse.FOPEN_DIRECT_IO
		case "keep":
			out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
		case "pass0", "pass1":
			fd, _ := h.Upper()
			for len(o.ids) < 2 {
				id, errno := o.server.dev.RegisterBackingFd(fd)
				if errno != 0 {
					return fuse.Status(errno)
				}
				o.ids = append(o.ids, id)
			}
			out.OpenFlags |= fuse.FOPEN_PASSTHROUGH
			out.BackingID = o.ids[word[4]-'0']
		}
	}
	return fuse.OK
}

// obey takes the words for the next open, or registers a file by its path.
func (o *factOps) obey(words []string) string {
	if words[0] == "register" {
		fd, err := unix.Open(words[1], unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err.Error()
		}
		defer unix.Close(fd)
		_, errno := o.server.dev.RegisterBackingFd(fd)
		return errno.Error()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.next = words
	return "ok"
}

func TestWhatTheKernelAcceptsOfPassthrough(t *testing.T) {
	needPassthrough(t)
	const eio = "EIO"
	tests := []struct {
		name  string
		opens []string // words for one open each; all stay open but those after "close"
		want  []string // of each open: "", EIO
	}{
		{"passthrough beside cached is EIO", []string{"cached", "pass0"}, []string{"", eio}},
		{"cached beside passthrough is EIO", []string{"pass0", "cached"}, []string{"", eio}},
		{"direct beside passthrough is EIO", []string{"pass0", "direct"}, []string{"", eio}},
		{"another id of the same file is EIO", []string{"pass0", "pass1"}, []string{"", eio}},
		{"the same id again is fine", []string{"pass0", "pass0"}, []string{"", ""}},
		{"keep-cache with passthrough is EIO", []string{"pass0 keep"}, []string{eio}},
		{"direct with passthrough is fine", []string{"pass0 direct", "pass0"}, []string{"", ""}},
		{"cached beside direct is fine", []string{"direct", "cached"}, []string{"", ""}},
		{"passthrough once the cached one is closed is fine", []string{"direct", "cached", "close", "pass0"}, []string{"", "", "", ""}},
		{"cached once the passthrough is closed is fine", []string{"pass0", "close", "cached"}, []string{"", "", ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := mountFacts(t)
			mustWrite(t, m.path("f"), "data")
			before := m.settle(1)
			var open []*os.File
			for i, words := range tt.opens {
				if words == "close" {
					last := len(open) - 1
					if err := open[last].Close(); err != nil {
						t.Fatal(err)
					}
					open = open[:last]
					m.settle(before + 1)
					continue
				}
				m.ask(words)
				f, err := os.OpenFile(m.path("f"), os.O_RDWR, 0)
				got := ""
				if errors.Is(err, syscall.EIO) {
					got = eio
				} else if err != nil {
					got = err.Error()
				}
				if got != tt.want[i] {
					t.Errorf("open %d (%s): %q, want %q", i, words, got, tt.want[i])
				}
				if f != nil {
					open = append(open, f)
				}
			}
			opens := len(tt.opens)
			for _, f := range open {
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			}
			if strings.Contains(strings.Join(tt.opens, " "), "close") {
				opens--
			}
			if n := m.settle(before + uint64(opens)); n != before+uint64(opens) {
				t.Errorf("%d releases for %d opens: one that failed with EIO is released too", n-before, opens)
			}
		})
	}
}

// settle waits until RELEASE was counted n times; the kernel does not wait for it.
func (m *mounted) settle(n uint64) uint64 {
	m.t.Helper()
	got := uint64(0)
	for range 500 {
		if got = m.stats()["RELEASE"]; got >= n {
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	return got
}

func mountFacts(t *testing.T) *mounted {
	t.Helper()
	return mountAs(t, serverConfig{Dir: mountDirs(t, 0), Options: rootOptions(true), Facts: true}, 0)
}

func TestADirectoryIsNoBackingFile(t *testing.T) {
	needPassthrough(t)
	if got, want := mountFacts(t).ask("register /"), syscall.EISDIR.Error(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAFileOnAStackedFileSystemIsNoBackingFile(t *testing.T) {
	needPassthrough(t)
	m := mountFacts(t)
	stack := mountDirs(t, 0)
	opts := fmt.Sprintf("lowerdir=%[1]s/mnt,upperdir=%[1]s/upper,workdir=%[1]s/work", stack)
	at := t.TempDir()
	if err := unix.Mount("overlay", at, "overlay", 0, opts); err != nil {
		t.Skipf("no overlayfs: %v", err)
	}
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	}()
	mustWrite(t, filepath.Join(at, "f"), "x")
	if got, want := m.ask("register "+filepath.Join(at, "f")), syscall.ELOOP.Error(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestInAUserNamespaceFilesAreCached(t *testing.T) {
	needPassthrough(t)
	cfg := serverConfig{Dir: mountDirs(t, 0), Options: rootOptions(true), UserNS: true}
	m, err := tryMount(t, cfg, 0)
	if err != nil {
		t.Skipf("no mount in a user namespace: %v", err)
	}
	out := m.ask(fmt.Sprintf("run echo inside >%[1]s/new && cat %[1]s/new %[1]s/hello | tr '\\n' ' '", m.root))
	if out != "inside hello, lower " {
		t.Errorf("%q", out)
	}
	if !m.logged("passthrough is off") {
		t.Error("passthrough without CAP_SYS_ADMIN")
	}
}

// runShell runs a command for the server's parent, in the server's namespaces.
func runShell(command string) string {
	out, err := exec.Command("sh", "-c", command).CombinedOutput()
	if err != nil {
		return err.Error() + " " + strings.ReplaceAll(string(out), "\n", " ")
	}
	return strings.TrimSuffix(string(out), "\n")
}
