package fusefs

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// fakeKernel stands in for the server's side that speaks to the kernel.
type fakeKernel struct {
	mu      sync.Mutex
	errno   syscall.Errno  // answer to a registration
	next    int32          // protected by mu
	live    map[int32]bool // protected by mu; ids in use
	tries   int            // protected by mu; registrations asked for
	expired []uint64       // protected by mu; nodes whose attributes were dropped
	without uint64         // a node that it does not know
}

func (k *fakeKernel) RegisterBackingFd(int) (int32, syscall.Errno) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tries++
	if k.errno != 0 {
		return 0, k.errno
	}
	k.next++
	if k.live == nil {
		k.live = map[int32]bool{}
	}
	k.live[k.next] = true
	return k.next, 0
}

func (k *fakeKernel) UnregisterBackingFd(id int32) syscall.Errno {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.live[id] {
		return syscall.ENOENT
	}
	delete(k.live, id)
	return 0
}

func (k *fakeKernel) InodeNotify(node uint64, _, _ int64) fuse.Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	if node == k.without {
		return fuse.ENOENT
	}
	k.expired = append(k.expired, node)
	return fuse.OK
}

// raw is the server's methods with no kernel behind them.
type raw struct {
	t *testing.T
	*ops
	kernel fakeKernel
	log    bytes.Buffer
}

