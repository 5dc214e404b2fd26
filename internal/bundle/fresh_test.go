package bundle

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// newStaged is a bundle's directory with a stage.
func newStaged(t *testing.T) (d, stage *dir) {
	t.Helper()
	path := t.TempDir()
	if err := os.Mkdir(filepath.Join(path, stateDir), 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := lookDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if stage, err = d.makeStage(); err == nil {
		err = stage.makeUpper()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(stage.close(), d.close()) })
	return d, stage
}

// Its own command was killed, and the other one's may not be complete.
func TestAStageThatAnotherMountHasMadeIsNotPublished(t *testing.T) {
	d, first := newStaged(t)
	if err := d.inner.removeAll(freshName); err != nil {
		t.Fatal(err)
	}
	second, err := d.makeStage()
	if err != nil {
		t.Fatal(err)
	}
	defer second.close()
	if err := d.publish(first); !errors.Is(err, ErrInUse) || d.top.exists(upperName) || !d.inner.exists(freshName) {
		t.Errorf("published: %v", err)
	}
}

// The daemon goes on where the command that started it was killed.
func TestABundleThatItsDaemonReplacesIsInUse(t *testing.T) {
	d, _ := newStaged(t)
	if err := d.inner.rename(freshName, nextName); err != nil {
		t.Fatal(err)
	}
	held, err := d.holdMounted()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openDir(d.path); !errors.Is(err, ErrInUse) || d.top.exists(upperName) {
		t.Errorf("opened: %v", err)
	}
	if err := unlock(held); err != nil {
		t.Fatal(err)
	}
	now, err := openDir(d.path)
	if err != nil {
		t.Fatal(err)
	}
	if !d.top.exists(upperName) || d.inner.exists(nextName) {
		t.Error("what the daemon has left is not finished")
	}
	if err := now.close(); err != nil {
		t.Error(err)
	}
}
