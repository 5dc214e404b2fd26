package bundle

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/layer"
)

const (
	dirMode  = unix.S_IFDIR | 0o755
	fileMode = unix.S_IFREG | 0o644
)

// exampleBase has a bit of everything.
func exampleBase() *memTree {
	t := newMemTree()
	t.put("bin", unix.S_IFLNK|0o777, "usr/bin")
	t.put("etc", dirMode, "")
	t.put("etc/conf", fileMode, "one")
	t.put("etc/passwd", fileMode, "root")
	t.put("etc-x", fileMode, "")
	t.put("lib", dirMode, "")
	t.put("lib/a", fileMode, "shared")
	t.link("lib/a", "lib/b")
	t.put("lib/sub", dirMode, "")
	t.put("lib/sub/deep", fileMode, "deep")
	t.put("null", unix.S_IFCHR|0o666, "").attr.Rdev = unix.Mkdev(1, 3)
	return t
}

func TestALayerHoldsWhatChangedAndNothingElse(t *testing.T) {
	for name, c := range map[string]struct {
		edit  func(v *memTree)
		masks []string
		want  []string
	}{
		"nothing was done":                      {func(*memTree) {}, nil, nil},
		"a file was touched, then reverted":     {func(v *memTree) { *v.put("etc/conf", fileMode, "one") = *exampleBase().nodes["etc/conf"] }, nil, nil},
		"an inode was replaced by an equal one": {func(v *memTree) { v.put("etc/conf", fileMode, "one") }, nil, nil},
		"content changed but not the time":      {func(v *memTree) { v.nodes["etc/conf"].data = "two" }, nil, []string{"+ etc/conf"}},
		"only the mode changed":                 {func(v *memTree) { v.nodes["etc/conf"].attr.Mode = unix.S_IFREG | 0o600 }, nil, []string{"+ etc/conf"}},
		"only nanoseconds changed":              {func(v *memTree) { v.nodes["etc/conf"].attr.Mtime.Nsec = 7 }, nil, nil},
		"only the owner of a symlink changed":   {func(v *memTree) { v.nodes["bin"].attr.UID = 7 }, nil, []string{"+ bin"}},
		"a symlink got another target":          {func(v *memTree) { v.put("bin", unix.S_IFLNK|0o777, "usr/xin") }, nil, []string{"+ bin"}},
		"a device got another number":           {func(v *memTree) { v.nodes["null"].attr.Rdev = unix.Mkdev(1, 5) }, nil, []string{"+ null"}},
		"an extended attribute was added":       {func(v *memTree) { v.nodes["etc"].xattrs = map[string]string{"user.a": "1"} }, nil, []string{"+ etc"}},
		"a file was removed":                    {func(v *memTree) { v.remove("etc/conf") }, nil, []string{"- etc/conf"}},
		"a directory was removed":               {func(v *memTree) { v.remove("lib") }, nil, []string{"+ .", "- lib"}},
		"a directory became a file":             {func(v *memTree) { v.put("lib", fileMode, "x") }, nil, []string{"+ .", "+ lib"}},
		"a file became a directory":             {func(v *memTree) { v.put("etc/conf", dirMode, ""); v.put("etc/conf/x", fileMode, "") }, nil, []string{"+ etc", "+ etc/conf", "+ etc/conf/x"}},
		"a directory was made anew":             {func(v *memTree) { v.remove("etc"); v.put("etc", dirMode, ""); v.put("etc/new", fileMode, "") }, nil, []string{"- etc/conf", "+ etc/new", "- etc/passwd"}},
		"a directory was renamed":               {func(v *memTree) { v.rename("lib/sub", "lib/zub") }, nil, []string{"- lib/sub", "+ lib/zub", "+ lib/zub/deep"}},
		"a directory with links was renamed":    {func(v *memTree) { v.rename("lib", "mib") }, nil, []string{"- lib", "+ mib", "+ mib/a", "+ mib/b = mib/a", "+ mib/sub", "+ mib/sub/deep"}},
		"a socket was made":                     {func(v *memTree) { v.put("etc/sock", unix.S_IFSOCK|0o600, "") }, nil, nil},
		"a socket took a file's place":          {func(v *memTree) { v.put("etc/conf", unix.S_IFSOCK|0o600, "") }, nil, []string{"- etc/conf"}},
		"one of two links was removed":          {func(v *memTree) { v.remove("lib/b") }, nil, []string{"- lib/b"}},
		"a link to an old file was made":        {func(v *memTree) { v.link("lib/a", "etc/c") }, nil, []string{"+ etc/c", "+ lib/a = etc/c", "+ lib/b = etc/c"}},
		"a linked file was changed":             {func(v *memTree) { v.nodes["lib/b"].data = "shaRed" }, nil, []string{"+ lib/a", "+ lib/b = lib/a"}},
		"links were parted":                     {func(v *memTree) { v.put("lib/b", fileMode, "shared") }, nil, []string{"+ lib/b"}},
		"the first link was parted":             {func(v *memTree) { v.put("lib/a", fileMode, "shared") }, nil, []string{"+ lib/b"}},
		"equal files were joined":               {func(v *memTree) { v.put("etc/passwd", fileMode, "one"); v.link("etc/conf", "etc/passwd") }, nil, []string{"+ etc/conf", "+ etc/passwd = etc/conf"}},
		"what changed is masked":                {func(v *memTree) { v.remove("etc/conf"); v.put("lib/n", fileMode, "") }, []string{"/etc", "lib/n/"}, nil},
		"all but the root is masked":            {func(v *memTree) { v.remove("lib"); v.nodes["."].attr.UID = 1 }, []string{"/"}, []string{"+ ."}},
		"all that is in the root is masked":     {func(v *memTree) { v.remove("lib") }, []string{"/"}, nil},
		"a masked directory was made":           {func(v *memTree) { v.put("lib/new", dirMode, "") }, []string{"lib/new/", "/lib/new"}, nil},
		"a masked directory of the root's":      {func(v *memTree) { v.put("new", dirMode, "") }, []string{"new"}, nil},
		"a masked directory was removed":        {func(v *memTree) { v.remove("lib/sub") }, []string{"lib/sub"}, nil},
		"a masked and another were made":        {func(v *memTree) { v.put("lib/new", dirMode, ""); v.put("lib/n", dirMode, "") }, []string{"lib/new"}, []string{"+ lib", "+ lib/n"}},
		"one was made and a masked one removed": {func(v *memTree) { v.put("lib/new", dirMode, ""); v.remove("lib/sub") }, []string{"lib/sub"}, []string{"+ lib/new"}},
		"a masked one, and the parent's mode":   {func(v *memTree) { v.put("lib/new", dirMode, ""); v.nodes["lib"].attr.Mode = unix.S_IFDIR | 0o700 }, []string{"lib/new"}, []string{"+ lib"}},
		"a mask below what was removed":         {func(v *memTree) { v.remove("lib/sub") }, []string{"lib/sub/deep"}, []string{"+ lib", "- lib/sub"}},
		"a mask that only begins alike":         {func(v *memTree) { v.nodes["etc-x"].attr.UID = 1 }, []string{"etc"}, []string{"+ etc-x"}},
		"a link's other name is masked":         {func(v *memTree) { v.nodes["lib/a"].attr.UID = 1 }, []string{"lib/a"}, []string{"+ lib/b"}},
		"paths sort by components": {func(v *memTree) {
			v.nodes["etc-x"].attr.UID, v.nodes["etc"].attr.UID, v.nodes["etc/conf"].attr.UID = 1, 1, 1
		}, nil, []string{"+ etc", "+ etc/conf", "+ etc-x"}},
	} {
		t.Run(name, func(t *testing.T) {
			view := exampleBase()
			c.edit(view)
			_, plan, err := compareTrees(t, exampleBase(), view, newMasks(c.masks))
			if err != nil {
				t.Fatal(err)
			}
			if got := planLines(plan); !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestALayerAppliedToTheBaseGivesTheView(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		base := randomTree(r)
		for p, n := range base.nodes {
			if n.typ() == unix.S_IFSOCK {
				base.remove(p) // no image has one
			}
		}
		view := base.clone()
		for range 1 + r.IntN(6) {
			randomEdit(r, view)
		}
		before := base.clone()
		_, plan, err := compareTrees(t, base, view, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := before.apply(view, plan); err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, strings.Join(planLines(plan), "\n"))
		}
		if got, want := before.describe(), view.describe(); got != want {
			t.Fatalf("seed %d: base\n%s\nlayer\n%s\n\ngives\n%s\nwant\n%s", seed, base.describe(), strings.Join(planLines(plan), "\n"), got, want)
		}
	}
}

func TestAnotherLinkOutsideTheRecordComesIntoTheLayer(t *testing.T) {
	// A directory was renamed: the record names what is below it, and not the other
	// name of a file in it.
	base := newMemTree()
	base.put("d", dirMode, "")
	base.put("d/f", fileMode, "x")
	base.link("d/f", "g")
	view := base.clone()
	view.rename("d", "e")
	_, plan, err := compareTrees(t, base, view, nil, "d", "e", "e/f")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := planLines(plan), []string{"- d", "+ e", "+ e/f", "+ g = e/f"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestANameLikeAWhiteoutCannotBeRepacked(t *testing.T) {
	for _, p := range []string{"etc/.wh.conf", ".wh..wh..opq"} {
		view := exampleBase()
		view.put(p, fileMode, "")
		_, _, err := compareTrees(t, exampleBase(), view, nil)
		if !errors.Is(err, layer.ErrReservedName) || !strings.Contains(err.Error(), p) {
			t.Errorf("%s: error %v", p, err)
		}
		if _, _, err = compareTrees(t, exampleBase(), view, newMasks([]string{p})); err != nil {
			t.Errorf("%s, masked: error %v", p, err)
		}
	}
}

func TestATimeThatWasClampedIsNoChange(t *testing.T) {
	base, view := exampleBase(), exampleBase()
	epoch := time.Unix(100, 0)
	view.nodes["etc/conf"].attr.Mtime.Sec = 5000 // an earlier layer has it at 100
	view.nodes["etc/passwd"].attr.Mtime.Sec = 50
	c := comparison{base: base, view: view, epoch: &epoch, log: slog.New(slog.DiscardHandler)}
	w := newTreeWalk(base, view)
	if err := w.everything(context.Background(), "."); err != nil {
		t.Fatal(err)
	}
	pairs, err := c.run(context.Background(), w.paths())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for p := range changed(pairs) {
		got = append(got, p.path)
	}
	if !slices.Equal(got, []string{"etc/passwd"}) {
		t.Errorf("changed: %q", got)
	}
}

// As stock umoci's repack writes it, and ours never does.
func TestATimeThatWasRoundedUpIsNoChange(t *testing.T) {
	for name, c := range map[string]struct {
		sec, was int64
		nsec     uint32
		data     string
		want     int
	}{
		"rounded up":              {1000, 1001, 700_000_000, "one", 0},
		"the half":                {1000, 1001, 500_000_000, "one", 0},
		"below the half":          {1000, 1001, 499_999_999, "one", 1},
		"another second":          {999, 1001, 700_000_000, "one", 1},
		"rounded up, and changed": {1000, 1001, 700_000_000, "two", 1},
	} {
		base, view := exampleBase(), exampleBase()
		base.nodes["etc/conf"].attr.Mtime = layer.Timespec{Sec: c.was}
		now := view.nodes["etc/conf"]
		now.data, now.attr.Mtime = c.data, layer.Timespec{Sec: c.sec, Nsec: c.nsec}
		_, plan, err := compareTrees(t, base, view, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(plan) != c.want {
			t.Errorf("%s: %d entries, want %d", name, len(plan), c.want)
		}
		for _, e := range plan {
			if got := e.now.attr.Mtime.Sec; got != c.sec {
				t.Errorf("%s: the layer gets %d, want %d", name, got, c.sec)
			}
		}
	}
}

func TestContentKnownToBeTheSameIsNotRead(t *testing.T) {
	base, view := exampleBase(), exampleBase()
	view.nodes["etc/conf"].data = "two" // would be found by reading
	c := comparison{
		base: base, view: view, log: slog.New(slog.DiscardHandler),
		same: func(now, was layer.Ino) (bool, error) { return now == was, nil },
	}
	w := newTreeWalk(base, view)
	w.seen["etc/conf"] = struct{}{}
	pairs, err := c.run(context.Background(), w.paths())
	if err != nil || len(pairs) != 1 || pairs[0].kind != changeNone {
		t.Errorf("got %+v, %v", pairs, err)
	}
}

func TestPathsOfAnyBytesGoThroughTheComparison(t *testing.T) {
	for _, name := range []string{"a b", "new\nline", "\xff\xfe", `back\slash`, "*?[#", "...", "..a", "#comment", "日本", "a=b", " lead", "trail "} {
		base, view := newMemTree(), newMemTree()
		base.put("d", dirMode, "")
		view.put("d", dirMode, "")
		view.put("d/"+name, unix.S_IFLNK|0o777, name).xattrs = map[string]string{"user." + name: name}
		_, plan, err := compareTrees(t, base, view, nil)
		if err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if len(plan) != 1 || plan[0].path != "d/"+name {
			t.Errorf("%q: %q", name, planLines(plan))
		}
		_, plan, err = compareTrees(t, view, view.clone(), nil)
		if err != nil || len(plan) != 0 {
			t.Errorf("%q, not changed: %q, %v", name, planLines(plan), err)
		}
	}
}

func TestADirectoryThatALaterLayerTookAwayIsSearched(t *testing.T) {
	// The mounted image had d; the bundle renamed it to e and was refreshed, then
	// renamed it back: the record says nothing, the layer names d, e, e/f, e/g.
	base := newMemTree()
	base.put("e", dirMode, "")
	base.put("e/f", fileMode, "x")
	base.put("e/g", fileMode, "y")
	view := newMemTree()
	view.put("d", dirMode, "")
	view.put("d/f", fileMode, "x")
	view.put("d/g", fileMode, "y")
	w := newTreeWalk(base, view)
	if err := w.named(context.Background(), []string{"d", "e", "e/f", "e/g"}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for c := range w.paths() {
		got = append(got, c.path)
	}
	if want := []string{".", "d", "d/f", "d/g", "e", "e/f", "e/g"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWhatAnOpaqueMarkerTookAwayIsSearched(t *testing.T) {
	base, view := newMemTree(), newMemTree()
	for _, tr := range []*memTree{base, view} {
		tr.put("d", dirMode, "")
		tr.put("d/both", fileMode, "x")
	}
	view.put("d/only", dirMode, "")
	view.put("d/only/f", fileMode, "")
	base.put("d/was", fileMode, "")
	w := newTreeWalk(base, view)
	if err := w.named(context.Background(), []string{"d"}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for c := range w.paths() {
		got = append(got, c.path)
	}
	if want := []string{".", "d", "d/only", "d/only/f", "d/was"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
