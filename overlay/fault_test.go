package overlay

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// steps of one operation each, on a fresh union over modelTree. prepare runs
// without faults.
var faultCases = []struct {
	name    string
	prepare func(x *fixture) error
	do      func(x *fixture) error
}{
	{"chmod of a lower file", nil, func(x *fixture) error { return chmod(x, "top", 0o600) }},
	{"chmod of a lower file with several names", nil, func(x *fixture) error { return chmod(x, "e/hard", 0o600) }},
	{"chmod of a lower directory", nil, func(x *fixture) error { return chmod(x, "a/b/c", 0o711) }},
	{"chown of a lower symlink", nil, func(x *fixture) error { return chown(x, "a/l", 3) }},
	{"write to a lower file", nil, func(x *fixture) error { return fsWrite(x, "a/b/g", "x", 1) }},
	{"truncate of a lower file", nil, func(x *fixture) error { return truncateTo(x, "a/b/g", 2) }},
	{"unlink of a lower file", nil, func(x *fixture) error { return onName(x, "a/b/g", x.fs.Unlink) }},
	{"unlink of one of several lower names", nil, func(x *fixture) error { return onName(x, "a/f", x.fs.Unlink) }},
	{"unlink of a copied-up file", func(x *fixture) error { return chmod(x, "top", 0o600) },
		func(x *fixture) error { return onName(x, "top", x.fs.Unlink) }},
	{"rename of a lower file", nil, func(x *fixture) error { return fsRename(x, "top", "e/n3", 0) }},
	{"rename over a lower file", nil, func(x *fixture) error { return fsRename(x, "top", "a/b/g", 0) }},
	{"rename of a lower file over an upper one", func(x *fixture) error { return chmod(x, "a/b/g", 0o600) },
		func(x *fixture) error { return fsRename(x, "top", "a/b/g", 0) }},
	{"rename of a lower directory over an upper one", func(x *fixture) error { return mkdir(x, "n1", Caller{}) },
		func(x *fixture) error { return fsRename(x, "a/b", "n1", 0) }},
	{"rename of a populated lower directory", nil, func(x *fixture) error { return fsRename(x, "a/b", "e/n3", 0) }},
	{"rename of a directory over a whiteout", func(x *fixture) error { return onName(x, "top", x.fs.Unlink) },
		func(x *fixture) error { return fsRename(x, "a/b", "top", 0) }},
	{"exchange of a lower file and a lower directory", nil,
		func(x *fixture) error { return fsRename(x, "top", "a/b", unix.RENAME_EXCHANGE) }},
	{"mkdir", nil, func(x *fixture) error { return mkdir(x, "a/b/new", Caller{}) }},
	{"mkdir by another user", nil, func(x *fixture) error { return mkdir(x, "a/s/new", Caller{UID: 9, GID: 9}) }},
	{"mkdir where a directory was", func(x *fixture) error { return removeAll(x, "a/s") },
		func(x *fixture) error { return mkdir(x, "a/s", Caller{}) }},
	{"rmdir of a directory emptied by whiteouts", func(x *fixture) error { return onName(x, "a/b/c/h", x.fs.Unlink) },
		func(x *fixture) error { return onName(x, "a/b/c", x.fs.Rmdir) }},
	{"rename over a directory emptied by whiteouts", func(x *fixture) error {
		return errors.Join(onName(x, "a/b/c/h", x.fs.Unlink), decorate(x, "a/b/c"), mkdir(x, "n1", Caller{}))
	}, func(x *fixture) error { return fsRename(x, "n1", "a/b/c", 0) }},
	{"rename of a lower directory over one emptied by whiteouts", func(x *fixture) error {
		return errors.Join(onName(x, "a/b/c/h", x.fs.Unlink), decorate(x, "a/b/c"))
	}, func(x *fixture) error { return fsRename(x, "a/s", "a/b/c", 0) }},
	{"link of a lower file", nil, func(x *fixture) error { return link(x, "top", "e/n3") }},
	{"setxattr of a lower file", nil, func(x *fixture) error {
		return x.fs.SetXattr(x.mustIno("top"), "user.k", []byte("v"), 0, false)
	}},
}

