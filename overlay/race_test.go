package overlay

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAFileIsTruncatedWhileItsLastHandleIsClosed(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	ino := x.mustIno("top")
	must(t, mustHandle(t, x, "top", unix.O_RDWR).Close())
	var group sync.WaitGroup
	var errs [3]error
	for i := range errs {
		group.Go(func() {
			for range 30000 {
				if i == 0 {
					_, errs[i] = x.fs.SetAttr(ino, SetAttr{Valid: SetSize, Size: 1})
				} else if h, err := x.fs.Open(ino, unix.O_RDWR|unix.O_TRUNC); err != nil {
					errs[i] = err
				} else {
					errs[i] = h.Close()
				}
				if errs[i] != nil {
					return
				}
			}
		})
	}
	group.Wait()
	must(t, errors.Join(errs[:]...))
}

// A file system has as few as 65000 links to an inode (ext4), so that the whiteout that all
// are links to is now and then another.
func TestRemovalsAtOnceOutliveTheLinksOfAWhiteout(t *testing.T) {
	const workers, each = 8, 100
	var lines []string
	for w := range workers {
		lines = append(lines, fmt.Sprintf("d d%d 755", w))
		for i := range each {
			lines = append(lines, fmt.Sprintf("f d%d/f%d 644 x", w, i))
		}
	}
	x := newFixture(t, newMemLower(lines...))
	var links atomic.Int64
	x.opt.Fault = func(step string) error {
		if step == "link" && links.Add(1)%3 == 0 {
			return unix.EMLINK
		}
		return nil
	}
	x.remount()
	var group sync.WaitGroup
	var errs [workers]error
	for w := range workers {
		dir := x.mustIno(fmt.Sprint("d", w))
		group.Go(func() {
			for i := range each {
				errs[w] = errors.Join(errs[w], x.fs.Unlink(dir, fmt.Sprint("f", i)))
			}
		})
	}
	group.Wait()
	must(t, errors.Join(errs[:]...))
}

func TestAFileThatIsCopiedUpWhileItsDirectoryIsReplacedStaysRemoved(t *testing.T) {
	for _, again := range []bool{false, true} {
		x := newFixture(t, newMemLower("d d 755", "f d/f 644 one"))
		replace := func() {}
		x.opt.Fault = func(step string) error {
			if step == "create" {
				replace()
			}
			return nil
		}
		x.remount()
		must(t, chmod(x, "d", 0o700))
		dir, ino := x.mustIno("d"), x.mustIno("d/f")
		replace = func() {
			replace = func() {}
			must(t, errors.Join(x.fs.Unlink(dir, "f"), x.fs.Rmdir(1, "d")))
			if again {
				must(t, mkdir(x, "d", Caller{}))
			}
		}
		a, err := x.fs.SetAttr(ino, SetAttr{Valid: SetMode, Mode: 0o600})
		if err != nil || a.Nlink != 0 {
			t.Errorf("%d links, %v", a.Nlink, err)
		}
		if got := x.read(ino); got != "one" {
			t.Errorf("read %q", got)
		}
		if again {
			if _, err := x.ino("d/f"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("it is in the new directory: %v", err)
			}
		}
	}
}
