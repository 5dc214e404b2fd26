package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	mtree "github.com/vbatts/go-mtree"
	"golang.org/x/sys/unix"

	"github.com/umoci-mount/umoci-mount/internal/sys"
)

// ValidateOptions of ValidateMtree.
type ValidateOptions struct {
	Manifest string // path of an mtree(5) manifest
	Path     string // the directory that it is of
	Rootless bool   // open what modes close to a plain user, for as long as it takes

	Use           []string // keywords to compare; none: UmociKeywords decides
	UmociKeywords bool     // those that umoci compares; else the manifest's own
	Add           []string // keywords to compare beside those
}

// ValidateMtree compares a directory with a manifest, by go-mtree alone. The result
// is one line a path that differs, in go-mtree's words.
func ValidateMtree(ctx context.Context, opt ValidateOptions) (_ []string, err error) {
	f, err := os.Open(opt.Manifest)
	if err != nil {
		return nil, fmt.Errorf("open manifest: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	dh, err := mtree.ParseSpec(f)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", opt.Manifest, err)
	}
	var eval mtree.FsEval = mtree.DefaultFsEval{}
	if opt.Rootless {
		eval = openingEval{}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	deltas, err := mtree.Check(opt.Path, dh, opt.keywords(dh), eval)
	if err != nil {
		return nil, fmt.Errorf("compare %s with its manifest: %w", opt.Path, err)
	}
	var out []string
	for i := range deltas {
		out = append(out, deltas[i].String())
	}
	return out, nil
}

// keywords are those to compare. Without "type" no comparison makes sense.
func (o *ValidateOptions) keywords(dh *mtree.DirectoryHierarchy) []mtree.Keyword {
	var list []mtree.Keyword
	add := func(k mtree.Keyword) {
		if !mtree.InKeywordSlice(k, list) {
			list = append(list, k)
		}
	}
	add("type")
	base := dh.UsedKeywords()
	switch {
	case len(o.Use) > 0:
		base = nil
	case o.UmociKeywords:
		base = mtreeKeywords
	}
	for _, k := range base {
		add(k)
	}
	for _, names := range [][]string{o.Use, o.Add} {
		for _, name := range names {
			add(mtree.KeywordSynonym(name))
		}
	}
	return list
}

// openingEval looks into what its owner has closed to himself: it gives owner's
// permissions for a moment.
type openingEval struct{}

var _ mtree.FsEval = openingEval{}

// Open is os.Open.
func (openingEval) Open(path string) (f *os.File, err error) {
	err = opened(path, func() (err error) {
		f, err = os.Open(path)
		return err
	})
	return f, err
}

// Lstat is os.Lstat.
func (openingEval) Lstat(path string) (info os.FileInfo, err error) {
	err = opened(path, func() (err error) {
		info, err = os.Lstat(path)
		return err
	})
	return info, err
}

// Readdir opens a directory and reads all of it.
func (e openingEval) Readdir(path string) (list []os.FileInfo, err error) {
	// Its names are looked up too, so it must stay open to the end.
	err = opened(path, func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		list, err = f.Readdir(-1)
		return errors.Join(err, f.Close())
	})
	return list, err
}

// KeywordFunc lets a keyword be had of what is closed. Extended attributes that
// cannot be read would else be none, without an error.
func (openingEval) KeywordFunc(fn mtree.KeywordFunc) mtree.KeywordFunc {
	return func(path string, info os.FileInfo, r io.Reader) (values []mtree.KeyVal, err error) {
		err = opened(path, func() (err error) {
			if info.Mode().IsRegular() || info.IsDir() {
				if err := unix.Faccessat(unix.AT_FDCWD, path, unix.R_OK, unix.AT_EACCESS); err != nil {
					return &os.PathError{Op: "access", Path: path, Err: err}
				}
			}
			values, err = fn(path, info, r)
			return err
		})
		return values, err
	}
}

// opened calls fn, and where that is not permitted again with path and the
// directories above it opened to their owner, as far as the caller owns them. Their
// modes are put back.
func opened(path string, fn func() error) (err error) {
	// Modes close nothing to root, which could be led astray here.
	if err = fn(); !errors.Is(err, fs.ErrPermission) || sys.HasCapability(unix.CAP_DAC_OVERRIDE) {
		return err
	}
	var changed []func() error
	for i := range path { // from the top
		if i == 0 || path[i] != filepath.Separator {
			continue
		}
		if restore := openOne(path[:i]); restore != nil {
			changed = append(changed, restore)
		}
	}
	if err = fn(); errors.Is(err, fs.ErrPermission) { // the directories above were not all it takes
		if restore := openOne(path); restore != nil {
			changed = append(changed, restore)
			err = fn()
		}
	}
	for _, restore := range slices.Backward(changed) {
		err = errors.Join(err, restore())
	}
	return err
}

// openOne gives an owner his permissions of one file or directory; nil where that is
// not needed or not possible.
func openOne(path string) (restore func() error) {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() && !info.Mode().IsRegular() {
		return nil
	}
	want := info.Mode().Perm() | 0o400
	if info.IsDir() {
		want |= 0o700
	}
	special := info.Mode() & (os.ModeSetuid | os.ModeSetgid | os.ModeSticky)
	if want == info.Mode().Perm() || os.Chmod(path, want|special) != nil {
		return nil
	}
	return func() error { return os.Chmod(path, info.Mode().Perm()|special) }
}
