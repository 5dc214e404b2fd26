package layer

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// sourceOf stores a layer's plain stream as a blob in dir.
func sourceOf(t testing.TB, dir string, plain []byte, mediaType string) Source {
	t.Helper()
	stored := plain
	var z bytes.Buffer
	var w io.WriteCloser
	switch mediaType {
	case ispec.MediaTypeImageLayerGzip:
		w = gzip.NewWriter(&z)
	case ispec.MediaTypeImageLayerZstd: // one frame, of no known length
		var err error
		if w, err = zstd.NewWriter(&z); err != nil {
			t.Fatal(err)
		}
	}
	if w != nil {
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		mustClose(t, w)
		stored = z.Bytes()
	}
	src := Source{Digest: digest.FromBytes(stored), DiffID: digest.FromBytes(plain), Size: int64(len(stored)), MediaType: mediaType}
	path := filepath.Join(dir, src.Digest.Encoded())
	if err := os.WriteFile(path, stored, 0o644); err != nil {
		t.Fatal(err)
	}
	src.Open = func() (*os.File, error) { return os.Open(path) }
	return src
}

// cacheIn opens a cache in dir.
func cacheIn(t testing.TB, dir string) *Cache {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := root.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := OpenCache(root, CacheOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// openFDs is how many descriptors this process has.
func openFDs(t testing.TB) int {
	t.Helper()
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(ents)
}

func mustOpen(t testing.TB, c *Cache, opt IndexOptions, layers ...Source) *Image {
	t.Helper()
	im, err := c.Open(context.Background(), layers, opt)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func mustClose(t testing.TB, c io.Closer) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func testLayers(t testing.TB, dir string) []Source {
	big := strings.Repeat("some text that goes on and on\n", 20000)
	return []Source{
		sourceOf(t, dir, tarOf(t, tDir("d"), tReg("d/a", big), tReg("d/b", "b")), ispec.MediaTypeImageLayerGzip),
		sourceOf(t, dir, tarOf(t, tWhite("d/", "b"), tReg("d/c", "c"), tLink("e", "d/a")), ispec.MediaTypeImageLayer),
	}
}

// cacheFiles lists what lies in a cache directory, with inode numbers.
func cacheFiles(t testing.TB, dir string) map[string]uint64 {
	t.Helper()
	out := make(map[string]uint64)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return err
		}
		if st.Mode&0o777 != 0o444 {
			t.Errorf("%s has mode %o", path, st.Mode)
		}
		out[filepath.Ext(path)+" "+filepath.Base(path)] = st.Ino
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestASecondOpenOfAnImageIndexesNothing(t *testing.T) {
	fds := openFDs(t)
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := OpenCache(root, CacheOptions{})
	if err != nil {
		t.Fatal(err)
	}
	layers := testLayers(t, t.TempDir())
	var told atomic.Int64
	opt := IndexOptions{Progress: func(_ Source, n int64) { told.Add(n) }, SpanCacheBytes: 1 << 20}
	im := mustOpen(t, c, opt, layers...)
	first := dump(walkImage(t, im))
	mustClose(t, im)
	if want := layers[0].Size + layers[1].Size; told.Load() != want {
		t.Errorf("progress of %d bytes, want %d", told.Load(), want)
	}
	files := cacheFiles(t, dir)
	if len(files) != 5 {
		t.Errorf("cache holds %v", files)
	}

	told.Store(0)
	im = mustOpen(t, c, opt, layers...)
	if second := dump(walkImage(t, im)); second != first {
		t.Errorf("got\n%s\nwant\n%s", second, first)
	}
	mustClose(t, im)
	if told.Load() != 0 {
		t.Errorf("progress of %d bytes on a warm open", told.Load())
	}
	if u, err := c.Usage(); err != nil || u.Blobs != 2 || u.Trees != 1 || u.Bytes == 0 {
		t.Errorf("usage %+v, %v", u, err)
	}
	mustClose(t, root)
	if n := openFDs(t); n != fds {
		t.Errorf("%d descriptors, %d before", n, fds)
	}
}

func TestBrokenCacheFilesAreMadeAgain(t *testing.T) {
	layers := testLayers(t, t.TempDir())
	dir := t.TempDir()
	c := cacheIn(t, dir)
	im := mustOpen(t, c, IndexOptions{}, layers...)
	want := dump(walkImage(t, im))
	mustClose(t, im)
	damage := map[string]func(path string) error{
		"deleted": os.Remove,
		"emptied": func(p string) error { return os.WriteFile(p, nil, 0o444) },
		"cut":     func(p string) error { return os.Truncate(p, 20) },
		"changed in a byte": func(p string) error {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			b[8]++
			return os.WriteFile(p, b, 0o444)
		},
		"writable by others": func(p string) error { return os.Chmod(p, 0o666) },
		"a fifo":             func(p string) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o444)) },
	}
	paths := []string{treePath(treeKey(layers, false)), tocPath(layers[0].Digest), indexPath(layers[0].Digest), indexPath(layers[1].Digest)}
	for how, hurt := range damage {
		for _, p := range paths {
			for _, withTree := range []bool{true, false} {
				t.Run(fmt.Sprint(how, " ", filepath.Ext(p), " ", withTree), func(t *testing.T) {
					full := filepath.Join(dir, p)
					if err := os.Chmod(full, 0o644); err != nil {
						t.Fatal(err)
					}
					if err := hurt(full); err != nil {
						t.Fatal(err)
					}
					if !withTree {
						_ = os.Remove(filepath.Join(dir, paths[0]))
					}
					im := mustOpen(t, c, IndexOptions{}, layers...)
					defer mustClose(t, im)
					if got := dump(walkImage(t, im)); got != want {
						t.Errorf("got\n%s\nwant\n%s", got, want)
					}
					im2 := mustOpen(t, c, IndexOptions{KeepDirlinks: true}, layers...)
					mustClose(t, im2)
					if err := os.Remove(filepath.Join(dir, treePath(treeKey(layers, true)))); err != nil {
						t.Error(err)
					}
					for name := range cacheFiles(t, dir) {
						if strings.HasPrefix(name, ".tmp") || strings.Contains(name, "sha256-") {
							t.Errorf("%s was left", name)
						}
					}
				})
			}
		}
	}
}

