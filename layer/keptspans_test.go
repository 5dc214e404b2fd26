package layer

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// keeper is a layer whose decoded spans are kept in a cache of their own.
type keeper struct {
	t     *testing.T
	in    indexed
	plain []byte
	cache *Cache
	log   bytes.Buffer
	dir   string
}

func newKeeper(t *testing.T, src Source, plain []byte) *keeper {
	t.Helper()
	k := &keeper{t: t, plain: plain, dir: t.TempDir()}
	var err error
	if k.in, err = indexSource(t, src); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(k.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	if k.cache, err = OpenCache(root, CacheOptions{Log: slog.New(slog.NewTextHandler(&k.log, nil))}); err != nil {
		t.Fatal(err)
	}
	return k
}

// open opens the layer with little memory, so that most reads decode or go to the disk.
func (k *keeper) open(keep int64) Blob {
	k.t.Helper()
	spans := newSpanCache(1)
	spans.disk = k.cache.newSpanDisk(keep)
	if spans.disk != nil {
		spans.disk.writers = make(chan struct{}, 64) // none is left out for want of a writer
	}
	return k.in.open(k.t, spans)
}

// readAll reads all in order and closes; error says whether that must fail.
func (k *keeper) readAll(keep int64) error {
	k.t.Helper()
	b := k.open(keep)
	got, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	if !bytes.Equal(got, k.plain[:len(got)]) {
		k.t.Error("wrong data")
	}
	return errors.Join(err, b.Close())
}

func (k *keeper) must(err error) {
	k.t.Helper()
	if err != nil {
		k.t.Fatal(err)
	}
}

func (k *keeper) path() string { return filepath.Join(k.dir, keptPath(k.in.src.Digest)) }

// spoil makes the stored layer unreadable, so that nothing can be decoded until it is
// restored.
func (k *keeper) spoil() (restore func()) {
	k.t.Helper()
	name := k.in.side
	if name == "" {
		f, err := k.in.src.Open()
		k.must(err)
		name = f.Name()
		f.Close()
	}
	stored, err := os.ReadFile(name)
	k.must(err)
	k.must(os.WriteFile(name, make([]byte, len(stored)), 0o644))
	return func() { k.must(os.WriteFile(name, stored, 0o644)) }
}

const much = 1 << 30

func TestWhatWasDecodedIsReadFromTheDisk(t *testing.T) {
	plain := mixed(31, 3<<20)
	for name, src := range layerForms(t, plain) {
		t.Run(name, func(t *testing.T) {
			k := newKeeper(t, src, plain)
			if k.in.ix.kind == blobRaw {
				k.must(k.readAll(much))
				if _, err := os.Stat(k.path()); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("a layer that is not compressed is kept too: %v", err)
				}
				return
			}
			k.must(k.readAll(much))
			k.spoil()
			k.must(k.readAll(much))
			b := k.open(much)
			mustEqualAt(t, b, plain, 31, 40)
			k.must(b.Close())
			if k.readAll(0) == nil {
				t.Error("a spoilt layer is read without what is kept")
			}
		})
	}
}

func TestWhatIsKeptAndDamagedIsDecodedAgain(t *testing.T) {
	plain := mixed(32, 2<<20)
	k := newKeeper(t, storedLayer(t, mtGzip, gz(t, plain, 6), plain), plain)
	k.must(k.readAll(much))
	good, err := os.ReadFile(k.path())
	k.must(err)
	part := 3 // of the way so far to the next byte that is damaged
	if testing.Short() {
		part = 1
	}
	for at := 0; at < len(good); at += min(at/part+1, 100_000) {
		k.must(os.WriteFile(k.path(), flipped(good, at), 0o600))
		k.must(k.readAll(much))
		restore := k.spoil() // what was damaged was decoded and kept again
		if err := k.readAll(much); err != nil {
			t.Errorf("byte %d: %v", at, err)
		}
		restore()
	}
	for name, damage := range map[string]func() error{
		"empty":              func() error { return os.Truncate(k.path(), 0) },
		"cut":                func() error { return os.Truncate(k.path(), int64(len(good)/2)) },
		"no data, power cut": func() error { return zero(k.path(), keptTable+keptAlign, len(good)) },
		"no table":           func() error { return zero(k.path(), keptTable, keptTable+keptAlign) },
		"a directory":        func() error { return errors.Join(os.Remove(k.path()), os.Mkdir(k.path(), 0o755)) },
		"a fifo":             func() error { return errors.Join(os.Remove(k.path()), unix.Mkfifo(k.path(), 0o600)) },
		"a link elsewhere":   func() error { return errors.Join(os.Remove(k.path()), os.Symlink("/etc/passwd", k.path())) },
		"others' to write":   func() error { return os.Chmod(k.path(), 0o666) },
	} {
		k.must(os.RemoveAll(k.path()))
		k.must(os.WriteFile(k.path(), good, 0o600))
		k.must(damage())
		if err := k.readAll(much); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatOthersCouldHaveWrittenIsNotBelieved(t *testing.T) {
	plain := mixed(37, 1<<20)
	k := newKeeper(t, storedLayer(t, mtGzip, gz(t, plain, 6), plain), plain)
	k.must(k.readAll(much))
	k.spoil()
	k.must(os.Chmod(k.path(), 0o622))
	if k.readAll(much) == nil {
		t.Error("read from a file that others can write")
	}
	k.must(os.Chmod(k.path(), 0o600))
	k.must(k.readAll(much))
}

func zero(name string, from, to int) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, to-from), int64(from))
	return errors.Join(err, f.Close())
}

