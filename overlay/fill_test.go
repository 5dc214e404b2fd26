package overlay

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

// pausingLower stops in the middle of a file's data until it is told to go on.
type pausingLower struct {
	*memLower
	reached chan struct{}
	goOn    chan error // what the read then answers
}

type pausingFile struct {
	memFile
	l *pausingLower
}

func (l *pausingLower) Open(ino Ino) (layer.File, error) {
	f, err := l.memLower.Open(ino)
	return pausingFile{f.(memFile), l}, err //nolint:forcetypeassert // it is memLower's
}

func (f pausingFile) ReadAt(p []byte, off int64) (int, error) {
	if off == copyChunk {
		f.l.reached <- struct{}{}
		if err := <-f.l.goOn; err != nil {
			return 0, err
		}
	}
	return f.memFile.ReadAt(p, off)
}

// testCaps is a vfs_cap_data of revision 2 with one capability more or less.
func testCaps(n byte) []byte {
	caps := make([]byte, 20)
	caps[3], caps[4] = 2, n
	return caps
}

// duringFill opens a lower file of several chunks for writing and calls do while its
// data is being moved, which then ends with readErr.
func duringFill(t *testing.T, opt UpperOptions, readErr error, do func(x *fixture, ino Ino)) (*fixture, Ino) {
	t.Helper()
	lower := &pausingLower{newMemLower("f big 644 x"), make(chan struct{}), make(chan error)}
	big := lower.at("big")
	big.data = []byte(strings.Repeat("data", copyChunk*3/4))
	big.attr.Size = int64(len(big.data))
	big.xattrs[xattrCapability] = testCaps(1)
	x := newFixtureWith(t, lower, opt)
	ino := x.mustIno("big")
	done := make(chan error)
	go func() {
		h, err := x.fs.Open(ino, unix.O_RDWR)
		if err == nil {
			err = h.Close()
		}
		done <- err
	}()
	<-lower.reached
	do(x, ino)
	lower.goOn <- readErr
	if err := <-done; !errors.Is(err, readErr) {
		t.Errorf("open: %v", err)
	}
	return x, ino
}

// afterCrash is what the next mount finds where a crash ends x now.
func afterCrash(x *fixture) *fixture {
	x.t.Helper()
	y := &fixture{t: x.t, lower: x.lower.(*pausingLower).memLower, dir: x.t.TempDir(), opt: x.opt} //nolint:forcetypeassert // duringFill's
	if out, err := exec.Command("cp", "-a", x.dir+"/upper", x.dir+"/work", y.dir).CombinedOutput(); err != nil {
		x.t.Fatalf("cp: %v: %s", err, out)
	}
	y.mount()
	x.t.Cleanup(y.unmount)
	return y
}

// TestWhatIsSetWhileDataMovesUpStays: moving data changes the times and drops the
// capability, and restores neither over what was set meanwhile; nor does a crash.
func TestWhatIsSetWhileDataMovesUpStays(t *testing.T) {
	caps := func(x *fixture, ino Ino) []byte {
		t.Helper()
		buf := make([]byte, 64)
		n, err := x.fs.GetXattr(ino, xattrCapability, buf)
		if errors.Is(err, ErrNoXattr) {
			return nil
		}
		must(t, err)
		return buf[:n]
	}
	listed := func(x *fixture, ino Ino) bool {
		t.Helper()
		buf := make([]byte, 256)
		n, err := x.fs.ListXattr(ino, buf, nil)
		must(t, err)
		return slices.Contains(splitNames(buf[:n]), xattrCapability)
	}
	old, set := Timespec{Sec: 1600000000, Nsec: 5}, Timespec{Sec: 1700000000}
	for _, c := range []struct {
		name  string
		do    func(x *fixture, ino Ino) error
		mtime Timespec
		caps  []byte
		mode  uint32
	}{
		{"nothing", func(*fixture, Ino) error { return nil }, old, testCaps(1), 0o644},
		{"a mode", func(x *fixture, ino Ino) error {
			_, err := x.fs.SetAttr(ino, SetAttr{Valid: SetMode, Mode: 0o600})
			return err
		}, old, testCaps(1), 0o600},
		{"times", func(x *fixture, ino Ino) error {
			a, err := x.fs.SetAttr(ino, SetAttr{Valid: SetMtime | SetAtimeNow, Mtime: set})
			if a.Mtime != set {
				t.Errorf("answered %v", a.Mtime)
			}
			return err
		}, set, testCaps(1), 0o644},
		{"an owner, which drops the capability", func(x *fixture, ino Ino) error {
			_, err := x.fs.SetAttr(ino, SetAttr{Valid: SetUID, UID: 7})
			return err
		}, old, nil, 0o644},
		{"a capability", func(x *fixture, ino Ino) error {
			if err := x.fs.SetXattr(ino, xattrCapability, testCaps(2), unix.XATTR_CREATE, false); !errors.Is(err, unix.EEXIST) {
				t.Errorf("made where there is one: %v", err)
			}
			if err := x.fs.SetXattr(ino, xattrCapability, testCaps(3)[:7], 0, false); !errors.Is(err, unix.EINVAL) && !x.opt.Rootless {
				t.Errorf("what is none: %v", err)
			}
			return x.fs.SetXattr(ino, xattrCapability, testCaps(2), unix.XATTR_REPLACE, false)
		}, old, testCaps(2), 0o644},
		{"no capability", func(x *fixture, ino Ino) error {
			err := x.fs.RemoveXattr(ino, xattrCapability)
			if err := x.fs.RemoveXattr(ino, xattrCapability); !errors.Is(err, ErrNoXattr) {
				t.Errorf("removed twice: %v", err)
			}
			return err
		}, old, nil, 0o644},
	} {
		for _, opt := range []UpperOptions{{}, {Rootless: true}} {
			for _, readErr := range []error{nil, unix.EIO} {
				if !opt.Rootless && os.Geteuid() != 0 {
					continue
				}
				check := func(x *fixture, ino Ino, when string) {
					t.Helper()
					a, err := x.fs.GetAttr(ino)
					if must(t, err); a.Mtime != c.mtime || a.Mode&0o7777 != c.mode || a.Size != 3*copyChunk {
						t.Errorf("%s (%+v, %v) %s: mtime %v, mode %o, size %d", c.name, opt, readErr, when, a.Mtime, a.Mode, a.Size)
					}
					if got := caps(x, ino); !bytes.Equal(got, c.caps) || listed(x, ino) != (c.caps != nil) {
						t.Errorf("%s (%+v, %v) %s: capability %x", c.name, opt, readErr, when, got)
					}
				}
				var crashed *fixture
				x, ino := duringFill(t, opt, readErr, func(x *fixture, ino Ino) {
					must(t, c.do(x, ino))
					check(x, ino, "meanwhile")
					crashed = afterCrash(x)
				})
				check(crashed, crashed.mustIno("big"), "after a crash")
				must(t, fsWrite(crashed, "big", "data", 0)) // which begins anew
				if c.caps != nil {
					must(t, crashed.fs.SetXattr(crashed.mustIno("big"), xattrCapability, c.caps, 0, false)) // a write drops it
				}
				_, err := crashed.fs.SetAttr(crashed.mustIno("big"), SetAttr{Valid: SetMtime, Mtime: c.mtime})
				must(t, err)
				crashed.remount()
				check(crashed, crashed.mustIno("big"), "written to after a crash")
				check(x, ino, "afterwards")
				x.remount()
				check(x, x.mustIno("big"), "remounted")
			}
		}
	}
}
