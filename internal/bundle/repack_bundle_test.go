package bundle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/cas"
	"github.com/umoci-mount/umoci-mount/internal/imageconfig"
	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

// unmounted is a bundle that is not mounted, and its layout with the tag "base".
type unmounted struct {
	t      *testing.T
	bundle string
	layout string
	cache  string
}

// newUnmounted makes a bundle of an image of one layer.
func newUnmounted(t *testing.T, recs ...layer.Record) *unmounted {
	t.Helper()
	dir := t.TempDir()
	u := &unmounted{t, filepath.Join(dir, "bundle"), filepath.Join(dir, "oci"), filepath.Join(dir, "cache")}
	ctx := context.Background()
	l, err := cas.Create(u.layout)
	u.must(err)
	blank, err := l.Blank(ctx, ispec.Platform{OS: "linux", Architecture: "amd64"}, time.Unix(0, 0).UTC())
	u.must(err)
	img, err := l.Image(ctx, blank)
	u.must(err)
	blob, err := l.NewBlob(ctx)
	u.must(err)
	w := layer.NewBlobWriter(blob, layer.CompressGzip)
	_, err = layer.WriteDiff(w, func(yield func(layer.Record, error) bool) {
		for _, r := range recs {
			if !yield(r, nil) {
				return
			}
		}
	}, layer.DiffOptions{})
	u.must(errors.Join(err, w.Close()))
	res, err := w.Result()
	u.must(err)
	_, _, err = blob.Commit(ctx)
	u.must(errors.Join(err, blob.Close()))
	path, err := l.Commit(ctx, img, cas.Change{Layers: []cas.NewLayer{{
		Digest: res.Digest, Size: res.Size, DiffID: res.DiffID, PlainSize: res.PlainSize, MediaType: ispec.MediaTypeImageLayerGzip,
	}}})
	u.must(err)
	u.must(l.SetRef(ctx, "base", path.Root()))
	if img, err = l.Image(ctx, path); err != nil {
		t.Fatal(err)
	}
	m := &mounting{opt: MountOptions{Bundle: u.bundle}}
	u.must(m.makeDir())
	d := m.dir
	u.must(d.writeState(&State{
		Layout: u.layout, Tag: "base", Manifest: path.Descriptor(), Layers: stateLayers(img),
		Options: StateOptions{CacheDir: u.cache, Rootless: os.Geteuid() != 0},
	}))
	u.must(d.writeUmoci(&umociMeta{From: walkPath{path.Walk}}))
	u.must(errors.Join(d.close(), l.Close()))
	return u
}

func (u *unmounted) must(err error) {
	u.t.Helper()
	if err != nil {
		u.t.Fatal(err)
	}
}

// edit changes the bundle's tree.
func (u *unmounted) edit(f func(fs *overlay.FS)) {
	u.t.Helper()
	v, err := OpenView(context.Background(), u.bundle, "", nil)
	u.must(err)
	fs, err := v.dir.openOverlay(v.Base, &v.State.Options, false, nil)
	u.must(err)
	f(fs)
	u.must(errors.Join(fs.Close(), v.Close()))
}

// write makes or overwrites a file.
func (u *unmounted) write(name, data string) {
	u.t.Helper()
	u.edit(func(fs *overlay.FS) {
		dir, base := filepath.Split(name)
		parent, err := fs.LookupPath(filepath.Clean(dir))
		u.must(err)
		var h *overlay.Handle
		if a, err := fs.LookupPath(name); err == nil {
			h, err = fs.Open(a.Ino, unix.O_WRONLY|unix.O_TRUNC)
			u.must(err)
		} else {
			h, _, err = fs.Create(parent.Ino, base, unix.O_WRONLY, 0o644, overlay.Caller{})
			u.must(err)
		}
		_, err = h.WriteAt([]byte(data), 0)
		u.must(errors.Join(err, h.Close()))
	})
}

func (u *unmounted) options(tag string) RepackOptions {
	return RepackOptions{Bundle: u.bundle, Layout: u.layout, Tag: tag, History: imageconfig.History{Now: time.Unix(1e9, 0)}}
}

