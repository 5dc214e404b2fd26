package build

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"
)

func TestBuildsThatBeginAndEndAtOnceLeaveNothing(t *testing.T) {
	base := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				w, err := newWorkdir(t.Context(), base, slog.New(slog.DiscardHandler))
				if err == nil {
					err = w.remove(t.Context())
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if left, err := os.ReadDir(base); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestWhatAKilledBuildLeftIsRemoved(t *testing.T) {
	base := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	killed, err := newWorkdir(t.Context(), base, log)
	if err != nil {
		t.Fatal(err)
	}
	alive, err := newWorkdir(t.Context(), base, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := killed.lock.Close(); err != nil { // as the kernel does for it
		t.Fatal(err)
	}
	next, err := newWorkdir(t.Context(), base, log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(killed.path); !os.IsNotExist(err) {
		t.Errorf("a killed build's directory is still there: %v", err)
	}
	for _, w := range []*workdir{alive, next} {
		if _, err := os.Stat(w.path); err != nil {
			t.Errorf("a live build's directory is gone: %v", err)
		}
		if err := w.remove(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// Who has the lock may be ending mounts.
func TestAWaitForTheWorkDirectoryEndsWithItsContext(t *testing.T) {
	base := t.TempDir()
	held, err := lockDir(base)
	if err != nil || held == nil {
		t.Fatal(held, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	log := slog.New(slog.DiscardHandler)
	if _, err := newWorkdir(ctx, base, log); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while it is held: %v", err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	w, err := newWorkdir(t.Context(), base, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.remove(t.Context()); err != nil {
		t.Error(err)
	}
}
