package stress

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// shownOps is how many of the last operations a failure prints.
const shownOps = 40

// fsx does random operations on one file and holds each result against a model.
type fsx struct {
	path  string
	limit int64 // of the file's size in bytes
	fd    int
	rnd   *rand.Rand
	model []byte
	ops   []string
}

// Each operation is checked at once where it reads, and the whole file whenever it
// is opened again.
func TestOneFileHoldsWhatWasWrittenWhateverWasDoneToIt(t *testing.T) {
	imagetest.NeedFuse(t)
	imagetest.NeedRoot(t)
	layout := imagetest.Layout(t, imagetest.Image{Tag: "base", Layers: []imagetest.Layer{
		{Text: "file small 0644 @5000\nfile spans 0644 @9000000\nfile empty 0644 \"\"\n"},
	}})
	// A sparse file in a lower layer is made by a repack.
	b := env.Mount(t, layout+":base")
	sparse := filepath.Join(b.Rootfs(), "sparse")
	if err := os.WriteFile(sparse, []byte("begins"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(sparse, 3<<20); err != nil {
		t.Fatal(err)
	}
	env.Must(t, "repack", "--image", layout+":sparse", b.Path)
	b.Umount(t)

	files := []string{"small", "spans", "sparse", "empty"}
	each := share(10) / time.Duration(2*len(files))
	for mode, flags := range map[string][]string{"passthrough": {"--passthrough"}, "without passthrough": nil} {
		for _, name := range files {
			t.Run(mode+"/"+name, func(t *testing.T) {
				began := time.Now()
				for s, i := *seed, 0; i == 0 || time.Since(began) < each; s, i = s+1, i+1 {
					fsxSequence(t, layout, flags, name, s, each-time.Since(began))
				}
			})
		}
	}
}

// fsxSequence mounts the image anew, so that the file begins in the lower layer, and
// does up to a thousand operations.
func fsxSequence(t *testing.T, layout string, flags []string, name string, seed uint64, left time.Duration) {
	t.Helper()
	b := env.Mount(t, layout+":sparse", flags...)
	path := filepath.Join(b.Rootfs(), name)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f := &fsx{path: path, limit: max(300_000, int64(len(data))+100_000), fd: -1, rnd: source(seed), model: data}
	fail := func(err error) {
		ops := f.ops[max(0, len(f.ops)-shownOps):]
		t.Fatalf("seed %d, operation %d: %v\nthe last operations:\n  %s", seed, len(f.ops), err, strings.Join(ops, "\n  "))
	}
	if err := f.reopen(); err != nil {
		fail(err)
	}
	deadline := time.Now().Add(max(left, 100*time.Millisecond))
	for n := 0; n < 1000 && time.Now().Before(deadline); n++ {
		if err := f.faultless(f.step); err != nil {
			fail(err)
		}
	}
	if err := f.reopen(); err != nil {
		fail(err)
	}
	if err := unix.Close(f.fd); err != nil {
		t.Fatal(err)
	}
	b.Umount(t)
	b.Remount(t, flags...)
	if err := f.whole(); err != nil {
		fail(fmt.Errorf("after a remount: %w", err))
	}
	b.Umount(t)
}

// faultless makes an error of a mapping that cannot be read (SIGBUS).
func (f *fsx) faultless(step func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch fault := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }: // of a mapping, by debug.SetPanicOnFault
			err = fmt.Errorf("a mapping cannot be read at %#x", fault.Addr())
		default:
			panic(fault)
		}
	}()
	return step()
}

func (f *fsx) note(format string, args ...any) { f.ops = append(f.ops, fmt.Sprintf(format, args...)) }

// span is a random part of the file's possible bytes, not empty.
func (f *fsx) span() (off, n int64) {
	off = f.rnd.Int64N(f.limit)
	if f.rnd.IntN(3) > 0 && len(f.model) > 0 { // mostly within the file
		off = f.rnd.Int64N(int64(len(f.model)))
	}
	if f.rnd.IntN(3) == 0 {
		off &^= 4095
	}
	return off, 1 + f.rnd.Int64N(min(65536, f.limit-off))
}

// grow makes the model at least n bytes long.
func (f *fsx) grow(n int64) {
	if d := n - int64(len(f.model)); d > 0 {
		f.model = append(f.model, make([]byte, d)...)
	}
}

func (f *fsx) random(n int64) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(f.rnd.Uint32())
	}
	return b
}

func (f *fsx) step() error {
	ops := []func() error{
		f.read, f.read, f.mapRead, f.write, f.write, f.mapWrite, f.truncate, f.copyRange, f.sync, f.drop,
		func() error { return f.allocate(0) },
		func() error { return f.allocate(unix.FALLOC_FL_KEEP_SIZE) },
		func() error { return f.allocate(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE) },
		func() error { return f.allocate(unix.FALLOC_FL_ZERO_RANGE) },
		func() error { return f.allocate(unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE) },
	}
	if f.rnd.IntN(60) == 0 {
		return f.reopen()
	}
	if err := ops[f.rnd.IntN(len(ops))](); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if st.Size != int64(len(f.model)) {
		return fmt.Errorf("the size is %d, want %d", st.Size, len(f.model))
	}
	return nil
}