func (u *unmounted) diff() []string {
	u.t.Helper()
	list, err := Diff(context.Background(), u.bundle, nil)
	u.must(err)
	var out []string
	for _, c := range list {
		out = append(out, c.Kind+" "+c.Path)
	}
	return out
}

func someRecords() []layer.Record {
	at := layer.Timespec{Sec: 1e9}
	dir := layer.Attr{Mode: dirMode, Nlink: 2, Mtime: at}
	file := layer.Attr{Mode: fileMode, Nlink: 1, Size: 3, Mtime: at}
	return []layer.Record{
		{Path: ".", Attr: dir},
		{Path: "etc", Attr: dir},
		{Path: "etc/conf", Attr: file, Content: strings.NewReader("old")},
		{Path: "etc/keep", Attr: file, Content: strings.NewReader("abc")},
	}
}

func TestARepackThatFailsLeavesTagAndBundleAsTheyWere(t *testing.T) {
	ctx := context.Background()
	u := newUnmounted(t, someRecords()...)
	u.write("etc/conf", "new")
	u.write("etc/more", "more")
	boom := errors.New("no more")
	state, changes := u.snapshot(), u.diff()
	for n := 1; ; n++ {
		opt := u.options("new")
		steps := 0
		opt.fault = func(string) error {
			if steps++; steps == n {
				return boom
			}
			return nil
		}
		_, err := Repack(ctx, opt)
		if err == nil {
			if n < 10 {
				t.Errorf("only %d steps", n)
			}
			break
		}
		if !errors.Is(err, boom) {
			t.Fatalf("step %d: %v", n, err)
		}
		if now := u.snapshot(); now != state {
			t.Fatalf("step %d, %v: the bundle or the old tag changed", n, err)
		}
		if got := u.diff(); !slices.Equal(got, changes) {
			t.Fatalf("step %d: diff is %q", n, got)
		}
		u.wholeOrNothing("new")
	}
	u.wholeOrNothing("new")
}

// snapshot is what decides about the old tag and the bundle.
func (u *unmounted) snapshot() string {
	u.t.Helper()
	l, err := cas.Open(u.layout)
	u.must(err)
	path, err := l.Resolve(context.Background(), "base", cas.ResolveOptions{})
	u.must(errors.Join(err, l.Close()))
	all := path.Root().Digest.String()
	for _, name := range []string{umociName, filepath.Join(stateDir, stateName)} {
		b, err := os.ReadFile(filepath.Join(u.bundle, name))
		u.must(err)
		all += string(b)
	}
	return all
}

// wholeOrNothing fails where a tag leads to an image of which something is missing.
func (u *unmounted) wholeOrNothing(tag string) {
	u.t.Helper()
	ctx := context.Background()
	l, err := cas.Open(u.layout)
	u.must(err)
	defer func() { u.must(l.Close()) }()
	path, err := l.Resolve(ctx, tag, cas.ResolveOptions{})
	if errors.Is(err, cas.ErrTagNotFound) {
		return
	}
	u.must(err)
	img, err := l.Image(ctx, path)
	u.must(err)
	for _, d := range img.Manifest.Layers {
		f, err := l.Blob(ctx, d.Digest)
		u.must(err)
		u.must(f.Close())
	}
}

func TestTheFirstMountOfANewLayerIsWarm(t *testing.T) {
	ctx := context.Background()
	u := newUnmounted(t, someRecords()...)
	u.write("etc/conf", "new")
	opt := u.options("new")
	opt.RefreshBundle = true
	res, err := Repack(ctx, opt)
	u.must(err)
	found, err := filepath.Glob(filepath.Join(u.cache, "blobs", "*", res.Layer.Digest.Encoded()+".*"))
	if err != nil || len(found) < 2 {
		t.Errorf("in the cache: %q, %v", found, err)
	}
}

