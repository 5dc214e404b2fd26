// Package rootless runs what a plain user can do with bundles beyond the mount itself:
// edits that the kernel refuses, and programs as the image's root, with one id and with
// a range of them.
package rootless

import (
	"archive/tar"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

var env *imagetest.Env

func TestMain(m *testing.M) {
	os.Exit(imagetest.Main(m, func(e *imagetest.Env) { env = e }, 20*time.Minute))
}

// baseLayer has accounts, files of several owners, and a set-id program.
const baseLayer = `dir . 0755
dir etc 0755
file etc/passwd 0644 "root:x:0:0:root:/root:/bin/sh\nmail:x:8:12:mail:/var/mail:/bin/sh\n"
file etc/group 0644 "root:x:0:\nadm:x:4:\nmail:x:12:\n"
file etc/shadow 0640 "secret" gid=42
dir dev 0755
dir bin 0755
dir tmp 01777
dir root 0700
dir proc 0555
dir sys 0555
file usr/bin/su 04755 "program"
dir var/spool 0700 uid=13 gid=13
file var/spool/job 0600 "job" uid=13 gid=13
symlink etc/link shadow
`

// user runs shell scripts as a user of the host in a directory of its own with an
// image "img:base"; $um is the program.
type user struct {
	t   *testing.T
	dir string
	uid int
	as  []string // what is before "sh" on the command line
}

func newUser(t *testing.T, uid int, as ...string) *user {
	t.Helper()
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "setpriv", "fusermount3", "setfattr", "busybox")
	dir := filepath.Join(t.TempDir(), "u")
	for d := filepath.Dir(dir); d != env.Dir; d = filepath.Dir(d) { // other users' way
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	image := imagetest.Image{Tag: "base", Layers: []imagetest.Layer{{Text: baseLayer}}}
	if err := imagetest.WriteLayout(filepath.Join(dir, "img"), image); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, uid, uid))
	})
	if err != nil {
		t.Fatal(err)
	}
	return &user{t, dir, uid, as}
}

// plain is a user without privileges and without ids beside its own.
func plain(t *testing.T) *user {
	t.Helper()
	return newUser(t, plainID, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
}

const plainID = 65534

// sh runs a script, and gives what it wrote and its exit code.
func (u *user) sh(script string) (string, int) {
	u.t.Helper()
	vars := []string{"UMOCI_MOUNT_CACHE=" + filepath.Join(u.dir, "cache"), "HOME=" + u.dir, "um=" + env.Bin}
	line := slices.Concat(u.as, []string{"sh", "-ec", "cd " + u.dir + "\n" + script})
	r := env.Command(u.t, vars, line[0], line[1:]...)
	return r.Stdout + r.Stderr, r.Code
}

func (u *user) must(script string) string {
	u.t.Helper()
	out, code := u.sh(script)
	if code != 0 {
		u.t.Fatalf("exit %d of\n%s\n%s", code, script, out)
	}
	return out
}

// newLayer lists the top layer of a tag: type, mode, owner, device and attributes of
// each entry, but for the directories that are in it for their times alone.
func (u *user) newLayer(tag string, without ...string) string {
	u.t.Helper()
	var out strings.Builder
	for _, h := range imagetest.TopLayer(u.t, filepath.Join(u.dir, "img"), tag) {
		name := strings.TrimPrefix(strings.TrimSuffix(h.Name, "/"), "./")
		if slices.Contains(without, name) {
			continue
		}
		fmt.Fprintf(&out, "%c %o %d:%d %s", h.Typeflag, h.Mode, h.Uid, h.Gid, name)
		if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
			fmt.Fprintf(&out, " %d,%d", h.Devmajor, h.Devminor)
		}
		for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			if attr, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
				fmt.Fprintf(&out, " %s=%x", attr, h.PAXRecords[key])
			}
		}
		fmt.Fprintln(&out)
	}
	return out.String()
}

func expect(t *testing.T, what, want, got string) {
	t.Helper()
	if want != got {
		t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
	}
}