func chmod(x *fixture, p string, mode uint32) error {
	_, err := x.fs.SetAttr(x.mustIno(p), SetAttr{Valid: SetMode, Mode: mode})
	return err
}

func chown(x *fixture, p string, id uint32) error {
	_, err := x.fs.SetAttr(x.mustIno(p), SetAttr{Valid: SetUID, UID: id})
	return err
}

// decorate gives a directory an owner, a mode, an ACL and attributes.
func decorate(x *fixture, p string) error {
	ino := x.mustIno(p)
	_, err := x.fs.SetAttr(ino, SetAttr{Valid: SetUID | SetGID | SetMode, UID: 33, GID: 44, Mode: 0o2750})
	for _, name := range []string{"user.k", "user.overlay.k", "trusted.k"} {
		err = errors.Join(err, x.fs.SetXattr(ino, name, []byte("v"), 0, false))
	}
	for _, name := range []string{xattrACLAccess, xattrACLDefault} {
		err = errors.Join(err, x.fs.SetXattr(ino, name, testACL(), 0, false))
	}
	return err
}

func truncateTo(x *fixture, p string, size int64) error {
	_, err := x.fs.SetAttr(x.mustIno(p), SetAttr{Valid: SetSize, Size: size})
	return err
}

func mkdir(x *fixture, p string, c Caller) error {
	dir, name, err := x.split(p)
	if err != nil {
		return err
	}
	_, err = x.fs.Mkdir(dir, name, 0o755, c)
	return err
}

func link(x *fixture, p, q string) error {
	dir, name, err := x.split(q)
	if err != nil {
		return err
	}
	_, err = x.fs.Link(x.mustIno(p), dir, name)
	return err
}

// removeAll empties and removes a directory that has no subdirectories.
func removeAll(x *fixture, p string) error {
	ino := x.mustIno(p)
	d, err := x.fs.OpenDir(ino)
	if err != nil {
		return err
	}
	for i := 2; ; i++ {
		e, ok, err := d.Entry(i)
		if err != nil || !ok {
			return errors.Join(err, onName(x, p, x.fs.Rmdir))
		}
		if err := x.fs.Unlink(ino, e.Name); err != nil {
			return err
		}
	}
}

var errFault = errors.New("injected")

// TestAFailureAtAnyStepLeavesTheOldStateOrTheNew fails the first, second, … change
// of the upper in turn, and, in the second form, every one from there on, as a
// crash does; then the tree is what it was or what it should be, at once and after
// a remount, and work/ is clean. Whiteouts that are files take a rename two steps, and
// are left out of the second form.
func TestAFailureAtAnyStepLeavesTheOldStateOrTheNew(t *testing.T) {
	for _, kind := range []faultKind{
		{name: "owners in the inode"},
		{name: "owners in the inode, crash", crash: true},
		{name: "owners in override_stat", opt: UpperOptions{Rootless: true}},
		{name: "owners in override_stat, crash", opt: UpperOptions{Rootless: true}, crash: true},
		{name: "whiteouts that are files", opt: UpperOptions{FileWhiteouts: true}},
		{name: "many files with no name", crowded: true},
		{name: "many files with no name, crash", crowded: true, crash: true},
	} {
		for _, c := range faultCases {
			t.Run(c.name+", "+kind.name, func(t *testing.T) {
				if os.Geteuid() != 0 && !kind.opt.Rootless {
					t.Skip("needs root: owners in the upper")
				}
				for at := 1; ; at++ {
					if !runFault(t, kind, c.prepare, c.do, at) {
						if at == 1 {
							t.Fatal("no step was reached")
						}
						return
					}
				}
			})
		}
	}
}

type faultKind struct {
	name    string
	opt     UpperOptions
	crash   bool
	crowded bool
}