func TestFilesOfOtherUsersAreNotRead(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving files away takes root")
	}
	layers := testLayers(t, t.TempDir())
	dir := t.TempDir()
	c := cacheIn(t, dir)
	mustClose(t, mustOpen(t, c, IndexOptions{}, layers...))
	before := cacheFiles(t, dir)
	path := filepath.Join(dir, treePath(treeKey(layers, false)))
	if err := os.Chown(path, 4711, 4711); err != nil {
		t.Fatal(err)
	}
	mustClose(t, mustOpen(t, c, IndexOptions{}, layers...))
	after := cacheFiles(t, dir)
	if name := ".tree " + filepath.Base(path); before[name] == after[name] {
		t.Error("the tree was not made again")
	}
	if err := os.Chown(dir, 4711, 4711); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, root)
	if _, err := OpenCache(root, CacheOptions{}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("cache of another user: %v", err)
	}
}

// A wrong claim is found cold and warm: a cached tree of the claimed diffID must
// not lend itself to another blob.
func TestWrongDescriptorsAreRefusedColdAndWarm(t *testing.T) {
	blobs := t.TempDir()
	layers := testLayers(t, blobs)
	other := sourceOf(t, blobs, tarOf(t, tReg("evil", "x")), ispec.MediaTypeImageLayer)
	with := func(i int, edit func(*Source)) []Source {
		out := slices.Clone(layers)
		edit(&out[i])
		return out
	}
	swapped := func(s *Source) { s.Digest, s.Size, s.Open = other.Digest, other.Size, other.Open }
	tests := []struct {
		name   string
		layers []Source
		want   error
	}{
		{"another diffID", with(1, func(s *Source) { s.DiffID = other.DiffID }), ErrDiffID},
		{"another blob under a known diffID", with(1, swapped), ErrDiffID},
		{"other bytes", with(1, func(s *Source) { s.Digest = digest.FromString("x") }), ErrDigest},
		{"another size", with(0, func(s *Source) { s.Size++ }), ErrDigest},
		{"a malformed digest", with(0, func(s *Source) { s.Digest = "sha256:../../etc/passwd" }), ErrDigest},
		{"a malformed diffID", with(0, func(s *Source) { s.DiffID = "" }), ErrDiffID},
		{"no blob", with(0, func(s *Source) { s.Open = func() (*os.File, error) { return nil, fs.ErrNotExist } }), fs.ErrNotExist},
	}
	c := cacheIn(t, t.TempDir())
	for _, state := range []string{"cold", "warm"} {
		for _, tc := range tests {
			t.Run(tc.name+" "+state, func(t *testing.T) {
				fds := openFDs(t)
				im, err := c.Open(context.Background(), tc.layers, IndexOptions{})
				if !errors.Is(err, tc.want) {
					t.Errorf("got %v, want %v", err, tc.want)
				}
				if err == nil {
					mustClose(t, im)
				}
				if n := openFDs(t); n != fds {
					t.Errorf("%d descriptors, %d before", n, fds)
				}
			})
		}
		mustClose(t, mustOpen(t, c, IndexOptions{}, layers...))
		mustClose(t, mustOpen(t, c, IndexOptions{}, other))
	}
}

