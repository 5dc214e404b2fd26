package cas

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// heldImage is an image that a hold of "/a/bundle" needs, and no tag leads to.
func heldImage(t *testing.T, l *Layout) (d ispec.Descriptor, release func() error) {
	t.Helper()
	d = blank(t, l, "a").Path.Descriptor()
	if _, err := l.RemoveRef(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	release, err := l.Hold(ctx, Hold{Owner: "/a/bundle", Manifests: []ispec.Descriptor{d}})
	if err != nil {
		t.Fatal(err)
	}
	return d, release
}

func records(t *testing.T, l *Layout) int {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(l.Path(), holdsDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestWhatIsHeldIsNoGarbage(t *testing.T) {
	nothing := func(Hold) ([]ispec.Descriptor, error) { return nil, nil }
	for name, c := range map[string]struct {
		live          bool
		opt           GCOptions
		blobs, record int // removed; left
	}{
		"its process lives": {true, GCOptions{}, 0, 1},
		"its process lives, and its owner cannot be seen":   {true, GCOptions{Needs: nothing}, 0, 1},
		"its process has ended, and nobody knows its owner": {false, GCOptions{}, 0, 1},
		"its process has ended, and its owner is gone":      {false, GCOptions{Needs: nothing}, 2, 0},
		"gc is forced": {true, GCOptions{Force: true}, 2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLayout(t)
			_, release := heldImage(t, l)
			if !c.live {
				if err := release(); err != nil {
					t.Fatal(err)
				}
			}
			res, err := l.GC(ctx, c.opt)
			if err != nil || res.Blobs != c.blobs || records(t, l) != c.record {
				t.Errorf("%+v, %v, %d records; want %d blobs, %d records", res, err, records(t, l), c.blobs, c.record)
			}
			if c.live {
				if err := release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestAnOwnerMayNeedOtherManifestsByNow(t *testing.T) {
	l := newLayout(t)
	_, release := heldImage(t, l)
	if err := release(); err != nil {
		t.Fatal(err)
	}
	later := blank(t, l, "later")
	if _, err := l.Commit(ctx, later, Change{History: []ispec.History{{Author: "x"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.RemoveRef(ctx, "later"); err != nil {
		t.Fatal(err)
	}
	res, err := l.GC(ctx, GCOptions{Needs: func(h Hold) ([]ispec.Descriptor, error) {
		if h.Owner != "/a/bundle" || len(h.Manifests) != 1 {
			t.Errorf("asked about %+v", h)
		}
		return []ispec.Descriptor{later.Path.Descriptor()}, nil
	}})
	if err != nil || res.Blobs != 2 { // the blanks are the same; what Commit made is nobody's
		t.Errorf("%+v, %v", res, err)
	}
}

func TestARecordThatCannotBeReadStopsGCWhileItIsInUse(t *testing.T) {
	l := newLayout(t)
	_, release := heldImage(t, l)
	name := filepath.Join(l.Path(), holdName("/a/bundle"))
	if err := os.WriteFile(name, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if res, err := l.GC(ctx, GCOptions{}); !errors.Is(err, ErrBusy) || res.Blobs != 0 {
		t.Errorf("in use: %+v, %v", res, err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if res, err := l.GC(ctx, GCOptions{}); err != nil || res.Blobs != 2 || records(t, l) != 0 {
		t.Errorf("not in use: %+v, %v, %d records", res, err, records(t, l))
	}
}

func TestAHoldIsTakenUpAgainAndReplaced(t *testing.T) {
	l := newLayout(t)
	d, first := heldImage(t, l)
	second, err := l.Hold(ctx, Hold{Owner: "/a/bundle", Manifests: []ispec.Descriptor{d}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(first(), second()); err != nil {
		t.Fatal(err)
	}
	third, err := l.Hold(ctx, Hold{Owner: "/a/bundle"})
	if err != nil {
		t.Fatal(err)
	}
	if res, err := l.GC(ctx, GCOptions{}); err != nil || res.Blobs != 2 || records(t, l) != 1 {
		t.Errorf("%+v, %v, %d records", res, err, records(t, l))
	}
	if err := third(); err != nil {
		t.Error(err)
	}
}

func TestGCWaitsForOthersAsLongAsItIsTold(t *testing.T) {
	l := newLayout(t)
	release, err := l.Pin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.GC(ctx, GCOptions{Wait: 30 * time.Millisecond}); !errors.Is(err, ErrBusy) {
		t.Errorf("pinned: %v", err)
	}
	time.AfterFunc(100*time.Millisecond, func() { _ = release() })
	if _, err := l.GC(ctx, GCOptions{Wait: time.Minute}); err != nil {
		t.Errorf("after the pin went: %v", err)
	}
	// A stock umoci that is writing holds its directory, and nothing else.
	other, err := Open(l.Path())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.NewBlob(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := l.GC(ctx, GCOptions{Wait: 30 * time.Millisecond}); !errors.Is(err, ErrBusy) {
		t.Errorf("written to: %v", err)
	}
	time.AfterFunc(100*time.Millisecond, func() { _ = other.Close() })
	if _, err := l.GC(ctx, GCOptions{Wait: time.Minute}); err != nil {
		t.Errorf("after the writer went: %v", err)
	}
}