// runFault is one run with the fault at the at-th step; false when the operation
// has fewer.
func runFault(t *testing.T, kind faultKind, prepare, do func(*fixture) error, at int) bool {
	t.Helper()
	x := newFixtureWith(t, newMemLower(modelTree...), kind.opt)
	x.crowded = kind.crowded
	count, armed, hit := 0, false, ""
	x.opt.Fault = func(step string) error {
		if !armed {
			return nil
		}
		count++
		if count == at || kind.crash && count > at {
			if hit == "" {
				hit = step
			}
			return errFault
		}
		return nil
	}
	x.remount()
	if prepare != nil {
		if err := prepare(x); err != nil {
			t.Fatalf("prepare: %v", err)
		}
	}
	old := x.listing()
	armed = true
	err := do(x)
	armed = false
	if hit == "" {
		if err != nil {
			t.Fatalf("without a fault: %v", err)
		}
		return false
	}
	if !kind.crash {
		checkState(t, x, old, do, fmt.Sprintf("step %d (%s)", at, hit), err)
	}
	x.remount()
	checkState(t, x, old, do, fmt.Sprintf("step %d (%s), remounted", at, hit), err)
	for _, name := range inWork(t, x) {
		t.Errorf("step %d (%s): debris %s in work/", at, hit, name)
	}
	return true
}

// inWork is what is in work/ but the whiteout.
func inWork(t *testing.T, x *fixture) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(x.dir + "/work")
	must(t, err)
	for _, e := range entries {
		if e.Name() != whiteoutName {
			names = append(names, e.Name())
		}
	}
	return names
}