func TestWhatIsKeptStaysWithinItsBound(t *testing.T) {
	plain := mixed(33, 6<<20)
	k := newKeeper(t, storedLayer(t, mtGzip, gz(t, plain, 6), plain), plain)
	const bound = 2 << 20
	k.must(k.readAll(bound))
	fi, err := os.Stat(k.path())
	k.must(err)
	if n := onDisk(fi); n > bound+64<<10 || n < bound/4 {
		t.Errorf("%d bytes are kept, the bound is %d", n, bound)
	}
	k.spoil()
	if k.readAll(bound) == nil {
		t.Error("all of it is kept")
	}

	// Another layer takes the room, since the first is not in use any more.
	other := newKeeper(t, storedLayer(t, mtGzip, gz(t, plain, 1), plain), plain)
	other.cache, other.dir = k.cache, k.dir
	long := time.Now().Add(-time.Hour)
	k.must(os.Chtimes(k.path(), long, long))
	inUse := k.open(bound) // holds what is kept
	k.must(other.readAll(bound))
	if _, err := os.Stat(k.path()); err != nil {
		t.Errorf("what is in use made room: %v", err)
	}
	k.must(inUse.Close())
	k.must(os.Chtimes(k.path(), long, long))
	k.must(other.readAll(bound))
	if _, err := os.Stat(k.path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was used longest ago is still there: %v", err)
	}
}

func TestManyKeepTheSameLayerAtOnce(t *testing.T) {
	plain := mixed(34, 3<<20)
	k := newKeeper(t, storedLayer(t, mtGzip, gz(t, plain, 6), plain), plain)
	var wg sync.WaitGroup
	for i := range 4 {
		b := k.open(much)
		wg.Go(func() {
			mustEqualAt(t, b, plain, uint64(i), 40)
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	k.must(k.readAll(much))
	k.spoil()
	k.must(k.readAll(much))
}

func TestWhatCannotBeKeptIsReadAllTheSame(t *testing.T) {
	plain := mixed(35, 2<<20)
	k := newKeeper(t, storedLayer(t, mtGzip, gz(t, plain, 6), plain), plain)
	k.must(os.WriteFile(filepath.Join(k.dir, "blobs"), nil, 0o644)) // no directory can be there
	k.must(k.readAll(much))
	if n := strings.Count(k.log.String(), "not kept"); n != 1 {
		t.Errorf("said %d times why nothing is kept:\n%s", n, k.log.String())
	}
}

func TestWhatIsKeptIsListedAndPrunedWithItsLayer(t *testing.T) {
	plain := mixed(36, 2<<20)
	k := newKeeper(t, storedLayer(t, mtGzip, gz(t, plain, 6), plain), plain)
	k.must(k.readAll(much))
	fi, err := os.Stat(k.path())
	k.must(err)
	entries, err := k.cache.Entries()
	k.must(err)
	if len(entries) != 1 || entries[0].Kind != EntryLayer || entries[0].Name != k.in.src.Digest.String() || entries[0].Bytes != onDisk(fi) {
		t.Errorf("%d bytes on disk are listed as %+v", onDisk(fi), entries)
	}
	prune := func() {
		if _, err := k.cache.Prune(t.Context(), time.Now(), PruneOptions{Before: time.Now().Add(time.Hour), MaxBytes: -1}); err != nil {
			t.Fatal(err)
		}
	}
	b := k.open(much)
	prune()
	if _, err := os.Stat(k.path()); err != nil {
		t.Errorf("pruned while in use: %v", err)
	}
	k.must(b.Close())
	prune()
	if _, err := os.Stat(k.path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("not pruned: %v", err)
	}
}
