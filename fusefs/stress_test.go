package fusefs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel answers EIO to an open that does not agree with the others of its
// inode. Whatever order opens, releases and copy-ups come in, it must not happen.
func TestNoOpenIsRefusedWhateverTheOrder(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		const workers = 6
		deadline := time.Now().Add(2 * time.Second)
		names := []string{"hello", "big", "dir/a", "dir/b", "hard1", "hard2", "n0", "n1", "n2"}
		var wg sync.WaitGroup
		for w := range workers {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			wg.Go(func() {
				var held []*os.File
				for time.Now().Before(deadline) {
					p := m.path(names[rng.IntN(len(names))])
					f, err := openSomehow(p, rng)
					switch {
					case err == nil:
						held = append(held, f)
					case !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrExist):
						t.Errorf("open %s: %v", p, err)
						return
					}
					if len(held) > 4 || rng.IntN(3) == 0 && len(held) > 0 {
						i := rng.IntN(len(held))
						if err := useAndClose(held[i], rng); err != nil {
							t.Errorf("use %s: %v", held[i].Name(), err)
							return
						}
						held = append(held[:i], held[i+1:]...)
					}
					if rng.IntN(20) == 0 {
						_ = os.Remove(p) // another worker may have been first
					}
					if rng.IntN(20) == 0 {
						_ = os.Rename(p, m.path(fmt.Sprintf("n%d", rng.IntN(3))))
					}
				}
				for _, f := range held {
					_ = f.Close()
				}
			})
		}
		wg.Wait()
		for _, bad := range []string{"request failed", "panicked", "stays registered"} {
			if m.logged(bad) {
				t.Errorf("the log says %q", bad)
			}
		}
	})
}

func openSomehow(path string, rng *rand.Rand) (*os.File, error) {
	flags := []int{
		os.O_RDONLY, os.O_RDONLY, os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_WRONLY | os.O_APPEND,
		os.O_RDWR | os.O_CREATE, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_CREATE | os.O_TRUNC,
	}
	return os.OpenFile(path, flags[rng.IntN(len(flags))], 0o644)
}

// useAndClose reads, writes or maps a file. What the file was not opened for is
// EBADF or EACCES; an empty one has nothing to map.
func useAndClose(f *os.File, rng *rand.Rand) error {
	buf := make([]byte, 100)
	var err error
	switch rng.IntN(3) {
	case 0:
		_, err = unix.Pread(int(f.Fd()), buf, int64(rng.IntN(5000)))
	case 1:
		_, err = unix.Pwrite(int(f.Fd()), buf, int64(rng.IntN(5000)))
	case 2:
		var b []byte
		if b, err = unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED); err == nil {
			err = unix.Munmap(b)
		}
	}
	if errors.Is(err, syscall.EBADF) || errors.Is(err, syscall.EACCES) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

func TestTheServerKeepsNoDescriptorOfWhatIsClosed(t *testing.T) {
	eachMode(t, func(t *testing.T, m *mounted) {
		use := func() {
			for i := range 100 {
				p := m.path(fmt.Sprintf("open.d/f%d", i))
				mustWrite(t, p, "x")
				mustRead(t, p)
				mustList(t, m.path("open.d"))
				if err := os.Remove(p); err != nil {
					t.Fatal(err)
				}
			}
			mustRead(t, m.path("big"))
			m.settle(m.stats()["OPEN"] + m.stats()["CREATE"])
		}
		use()
		fds := func() int {
			list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.cmd.Process.Pid))
			if err != nil {
				t.Fatal(err)
			}
			return len(list)
		}
		before := fds()
		use()
		after := 0
		for range 100 { // FORGET and RELEASE come when they come
			if after = fds(); after <= before+3 {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("%d descriptors became %d", before, after)
	})
}