func TestDeletingABlobWhileItsImageIsOpenDoesNoHarm(t *testing.T) {
	blobs := t.TempDir()
	layers := testLayers(t, blobs)
	dir := t.TempDir()
	c := cacheIn(t, dir)
	for _, what := range []string{"cold", "warm"} {
		im := mustOpen(t, c, IndexOptions{}, layers...)
		if what == "warm" {
			if err := os.RemoveAll(blobs); err != nil {
				t.Fatal(err)
			}
		}
		if got := readPath(t, im, "e"); len(got) != 600000 {
			t.Errorf("%s: read %d bytes", what, len(got))
		}
		if got := readPath(t, im, "d/c"); got != "c" {
			t.Errorf("%s: read %q", what, got)
		}
		mustClose(t, im)
	}
}

func TestALayerListedTwiceIsOpenedOnce(t *testing.T) {
	layers := testLayers(t, t.TempDir())
	var opens atomic.Int32
	for i := range layers {
		open := layers[i].Open
		layers[i].Open = func() (*os.File, error) { opens.Add(1); return open() }
	}
	c := cacheIn(t, t.TempDir())
	im := mustOpen(t, c, IndexOptions{}, layers[0], layers[1], layers[0], layers[0])
	defer mustClose(t, im)
	if got := readPath(t, im, "d/b"); got != "b" {
		t.Errorf("read %q", got)
	}
	if opens.Load() != 2 {
		t.Errorf("%d opens", opens.Load())
	}
}

func TestAnImageWithoutLayersIsAnEmptyRoot(t *testing.T) {
	im := mustOpen(t, cacheIn(t, t.TempDir()), IndexOptions{})
	defer mustClose(t, im)
	if got := dump(walkImage(t, im)); got != untouchedRoot {
		t.Errorf("got %s", got)
	}
}

// Many openers of one cache: each layer is indexed once, nothing is left behind.
func TestProcessesThatShareACacheDoNotWorkTwice(t *testing.T) {
	layers := testLayers(t, t.TempDir())
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		c := cacheIn(t, dir)
		wg.Go(func() {
			im, err := c.Open(context.Background(), layers, IndexOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			readPath(t, im, "d/a")
			mustClose(t, im)
		})
	}
	wg.Wait()
	if files := cacheFiles(t, dir); len(files) != 5 {
		t.Errorf("cache holds %v", files)
	}
}

func TestWaitingForALockEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	layers := testLayers(t, t.TempDir())
	unlock, err := cacheIn(t, dir).lockBlob(context.Background(), layers[1].Digest)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := cacheIn(t, dir).Open(ctx, layers, IndexOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, mustOpen(t, cacheIn(t, dir), IndexOptions{}, layers...))
}

func TestLayerPathsNameEntriesAndWhiteouts(t *testing.T) {
	blobs := t.TempDir()
	src := sourceOf(t, blobs, tarOf(t, tDir("./"), tReg("b/../c", ""), tWhite("x/", "gone"), tOpaque("o/"), tReg("a/b", ""), tReg("a/b", "")), ispec.MediaTypeImageLayer)
	c := cacheIn(t, t.TempDir())
	for range 2 {
		got, err := c.LayerPaths(context.Background(), src)
		if want := []string{".", "a/b", "c", "o", "x/gone"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
}

func TestAMalformedLayerIsNamed(t *testing.T) {
	src := sourceOf(t, t.TempDir(), []byte(strings.Repeat("no tar ", 1000)), ispec.MediaTypeImageLayer)
	dir := t.TempDir()
	_, err := cacheIn(t, dir).Open(context.Background(), []Source{src}, IndexOptions{})
	if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), src.Digest.String()) {
		t.Errorf("got %v", err)
	}
	if files := cacheFiles(t, dir); len(files) != 0 {
		t.Errorf("left %v", files)
	}
}

