package overlay

import (
	"errors"
	"sync"
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
