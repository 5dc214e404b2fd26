package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

func TestWithoutPassthroughAnOpenAsksNothing(t *testing.T) {
	m := mount(t, rootOptions(false))
	mustWrite(t, m.path("made"), "made here")
	read := func() {
		for name, want := range map[string]string{"hello": "hello, lower\n", "dir/sub/deep": "deep\n", "made": "made here"} {
			if got := mustRead(t, m.path(name)); got != want {
				t.Errorf("%s reads %q", name, got)
			}
		}
	}
	read()
	m.noRequests("a second read", read, "OPEN", "READ", "RELEASE", "FLUSH")
}

// Nothing but the inode's number leads to a file that was opened and has no name.
func TestAMovedFileThatTheKernelForgotOutlivesItsName(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		for i := range 3 { // each new listing gives the kernel another reference
			mustWrite(t, m.path(fmt.Sprint("made-", i)), "")
			if _, err := os.ReadDir(m.path(".")); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(m.path("hello"), m.path("moved")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
			t.Skip(err)
		}
		f, err := os.Open(m.path("moved"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := os.Remove(m.path("moved")); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(f); err != nil || len(got) == 0 {
			t.Errorf("reads %q, %v", got, err)
		}
	})
}

func TestAFileThatTheKernelOpenedOutlivesItsName(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		mustWrite(t, m.path("made"), "made here")
		for _, name := range []string{"hello", "made", "dir/sub/deep"} {
			for _, way := range []string{"removed", "replaced"} {
				if way == "replaced" {
					mustWrite(t, m.path(name), "again")
				}
				f, err := os.OpenFile(m.path(name), os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				if way == "removed" {
					err = os.Remove(m.path(name))
				} else {
					mustWrite(t, m.path("other"), "of the other")
					err = os.Rename(m.path("other"), m.path(name))
				}
				if err != nil {
					t.Fatal(err)
				}
				if _, err := f.WriteAt([]byte("HE"), 0); err != nil {
					t.Errorf("%s, %s: write: %v", name, way, err)
				}
				got := make([]byte, 4)
				if _, err := f.ReadAt(got, 0); err != nil || !bytes.HasPrefix(got, []byte("HE")) {
					t.Errorf("%s, %s: reads %q, %v", name, way, got, err)
				}
				if err := errors.Join(f.Sync(), f.Truncate(1<<20), f.Truncate(1)); err != nil {
					t.Errorf("%s, %s: %v", name, way, err)
				}
				if st, err := f.Stat(); err != nil || st.Size() != 1 || st.Sys().(*syscall.Stat_t).Nlink != 0 {
					t.Errorf("%s, %s: %+v, %v", name, way, st, err)
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
				if way == "replaced" && mustRead(t, m.path(name)) != "of the other" {
					t.Errorf("%s reads %q", name, mustRead(t, m.path(name)))
				}
			}
		}
	})
}

// createOpen makes a file and writes its name into it.
func (r *raw) createOpen(name string) uint64 {
	r.t.Helper()
	var out fuse.CreateOut
	in := fuse.CreateIn{InHeader: header(uint64(layer.RootIno)), Flags: unix.O_RDWR, Mode: unix.S_IFREG | 0o644}
	if st := r.Create(nil, &in, name, &out); !st.Ok() {
		r.t.Fatalf("create %s: %v", name, st)
	}
	if out.Fh != 0 {
		r.t.Fatalf("create %s: open file %d, of whose end the kernel says nothing", name, out.Fh)
	}
	r.write(out.NodeId, name)
	return out.NodeId
}

func (r *raw) write(node uint64, text string) {
	r.t.Helper()
	if n, st := r.Write(nil, &fuse.WriteIn{InHeader: header(node)}, []byte(text)); !st.Ok() || int(n) != len(text) {
		r.t.Fatalf("write: %d bytes, %v", n, st)
	}
}

func (r *raw) mustReadNode(node uint64, want string) {
	r.t.Helper()
	if got, st := r.readOf(node, 0, 0, len(want)); !st.Ok() || string(got) != want {
		r.t.Errorf("node %d reads %q, %v; want %q", node, got, st, want)
	}
}

func newOpenless(t *testing.T) *raw {
	t.Helper()
	r := newRaw(t, false)
	r.openByNode()
	t.Cleanup(func() {
		r.OnUnmount()
		if n := len(r.nodeFiles.files); n != 0 || r.nodeFiles.recent.next != &r.nodeFiles.recent {
			t.Errorf("%d files stay open", n)
		}
	})
	return r
}

func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func TestFilesByNodeAreBoundedAndOpenedAgain(t *testing.T) {
	r := newOpenless(t)
	before := descriptors(t)
	var nodes []uint64
	for i := range nodeFilesMax + 100 {
		nodes = append(nodes, r.createOpen(fmt.Sprint("f", i)))
	}
	if n := descriptors(t) - before; n > nodeFilesMax+20 {
		t.Errorf("%d descriptors for %d files", n, len(nodes))
	}
	for i, node := range nodes {
		r.mustReadNode(node, fmt.Sprint("f", i))
	}
	lower := r.lookup("hello").NodeId
	r.mustReadNode(lower, "hello, lower\n")
	r.write(lower, "HELLO")
	r.mustReadNode(lower, "HELLO, lower\n")
	if n := len(r.nodeFiles.files); n != nodeFilesMax {
		t.Errorf("%d files are open, want %d", n, nodeFilesMax)
	}
}

// A file with no name can be reached after it was closed for others, and goes when the
// kernel forgets it.
func TestAFileWithNoNameIsReachedUntilItIsForgotten(t *testing.T) {
	r := newOpenless(t)
	before := descriptors(t)
	node := r.createOpen("unnamed")
	h := header(uint64(layer.RootIno))
	if st := r.Unlink(nil, &h, "unnamed"); !st.Ok() {
		t.Fatal(st)
	}
	r.nodeFiles.drop(overlay.Ino(node))
	r.mustReadNode(node, "unnamed")
	r.write(node, "UNNAMED")
	r.mustReadNode(node, "UNNAMED")
	r.Forget(node, 1)
	if n := descriptors(t); n > before+1 { // one of the root's directory
		t.Errorf("%d descriptors, %d before", n, before)
	}
	if _, st := r.readOf(node, 0, 0, 1); st.Ok() {
		t.Error("a forgotten file is read")
	}
}

func TestFilesByNodeAreUsedByManyAtOnce(t *testing.T) {
	r := newOpenless(t)
	var nodes []uint64
	for i := range 4 {
		nodes = append(nodes, r.createOpen(fmt.Sprint("f", i)))
	}
	nodes = append(nodes, r.lookup("hello").NodeId, r.lookup("big").NodeId)
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			for i := range 300 {
				node := nodes[(worker+i)%len(nodes)]
				switch i % 4 {
				case 0:
					if _, st := r.Write(nil, &fuse.WriteIn{InHeader: header(node), Offset: uint64(i)}, []byte("x")); !st.Ok() {
						t.Errorf("write: %v", st)
					}
				case 1:
					r.nodeFiles.drop(overlay.Ino(node)) // as the bound does
				default:
					if _, st := r.readOf(node, 0, 0, 4096); !st.Ok() {
						t.Errorf("read: %v", st)
					}
				}
			}
		})
	}
	all.Wait()
}