// A long zstd frame cannot be read at random: it is transcoded once, and again
// when that copy is gone or damaged.
func TestALongZstdFrameIsTranscodedOnce(t *testing.T) {
	content := strings.Repeat("a line of a long file that compresses well\n", 1<<20)
	src := sourceOf(t, t.TempDir(), tarOf(t, tReg("long", content), tReg("z", "last")), ispec.MediaTypeImageLayerZstd)
	dir := t.TempDir()
	c := cacheIn(t, dir)
	opt := IndexOptions{SpanCacheBytes: 1 << 20}
	check := func(t *testing.T) {
		fds := openFDs(t)
		im := mustOpen(t, c, opt, src)
		if got := readPath(t, im, "z"); got != "last" {
			t.Errorf("read %q", got)
		}
		if got := readPath(t, im, "long"); got != content {
			t.Error("content differs")
		}
		mustClose(t, im)
		if n := openFDs(t); n != fds {
			t.Errorf("%d descriptors, %d before", n, fds)
		}
	}
	check(t)
	side := filepath.Join(dir, sidePath(src.Digest))
	first, err := os.Stat(side)
	if err != nil {
		t.Fatal(err)
	}
	check(t)
	if again, err := os.Stat(side); err != nil || !os.SameFile(first, again) {
		t.Errorf("transcoded again, %v", err)
	}
	for how, hurt := range map[string]func() error{
		"deleted": func() error { return os.Remove(side) },
		"cut":     func() error { return os.Truncate(side, 1000) },
	} {
		t.Run(how, func(t *testing.T) {
			if err := hurt(); err != nil {
				t.Fatal(err)
			}
			check(t)
			if fi, err := os.Stat(side); err != nil || fi.Size() != first.Size() {
				t.Errorf("not made again, %v", err)
			}
		})
	}
}

// What repack wrote is indexed already: PutIndex, and the cache reads no blob.
func TestAWrittenLayerIsWarmAtItsFirstMount(t *testing.T) {
	for _, c := range []Compression{CompressNone, CompressGzip, CompressZstd} {
		t.Run(c.String(), func(t *testing.T) {
			plain := tarOf(t, tDir("d"), tReg("d/a", strings.Repeat("some text\n", 300_000)), tReg("z", "last"))
			var stored bytes.Buffer
			w := NewBlobWriter(&stored, c)
			if _, err := w.Write(plain); err != nil {
				t.Fatal(err)
			}
			mustClose(t, w)
			res, err := w.Result()
			if err != nil {
				t.Fatal(err)
			}
			contents, err := ScanTOC(bytes.NewReader(plain))
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			cache := cacheIn(t, dir)
			if err := cache.PutIndex(t.Context(), res, contents); err != nil {
				t.Fatal(err)
			}
			before := cacheFiles(t, dir)
			path := filepath.Join(t.TempDir(), "blob")
			if err := os.WriteFile(path, stored.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			src := Source{
				Digest: res.Digest, DiffID: res.DiffID, Size: res.Size,
				MediaType: "application/vnd.oci.image.layer.v1.tar" + map[Compression]string{CompressGzip: "+gzip", CompressZstd: "+zstd"}[c],
				Open:      func() (*os.File, error) { return os.Open(path) },
			}
			im := mustOpen(t, cache, IndexOptions{SpanCacheBytes: 1 << 20}, src)
			defer mustClose(t, im)
			if got := readPath(t, im, "z"); got != "last" {
				t.Errorf("read %q", got)
			}
			if got := readPath(t, im, "d/a"); len(got) != 3_000_000 {
				t.Errorf("read %d bytes", len(got))
			}
			after := cacheFiles(t, dir)
			for name, ino := range before {
				if after[name] != ino {
					t.Errorf("%s was made again", name)
				}
			}
			if err := cache.PutIndex(t.Context(), res, contents[:len(contents)-1]); !errors.Is(err, ErrChecksum) {
				t.Errorf("a cut table of contents: %v", err)
			}
			res.Index = res.Index[:len(res.Index)-1]
			if err := cache.PutIndex(t.Context(), res, contents); err == nil {
				t.Error("a cut index was taken")
			}
		})
	}
}

// BenchmarkWarmOpen opens an image of 200 000 files that the cache knows.
func BenchmarkWarmOpen(b *testing.B) {
	src := sourceOf(b, b.TempDir(), bigStream(200_000), ispec.MediaTypeImageLayer)
	c := cacheIn(b, b.TempDir())
	mustClose(b, mustOpen(b, c, IndexOptions{}, src))
	for b.Loop() {
		im, err := c.Open(context.Background(), []Source{src}, IndexOptions{})
		if err != nil {
			b.Fatal(err)
		}
		if err := im.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
