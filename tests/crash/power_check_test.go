package crash

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// between are the steps that what was there after a cut may be of: of what step lo has
// settled, to the one that was under way.
func (r *powerRun) between(lo, last int) []stepDone { return r.steps[lo:min(last+2, len(r.steps))] }

// checkFiles looks at the files that commands replace: each is as after the last step,
// or as after the one under way, and whole. A manifest that is not needed any more may be
// there again.
func (r *powerRun) checkFiles(last int) error {
	now, states := r.files(), r.between(last, last)
	names := maps.Clone(now)
	for _, s := range states {
		maps.Copy(names, s.files)
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if last < r.mounted && strings.HasPrefix(name, "bundle/") {
			continue // what there is of it is not counted on: the first mount makes it again
		}
		have, there := now[name]
		states := states
		if strings.HasSuffix(name, ".mtree") && there {
			states = r.between(0, last)
		}
		if !slices.ContainsFunc(states, func(s stepDone) bool { f, ok := s.files[name]; return ok == there && f == have }) {
			was := states[0].files[name]
			errs = append(errs, fmt.Errorf("%s has %d bytes, and is neither as it was, with %d, nor as it becomes: %.300q", name, len(have), len(was), have))
		}
	}
	return errors.Join(errs...)
}

// checkLayouts has each layout checked, and stock umoci read it.
func (r *powerRun) checkLayouts() error {
	var errs []error
	_, umoci := exec.LookPath("umoci")
	for name, index := range r.files() {
		if filepath.Base(name) != "index.json" {
			continue
		}
		layout := filepath.Dir(filepath.Join(r.world.dir, name))
		tags, err := tagsOf(index)
		errs = append(errs, err, r.try(env.Bin, "fsck", "--layout", layout))
		if umoci == nil && len(tags) > 0 {
			errs = append(errs, r.try("umoci", "stat", "--image", layout+":"+tags[len(tags)-1])) // the newest
		}
	}
	return errors.Join(errs...)
}

// checkBundle goes on with the bundle: it has what was settled, and can be worked with.
func (r *powerRun) checkBundle(last int, goOn bool) (err error) {
	if last+1 < r.mounted {
		return nil
	}
	args := []string{env.Bin, "mount"}
	if _, err := os.Stat(filepath.Join(r.bundle, ".umoci-mount", "state.json")); err != nil && last < r.mounted {
		args = append(append(args, r.world.flags...), "--image", r.image("base"))
	}
	if err := r.try(append(args, r.bundle)...); err != nil {
		return err
	}
	defer func() {
		if isLive(r.bundle) {
			err = errors.Join(err, r.try(env.Bin, "umount", r.bundle))
		}
		if err != nil {
			_ = unix.Unmount(r.root(), unix.MNT_DETACH)
		}
	}()
	now := r.tree()
	if err := errors.Join(r.checkTree(last, now), r.checkOrder(last, now)); err != nil || !goOn {
		return err
	}
	return errors.Join(
		r.try(env.Bin, "repack", "--full-check", "--image", r.image("after"), r.bundle),
		r.try(env.Bin, "umount", r.bundle),
		r.try(env.Bin, "gc", "--layout", filepath.Join(r.world.dir, "img")),
		r.try(env.Bin, "fsck", "--layout", filepath.Join(r.world.dir, "img")))
}

// shown says what a path of the view is, but for a file's content.
func shown(e *imagetest.Entry) string {
	if e == nil {
		return "nothing"
	}
	s := fmt.Sprintf("%o %d:%d", e.Mode, e.UID, e.GID)
	if e.Target != "" {
		s += " to " + e.Target
	}
	for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
		s += fmt.Sprintf(" %s=%q", name, e.Xattrs[name])
	}
	return s
}

// content is that of a file; "" for what is none.
func content(e *imagetest.Entry) string {
	if e == nil || e.Type() != unix.S_IFREG {
		return ""
	}
	return fmt.Sprintf("%d bytes %.12s", e.Size, e.Sum)
}

// checkTree fails unless each path is as a step left it that came after what has settled
// it last. Content and all else need not be of the same step: no file system promises that.
func (r *powerRun) checkTree(last int, now imagetest.Tree) error {
	last = max(last, r.mounted)
	paths := maps.Clone(now)
	for _, s := range r.between(r.mounted, last) {
		maps.Copy(paths, s.tree)
	}
	var errs []error
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		lo := last
		for lo > r.mounted && !covers(r.steps[lo].settles, p) {
			lo--
		}
		var as, contents []string
		loose := false
		for i, s := range r.between(lo, last) {
			as, contents = append(as, shown(s.tree[p])), append(contents, content(s.tree[p]))
			loose = loose || i > 0 && slices.Contains(s.loose, p)
		}
		have, data := shown(now[p]), content(now[p])
		if !slices.Contains(as, have) || data != "" && !loose && !slices.Contains(contents, data) {
			errs = append(errs, fmt.Errorf("%s is %s %s, want one of %q %q (settled by step %d, %s)",
				p, have, data, slices.Compact(as), slices.Compact(contents), lo, r.steps[lo].name))
		}
	}
	if n := len(errs) - 3; n > 0 {
		errs = append(errs[:3], fmt.Errorf("… and %d more", n))
	}
	return errors.Join(errs...)
}

// covers reports whether a path is one of a list, or below one.
func covers(list []string, p string) bool {
	return slices.ContainsFunc(list, func(of string) bool {
		return of == "." || p == of || strings.HasPrefix(p, of+"/")
	})
}

// checkOrder fails unless the view, but for the content of files, is as it was after one
// of the steps: changes go in the order in which they came.
func (r *powerRun) checkOrder(last int, now imagetest.Tree) error {
	if !r.ordered {
		return nil
	}
	least := ""
	for i, s := range slices.Backward(r.between(r.mounted, max(last, r.mounted))) {
		var differ []string
		for p := range now {
			if shown(now[p]) != shown(s.tree[p]) {
				differ = append(differ, p+": "+shown(now[p])+", want "+shown(s.tree[p]))
			}
		}
		for p := range s.tree {
			if now[p] == nil {
				differ = append(differ, p+" is missing")
			}
		}
		if len(differ) == 0 {
			return nil
		}
		slices.Sort(differ)
		if text := fmt.Sprintf("unlike after step %d (%s): %s", r.mounted+i, s.name, strings.Join(differ, "; ")); least == "" || len(text) < len(least) {
			least = text
		}
	}
	return errors.New("the view is as after none of the steps, but at the least " + least)
}

// tagsOf are the tags of an index.json.
func tagsOf(index string) (tags []string, err error) {
	var ix ispec.Index
	if err := json.Unmarshal([]byte(index), &ix); err != nil {
		return nil, err
	}
	for _, m := range ix.Manifests {
		tags = append(tags, m.Annotations[ispec.AnnotationRefName])
	}
	return tags, nil
}