// checkState compares the tree with the one before; where it differs, doing the
// operation in full must make no difference any more.
func checkState(t *testing.T, x *fixture, old string, do func(*fixture) error, when string, opErr error) {
	t.Helper()
	got := x.listing()
	if got == old {
		return
	}
	opt := x.opt
	opt.Fault = nil
	y := newFixtureWith(t, newMemLower(modelTree...), opt)
	for _, c := range faultCases {
		if fmt.Sprintf("%p", c.do) == fmt.Sprintf("%p", do) && c.prepare != nil {
			if err := c.prepare(y); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := do(y); err != nil {
		t.Fatal(err)
	}
	if want := y.listing(); got != want {
		t.Errorf("%s (%v): neither the old tree nor the new:\nagainst old:\n%s\nagainst new:\n%s", when, opErr,
			diffLines(old, got), diffLines(want, got))
	}
	if strings.Contains(got, "\n\n") {
		t.Error("empty line in listing")
	}
}

// failing makes the steps of a name fail from the nth on, once armed.
func failing(x *fixture, name string, nth int) (arm, disarm func()) {
	armed, count := false, 0
	x.opt.Fault = func(step string) error {
		if !armed || step != name {
			return nil
		}
		if count++; count < nth {
			return nil
		}
		return errFault
	}
	x.remount()
	return func() { armed = true }, func() { armed = false }
}

// A plain user's symlink has no attribute that says what it is a copy of.
func TestAFailedCopyUpOfASymlinkWithSeveralNamesIsTakenBack(t *testing.T) {
	x := newFixtureWith(t, newMemLower("l one target", "h two one", "h three one"), UpperOptions{Rootless: true})
	arm, disarm := failing(x, "link", 2)
	want := x.listing()
	arm()
	_, err := x.fs.SetAttr(x.mustIno("one"), SetAttr{Valid: SetMtime, Mtime: Timespec{Sec: 1}})
	disarm()
	if !errors.Is(err, errFault) {
		t.Fatal(err)
	}
	if got := x.listing(); got != want {
		t.Error(diffLines(want, got))
	}
	x.remount()
	if got := x.listing(); got != want {
		t.Errorf("remounted:\n%s", diffLines(want, got))
	}
}

func TestACopyThatWasFoundOutlivesTheFailureOfItsCopyUp(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	armed, links := false, 0
	x.opt.Fault = func(step string) error {
		if !armed || step != "link" {
			return nil
		}
		if links++; links < 2 {
			return nil
		}
		_, err := x.fs.Lookup(x.mustIno("a"), "f")
		return errors.Join(errFault, err)
	}
	x.remount()
	want := x.listing()
	armed = true
	err := chmod(x, "e/hard", 0o600)
	armed = false
	if !errors.Is(err, errFault) {
		t.Fatal(err)
	}
	for _, p := range []string{"a/f", "e/hard"} {
		if got, err := x.fs.GetAttr(x.mustIno(p)); err != nil || x.read(got.Ino) != "one" {
			t.Errorf("%s: %v", p, err)
		}
	}
	x.remount()
	must(t, chmod(x, "a/f", 0o644))
	if got := x.listing(); got != want {
		t.Errorf("remounted:\n%s", diffLines(want, got))
	}
}

// The next object that is made can have the number of a copy that failed.
func TestAFailedCopyUpLeavesNoNumber(t *testing.T) {
	for step, nth := range map[string]int{"rename": 2, "unlink": 1} { // the first rename is the directory's
		x := newFixture(t, newMemLower(modelTree...))
		arm, disarm := failing(x, step, nth)
		ino := x.mustIno("a/l")
		if step == "unlink" {
			must(t, onName(x, "a/l", x.fs.Unlink))
		}
		arm()
		_, err := x.fs.SetAttr(ino, SetAttr{Valid: SetUID, UID: 3})
		disarm()
		if !errors.Is(err, errFault) {
			t.Fatalf("%s: %v", step, err)
		}
		for number, n := range x.fs.table.uppers {
			if n.ino == ino {
				t.Errorf("%s: the symlink, which is not in the upper, is known by %d there", step, number)
			}
		}
		_, err = x.fs.SetAttr(ino, SetAttr{Valid: SetUID, UID: 3})
		must(t, err)
	}
}

// On a full disk each attempt would leave one more file.
func TestASymlinkThatCannotBeWrittenLeavesNothingInWork(t *testing.T) {
	x := newFixtureWith(t, newMemLower(modelTree...), UpperOptions{Rootless: true})
	arm, disarm := failing(x, "fsync", 1)
	arm()
	_, err := x.fs.Symlink(1, "n1", "somewhere", Caller{UID: 3})
	disarm()
	if left := inWork(t, x); !errors.Is(err, errFault) || left != nil {
		t.Errorf("%v, and %q in work/", err, left)
	}
}

func TestARenameIsDoneOnceItIsPublished(t *testing.T) {
	x := newFixture(t, newMemLower(modelTree...))
	arm, disarm := failing(x, "unlink", 1)
	must(t, onName(x, "top", x.fs.Unlink))
	must(t, mkdir(x, "n1", Caller{}))
	whiteout := func() (st unix.Stat_t) {
		must(t, unix.Lstat(x.dir+"/work/"+whiteoutName, &st))
		return st
	}
	before, ino := whiteout(), x.mustIno("n1")
	arm()
	must(t, fsRename(x, "n1", "top", 0)) // the whiteout of nothing stays at n1
	disarm()
	if _, err := x.fs.SetAttr(ino, SetAttr{Valid: SetMode, Mode: 0o711}); err != nil {
		t.Error(err)
	}
	if after := whiteout(); after.Mode != before.Mode {
		t.Errorf("the whiteouts' mode is %o, was %o", after.Mode, before.Mode)
	}
	for range 2 {
		a, err := x.fs.GetAttr(x.mustIno("top"))
		if must(t, err); a.Mode&0o777 != 0o711 {
			t.Errorf("mode %o", a.Mode)
		}
		if _, err := x.ino("n1"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the old name: %v", err)
		}
		x.remount()
	}
}

func TestADirectoryThatCannotBePutBackIsAnotherOfTheSameAttributes(t *testing.T) {
	for _, rootless := range []bool{false, true} {
		if !rootless && os.Geteuid() != 0 {
			continue
		}
		x := newFixtureWith(t, newMemLower(modelTree...), UpperOptions{Rootless: rootless})
		arm, disarm := failing(x, "rename", 2)
		must(t, onName(x, "a/b/c/h", x.fs.Unlink))
		must(t, errors.Join(x.fs.SetXattr(x.mustIno("a/b/c"), "user.k", []byte("v"), 0, false), chown(x, "a/b/c", 33)))
		must(t, mkdir(x, "n1", Caller{}))
		old, gone := x.listing(), x.mustIno("a/b/c")
		arm()
		if err := fsRename(x, "n1", "a/b/c", 0); !errors.Is(err, errFault) {
			t.Fatal(err)
		}
		disarm()
		if got := x.listing(); got != old {
			t.Error(diffLines(old, got))
		}
		if _, err := x.fs.Mkdir(gone, "n", 0o755, Caller{}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("made in what has no name: %v", err)
		}
		must(t, mkdir(x, "a/b/c/n", Caller{}))
		x.remount()
		x.mustIno("a/b/c/n")
	}
}