// same compares bytes at an offset with the model's.
func (f *fsx) same(off int64, got []byte) error {
	want := f.model[min(off, int64(len(f.model))):]
	want = want[:min(len(want), len(got))]
	for i := range want {
		if want[i] != got[i] {
			return fmt.Errorf("byte %d is %#x, want %#x", off+int64(i), got[i], want[i])
		}
	}
	return nil
}

func (f *fsx) read() error {
	off, n := f.span()
	f.note("pread %d bytes at %d", n, off)
	buf := make([]byte, n)
	got, err := unix.Pread(f.fd, buf, off)
	if err != nil {
		return err
	}
	if want := max(0, min(n, int64(len(f.model))-off)); int64(got) != want {
		return fmt.Errorf("read %d bytes, want %d", got, want)
	}
	return f.same(off, buf[:got])
}

func (f *fsx) write() error {
	off, n := f.span()
	f.note("pwrite %d bytes at %d", n, off)
	b := f.random(n)
	got, err := unix.Pwrite(f.fd, b, off)
	if err != nil || int64(got) != n {
		return fmt.Errorf("wrote %d of %d bytes: %w", got, n, err)
	}
	f.grow(off + n)
	copy(f.model[off:], b)
	return nil
}

// mapping maps whole pages around a part of the file, and returns the part.
func (f *fsx) mapping(prot int) (mapped, part []byte, off int64, err error) {
	off, n := f.span()
	if off >= int64(len(f.model)) {
		return nil, nil, 0, nil
	}
	n = min(n, int64(len(f.model))-off)
	page := off &^ int64(os.Getpagesize()-1)
	mapped, err = unix.Mmap(f.fd, page, int(off-page+n), prot, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("map: %w", err)
	}
	return mapped, mapped[off-page:], off, nil
}

func (f *fsx) mapRead() error {
	mapped, part, off, err := f.mapping(unix.PROT_READ)
	if err != nil || mapped == nil {
		return err
	}
	f.note("read %d mapped bytes at %d", len(part), off)
	err = f.same(off, part)
	if e := unix.Munmap(mapped); err == nil {
		err = e
	}
	return err
}

func (f *fsx) mapWrite() error {
	mapped, part, off, err := f.mapping(unix.PROT_READ | unix.PROT_WRITE)
	if err != nil || mapped == nil {
		return err
	}
	f.note("write %d mapped bytes at %d", len(part), off)
	copy(part, f.random(int64(len(part))))
	copy(f.model[off:], part)
	if f.rnd.IntN(2) == 0 {
		err = unix.Msync(mapped, unix.MS_SYNC)
	}
	if e := unix.Munmap(mapped); err == nil {
		err = e
	}
	return err
}

func (f *fsx) truncate() error {
	size, _ := f.span()
	f.note("truncate to %d", size)
	if f.rnd.IntN(2) == 0 {
		if err := unix.Truncate(f.path, size); err != nil {
			return err
		}
	} else if err := unix.Ftruncate(f.fd, size); err != nil {
		return err
	}
	f.model = f.model[:min(size, int64(len(f.model)))]
	f.grow(size)
	return nil
}

func (f *fsx) allocate(mode uint32) error {
	off, n := f.span()
	f.note("fallocate mode %#x, %d bytes at %d", mode, n, off)
	if err := unix.Fallocate(f.fd, mode, off, n); err != nil {
		return err
	}
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		f.grow(off + n)
	}
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
		size := int64(len(f.model))
		clear(f.model[min(off, size):min(off+n, size)])
	}
	return nil
}

// copyRange copies within the file; the ranges must not overlap.
func (f *fsx) copyRange() error {
	from, n := f.span()
	to, _ := f.span()
	if from < to {
		n = min(n, to-from)
	} else {
		n = min(n, from-to)
	}
	n = min(n, f.limit-to)
	if n <= 0 {
		return nil
	}
	f.note("copy_file_range %d bytes from %d to %d", n, from, to)
	want := max(0, min(n, int64(len(f.model))-from))
	for done := int64(0); done < want; {
		in, out := from+done, to+done
		got, err := unix.CopyFileRange(f.fd, &in, f.fd, &out, int(want-done), 0)
		if err != nil || got <= 0 {
			return fmt.Errorf("copied %d of %d bytes: %w", done, want, err)
		}
		done += int64(got)
	}
	if want == 0 {
		return nil // nothing grows
	}
	f.grow(to + want)
	copy(f.model[to:to+want], bytes.Clone(f.model[from:from+want]))
	return nil
}

func (f *fsx) sync() error {
	f.note("fsync")
	return unix.Fsync(f.fd)
}

// drop takes the file's clean pages out of the kernel's cache.
func (f *fsx) drop() error {
	f.note("sync and drop the pages")
	if err := unix.Fdatasync(f.fd); err != nil {
		return err
	}
	return unix.Fadvise(f.fd, 0, 0, unix.FADV_DONTNEED)
}

// reopen closes and opens the file, and compares all of it.
func (f *fsx) reopen() error {
	f.note("close and open")
	if f.fd >= 0 {
		if err := unix.Close(f.fd); err != nil {
			return err
		}
	}
	var err error
	if f.fd, err = unix.Open(f.path, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	return f.whole()
}

func (f *fsx) whole() error {
	data, err := os.ReadFile(f.path)
	if err != nil {
		return err
	}
	if len(data) != len(f.model) {
		return fmt.Errorf("%d bytes, want %d", len(data), len(f.model))
	}
	return f.same(0, data)
}