func newRaw(t *testing.T, passthrough bool) *raw {
	t.Helper()
	needRoot(t)
	fs, err := openUnion(mountDirs(t, 0), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &raw{t: t}
	r.ops = newOps(fs, slog.New(slog.NewTextHandler(&r.log, nil)), passthrough)
	r.ops.kernel = &r.kernel
	if passthrough {
		r.io.backing = &r.kernel
	}
	t.Cleanup(func() {
		if n := len(r.files.drain()); n != 0 {
			t.Errorf("%d handles were left open", n)
		}
		if len(r.kernel.live) != 0 || len(r.io.inodes) != 0 || r.io.maps.Load() != 0 {
			t.Errorf("left over: ids %v, inodes %v, %d mappers", r.kernel.live, r.io.inodes, r.io.maps.Load())
		}
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func header(node uint64) fuse.InHeader { return fuse.InHeader{NodeId: node} }

// lookup finds a path by LOOKUPs.
func (r *raw) lookup(path string) fuse.EntryOut {
	r.t.Helper()
	out := fuse.EntryOut{NodeId: uint64(layer.RootIno)}
	for _, name := range strings.Split(path, "/") {
		h := header(out.NodeId)
		out = fuse.EntryOut{}
		if st := r.Lookup(nil, &h, name, &out); !st.Ok() {
			r.t.Fatalf("lookup %s: %v", path, st)
		}
	}
	return out
}

func (r *raw) open(node uint64, flags uint32) fuse.OpenOut {
	r.t.Helper()
	var out fuse.OpenOut
	if st := r.Open(nil, &fuse.OpenIn{InHeader: header(node), Flags: flags}, &out); !st.Ok() {
		r.t.Fatalf("open %d: %v", node, st)
	}
	return out
}

func (r *raw) create(name string, flags uint32) fuse.CreateOut {
	r.t.Helper()
	var out fuse.CreateOut
	in := fuse.CreateIn{InHeader: header(1), Flags: flags | unix.O_CREAT, Mode: unix.S_IFREG | 0o644}
	if st := r.Create(nil, &in, name, &out); !st.Ok() {
		r.t.Fatalf("create %s: %v", name, st)
	}
	return out
}

func (r *raw) release(fh uint64) { r.Release(nil, &fuse.ReleaseIn{Fh: fh}) }

func (r *raw) attrValid(node uint64) uint64 {
	r.t.Helper()
	var out fuse.AttrOut
	if st := r.GetAttr(nil, &fuse.GetAttrIn{InHeader: header(node)}, &out); !st.Ok() {
		r.t.Fatal(st)
	}
	return out.AttrValid
}

const passedThrough = fuse.FOPEN_PASSTHROUGH

func TestAnUpperFilePassesThroughWithOneIDUntilTheLastRelease(t *testing.T) {
	r := newRaw(t, true)
	c := r.create("new", unix.O_WRONLY)
	o := r.open(c.NodeId, unix.O_RDONLY)
	if c.OpenFlags != passedThrough || o.OpenFlags != passedThrough {
		t.Errorf("open flags %#x and %#x, want passthrough alone: KEEP_CACHE is EIO", c.OpenFlags, o.OpenFlags)
	}
	if c.BackingID != o.BackingID || c.BackingID == 0 {
		t.Errorf("ids %d and %d of one inode", c.BackingID, o.BackingID)
	}
	r.release(c.Fh)
	if !r.kernel.live[o.BackingID] {
		t.Error("the id is gone while a file is open with it")
	}
	r.release(o.Fh)
	if len(r.kernel.live) != 0 {
		t.Error("the id stays after the last release")
	}
	again := r.open(c.NodeId, unix.O_RDONLY)
	if again.OpenFlags != passedThrough || r.kernel.tries != 2 {
		t.Errorf("reopened with %#x after %d registrations", again.OpenFlags, r.kernel.tries)
	}
	r.release(again.Fh)
}

func TestALowerFileIsCachedAndAWriterThatFindsAReaderToo(t *testing.T) {
	r := newRaw(t, true)
	e := r.lookup("hello")
	reader := r.open(e.NodeId, unix.O_RDONLY)
	writer := r.open(e.NodeId, unix.O_RDWR)
	for _, o := range []fuse.OpenOut{reader, writer} {
		if o.OpenFlags != fuse.FOPEN_KEEP_CACHE {
			t.Errorf("open flags %#x, want cached", o.OpenFlags)
		}
	}
	r.release(reader.Fh)
	if o := r.open(e.NodeId, unix.O_RDONLY); o.OpenFlags != fuse.FOPEN_KEEP_CACHE {
		t.Errorf("open flags %#x while the cached writer is there", o.OpenFlags)
	} else {
		r.release(o.Fh)
	}
	r.release(writer.Fh)
	o := r.open(e.NodeId, unix.O_RDONLY)
	if o.OpenFlags != passedThrough {
		t.Errorf("open flags %#x once all are closed, want passthrough", o.OpenFlags)
	}
	r.release(o.Fh)
}

func TestARefusedRegistrationIsNotTriedAgain(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EPERM, syscall.ELOOP} {
		t.Run(errno.Error(), func(t *testing.T) {
			r := newRaw(t, true)
			r.kernel.errno = errno
			for _, name := range []string{"a", "b", "c"} {
				o := r.create(name, unix.O_RDWR)
				if o.OpenFlags&passedThrough != 0 {
					t.Errorf("%s passes through", name)
				}
				r.release(o.Fh)
			}
			if r.kernel.tries != 1 {
				t.Errorf("tried %d times", r.kernel.tries)
			}
			if n := strings.Count(r.log.String(), "passthrough is off"); n != 1 {
				t.Errorf("logged %d times: %s", n, &r.log)
			}
		})
	}
}

func TestAPassingFailureToRegisterDropsTheCacheOnce(t *testing.T) {
	r := newRaw(t, true)
	r.kernel.errno = syscall.ENOMEM
	c := r.create("new", unix.O_WRONLY)
	if c.OpenFlags != 0 {
		t.Errorf("open flags %#x, want cached with the old data dropped", c.OpenFlags)
	}
	r.kernel.errno = 0
	o := r.open(c.NodeId, unix.O_RDONLY)
	if o.OpenFlags != fuse.FOPEN_KEEP_CACHE {
		t.Errorf("open flags %#x beside a cached open", o.OpenFlags)
	}
	r.release(c.Fh)
	r.release(o.Fh)
	if o = r.open(c.NodeId, unix.O_RDONLY); o.OpenFlags != passedThrough {
		t.Errorf("open flags %#x after the failure passed", o.OpenFlags)
	}
	r.release(o.Fh)
}

func TestAttributesAreNotKeptWhileAMappingCanChangeThem(t *testing.T) {
	r := newRaw(t, true)
	c := r.create("new", unix.O_RDWR)
	if c.AttrValid != forever {
		t.Error("attributes of a new file, which is empty, are not kept")
	}
	if r.attrValid(c.NodeId) != 0 {
		t.Error("attributes of a file that may be mapped for writing are kept")
	}
	if other := r.lookup("hello"); other.AttrValid != forever {
		t.Error("attributes of another file are not kept")
	}
	r.release(c.Fh)
	if r.attrValid(c.NodeId) != forever {
		t.Error("attributes are not kept after the release")
	}
	w := r.open(c.NodeId, unix.O_WRONLY)
	if r.attrValid(c.NodeId) != forever || len(r.kernel.expired) != 0 {
		t.Error("a file that cannot be mapped for writing counts as if")
	}
	r.release(w.Fh)
	o := r.open(c.NodeId, unix.O_RDWR)
	if len(r.kernel.expired) != 1 || r.kernel.expired[0] != c.NodeId {
		t.Errorf("the kernel was told to drop attributes of %v, want of %d", r.kernel.expired, c.NodeId)
	}
	r.release(o.Fh)
}

func TestManyOpensAtOnceAgreeOnOneMode(t *testing.T) {
	r := newRaw(t, true)
	c := r.create("new", unix.O_WRONLY)
	r.release(c.Fh)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				var a, b fuse.OpenOut
				in := fuse.OpenIn{InHeader: header(c.NodeId)}
				if !r.Open(nil, &in, &a).Ok() || !r.Open(nil, &in, &b).Ok() {
					t.Error("open fails")
					return
				}
				if a.BackingID != b.BackingID || a.OpenFlags != passedThrough || b.OpenFlags != passedThrough {
					t.Errorf("ids %d and %d at once", a.BackingID, b.BackingID)
				}
				r.release(a.Fh)
				r.release(b.Fh)
			}
		})
	}
	wg.Wait()
}

func TestWithoutPassthroughEverythingIsCached(t *testing.T) {
	r := newRaw(t, false)
	c := r.create("new", unix.O_RDWR)
	if c.OpenFlags != fuse.FOPEN_KEEP_CACHE || c.AttrValid != forever {
		t.Errorf("open flags %#x, attributes kept %d s", c.OpenFlags, c.AttrValid)
	}
	r.release(c.Fh)
}

func TestAnUnlinkedInodeIsGoneOnceItIsForgotten(t *testing.T) {
	r := newRaw(t, false)
	c := r.create("new", unix.O_RDWR)
	h := header(1)
	if st := r.Unlink(nil, &h, "new"); !st.Ok() {
		t.Fatal(st)
	}
	r.release(c.Fh)
	r.Forget(c.NodeId, 1)
	var out fuse.AttrOut
	st := r.GetAttr(nil, &fuse.GetAttrIn{InHeader: header(c.NodeId)}, &out)
	if syscall.Errno(st) != syscall.ESTALE {
		t.Errorf("a forgotten inode answers %v, want ESTALE", st)
	}
}
