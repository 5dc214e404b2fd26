package bundle

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A process that is started has each descriptor until it executes its program, as those
// of a build's other targets are while one goes on.
func TestALockEndsThoughAProcessIsBeingStarted(t *testing.T) {
	path := t.TempDir()
	if err := os.Mkdir(filepath.Join(path, stateDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func(string) (*dir, error){"a bundle": openDir, "a plain one": lockPlain} {
		first, err := open(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := open(path); !errors.Is(err, ErrInUse) {
			t.Errorf("%s is locked twice: %v", name, err)
		}
		started, err := unix.Dup(int(first.lock.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		if err := first.close(); err != nil {
			t.Error(err)
		}
		second, err := open(path)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := errors.Join(second.close(), unix.Close(started)); err != nil {
			t.Error(err)
		}
	}
}

func TestALookAtTheMountKeepsNoDaemonFromIt(t *testing.T) {
	path := t.TempDir()
	if err := os.Mkdir(filepath.Join(path, stateDir), 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := lookDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	look, err := d.inner.lasting(mountedName, unix.O_RDWR)
	if err == nil {
		err = unix.Flock(int(look.Fd()), unix.LOCK_SH)
	}
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, func() { _ = look.Close() })
	held, err := d.holdMounted()
	if err != nil {
		t.Fatal(err)
	}
	if mounted, err := d.isMounted(); !mounted || err != nil {
		t.Errorf("mounted: %v, %v", mounted, err)
	}
	if second, err := d.holdMounted(); !errors.Is(err, ErrMounted) {
		t.Errorf("a second daemon has %v, %v", second, err)
	}
	if err := unlock(held); err != nil {
		t.Error(err)
	}
}