func TestARepackOfAnotherBaseLayoutIsRefused(t *testing.T) {
	u := newUnmounted(t, someRecords()...)
	other := newUnmounted(t)
	opt := u.options("x")
	opt.Layout = other.layout
	if _, err := Repack(context.Background(), opt); !errors.Is(err, ErrOtherLayout) {
		t.Errorf("error %v", err)
	}
	opt = u.options("-bad-")
	if _, err := Repack(context.Background(), opt); !errors.Is(err, cas.ErrBadTag) {
		t.Errorf("error %v", err)
	}
	opt = u.options("x")
	opt.Bundle = t.TempDir()
	if _, err := Repack(context.Background(), opt); !errors.Is(err, ErrNotBundle) {
		t.Errorf("error %v", err)
	}
}

func TestAChangeInTheOtherDirectionIsFoundAfterARefresh(t *testing.T) {
	ctx := context.Background()
	u := newUnmounted(t, someRecords()...)
	u.edit(func(fs *overlay.FS) {
		dir, err := fs.LookupPath("etc")
		u.must(err)
		u.must(fs.Unlink(dir.Ino, "keep"))
	})
	opt := u.options("without")
	opt.RefreshBundle, opt.FullCheck = true, true
	_, err := Repack(ctx, opt)
	u.must(err)
	if got := u.diff(); len(got) != 0 {
		t.Fatalf("diff is %q after a refresh", got)
	}
	// The upper goes: the mounted image shows again, which the refreshed one has not.
	u.must(os.RemoveAll(filepath.Join(u.bundle, upperName)))
	got := u.diff()
	if want := []string{"C /etc", "A /etc/keep"}; !slices.Equal(got, want) {
		t.Errorf("diff is %q, want %q", got, want)
	}
	opt = u.options("with")
	opt.FullCheck = true
	res, err := Repack(ctx, opt)
	u.must(err)
	if res.Entries != 2 || res.Layer == nil {
		t.Errorf("got %+v", res)
	}
}

func TestADiffShowsModesAsLsDoes(t *testing.T) {
	for mode, want := range map[uint32]string{
		unix.S_IFREG | 0o644:   "-rw-r--r--",
		unix.S_IFDIR | 0o1777:  "drwxrwxrwt",
		unix.S_IFDIR | 0o1770:  "drwxrwx--T",
		unix.S_IFREG | 0o6755:  "-rwsr-sr-x",
		unix.S_IFREG | 0o6644:  "-rwSr-Sr--",
		unix.S_IFLNK | 0o777:   "lrwxrwxrwx",
		unix.S_IFCHR | 0o620:   "crw--w----",
		unix.S_IFBLK | 0o660:   "brw-rw----",
		unix.S_IFIFO:           "p---------",
		unix.S_IFSOCK | 0o0001: "s--------x",
	} {
		if got := (&Change{Mode: mode}).ModeString(); got != want {
			t.Errorf("%#o is %q, want %q", mode, got, want)
		}
	}
}

func TestAnOwnerInARootlessBundleIsRead(t *testing.T) {
	for data, want := range map[string]string{
		"":                                     "0:0 <nil>",
		"\x08\xe0\x07\x10\x7b":                 "992:123 <nil>",
		"\x08\xff\xff\xff\xff\x0f\x10\xc8\x03": "0:456 <nil>",
		"\x08\x62\x10\xff\xff\xff\xff\x0f":     "98:0 <nil>",
		"\x08\xe8\x07\x10\xe9\x07":             "1000:1001 <nil>",
		"\x08":                                 "0:0 malformed",
		"\x08\xff\xff\xff\xff\x1f":             "0:0 malformed",
		"\x18\x01":                             "0:0 malformed",
		"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01": "0:0 malformed",
	} {
		uid, gid, err := rootlessOwner(data)
		if got := fmt.Sprintf("%d:%d %v", uid, gid, err); !strings.HasPrefix(got, want) {
			t.Errorf("%q is %s, want %s", data, got, want)
		}
	}
}

func FuzzParseRootless(f *testing.F) {
	f.Add([]byte("\x08\xe0\x07\x10\x7b"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := rootlessOwner(string(b)); err != nil && !errors.Is(err, overlay.ErrRootlessOwner) {
			t.Error(err)
		}
	})
}
