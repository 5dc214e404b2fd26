package crash

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// powerLayers are the image's: each way of making data durable has a file of its own,
// which is copied up by it.
var powerLayers = append([]imagetest.Layer{{Text: `dir e 0755
file e/kept 0644 @30000
file e/over 0644 @20000
file e/fsync 0640 @20000
file e/fdatasync 0644 @20000
file e/later 0644 @20000
file e/dsync 0644 @20000
file e/mapped 0644 @20000
file e/emptied 0644 @20000
symlink e/link ../a/one
symlink e/owned ../a/one uid=5 gid=5
`}}, baseLayers...)

// begin makes the layout, which is on the disk before anything else happens, and the
// bundle.
func (r *powerRun) begin(flags ...string) {
	r.t.Helper()
	err := imagetest.WriteLayout(filepath.Join(r.world.dir, "img"), imagetest.Image{Tag: "base", Layers: powerLayers})
	if err == nil {
		err = os.WriteFile(filepath.Join(r.world.dir, "source"), randomBytes(r.rnd, 100_000), 0o644)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	if r.plain {
		err := filepath.WalkDir(r.world.dir, func(p string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(p, nobody, nobody))
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	r.must("tar", "-C", r.world.dir, "-cf", filepath.Join(r.world.dir, "source.tar"), "source")
	r.syncAll()
	r.world.flags = append(r.world.flags, flags...)
	r.command(append(append([]string{"mount", "--image", r.image("base")}, r.world.flags...), r.bundle)...)
}

// fills overwrite data of the lower, and ask for it in each way that there is.
func (r *powerRun) fills() {
	r.t.Helper()
	r.edit("over e/over 5000")
	r.edit("over e/fsync 5000; fsync e/fsync", "e/fsync")
	r.edit("over-fdatasync e/fdatasync 5000", "e/fdatasync")
	r.edit("over-dsync e/dsync 5000", "e/dsync")
	r.edit("over-mapped e/mapped 5000", "e/mapped")
	r.edit("over e/later 5000")
	r.edit("fdatasync e/later", "e/later")
	r.edit("over-fdatasync a/deep/large 400000", "a/deep/large")
	r.edit("over-fdatasync a/two 100", "a/two", "a/three") // two links
	r.edit("truncate a/four 100")
	r.edit("fdatasync a/four", "a/four")
	r.editLoose("create e/emptied 30000", "e/emptied")
	r.edit("fdatasync e/emptied", "e/emptied")
}

// names make, move and remove objects, and change what is said of them.
func (r *powerRun) names() {
	r.t.Helper()
	r.edit("chmod a/one 600")
	r.edit("setxattr b/c/x value")
	r.edit("fsync b/c/x", "b/c/x")
	r.editLoose("create a/new 10000", "a/new")
	r.edit("fsync a/new", "a/new")
	r.edit("mkdir made")
	r.editLoose("create made/file 5000", "made/file")
	r.edit("fsync made/file", "made/file")
	r.edit("fsync made; fsync .", "made")
	// As programs replace a file.
	r.editLoose("create b/.tmp 5000", "b/.tmp")
	r.edit("fsync b/.tmp", "b/.tmp")
	r.edit("rename b/.tmp b/one")
	r.edit("fsync b", "b/.tmp", "b/one")
	r.edit("symlink a/link one")
	r.edit("link a/new a/linked")
	r.edit("unlink a/one")
	r.edit("fsync a", "a/link", "a/linked", "a/one")
	// Directories of the lower: one moves with what is in it, another is made anew.
	r.edit("rename b/c c")
	r.edit("fsync b; fsync .", "b", "c")
	r.edit("chmod c/x 711")
	r.edit("unlink d/one")
	r.edit("rmdir d")
	r.edit("mkdir d")
	r.editLoose("create d/two 4096", "d/two")
	r.edit("fsync d/two; fsync d; fsync .", "d")
	r.edit("rename a moved")
	r.edit("rename b a")
	r.edit("rename moved b")
	r.edit("fsync .", "a", "b", "moved")
	r.edit("over-fdatasync b/deep/large 100", "b/deep/large")
	r.edit("rename e/kept e/renamed")
	r.edit("chmod e/renamed 750")
	r.edit("rename e/owned e/moved")
	r.edit("fsync e; fsync e/renamed", "e/kept", "e/renamed", "e/owned", "e/moved")
}

func rootPower(r *powerRun) {
	img, second := filepath.Join(r.world.dir, "img"), filepath.Join(r.world.dir, "second")
	r.begin("--mtree")
	r.command("init", "--layout", second)
	r.command("new", "--image", second+":empty")
	r.fills()
	r.command("repack", "--image", r.image("first"), r.bundle)
	r.names()
	r.command("tag", "--image", r.image("first"), "again")
	r.command("config", "--image", r.image("first"), "--config.user", "7:8")
	r.command("insert", "--image", r.image("again"), filepath.Join(r.world.dir, "source"), "/inserted")
	r.command("raw", "add-layer", "--image", r.image("again"), filepath.Join(r.world.dir, "source.tar"))
	r.command("umount", r.bundle)
	r.command("repack", "--refresh-bundle", "--image", r.image("second"), r.bundle)
	r.command("rm", "--image", r.image("first"))
	r.command("rm", "--image", r.image("again"))
	r.command("gc", "--layout", img)
	r.command("mount", r.bundle)
	r.edit("chown e/link 7")
	r.edit("unlink e/dsync")
	r.edit("over e/over 4200") // in the block of the first: none is written without the other
	r.syncAll()
	r.thrownAway()
	r.command("mount", r.bundle)
	r.edit("over-fdatasync e/fdatasync 17", "e/fdatasync")
	r.edit("unlink a/one")
	r.syncAll()
	r.command("umount", r.bundle)
	r.step(step{name: "mount --fresh", settles: []string{"."}, do: func() { r.um("mount", "--fresh", "--image", r.image("base")) }})
	r.edit("over-fdatasync e/fdatasync 18", "e/fdatasync")
}

// thrownAway throws the changes away: all of them, or none.
func (r *powerRun) thrownAway() {
	r.t.Helper()
	r.step(step{name: "umount --discard", settles: []string{"."}, do: func() { r.um("umount", "--discard") }})
	r.steps[len(r.steps)-1].tree = r.steps[r.mounted].tree
}

func fillsPower(r *powerRun) {
	r.begin()
	r.fills()
}

// plainPower is of a plain user, in whose upper owners are attributes, and symlinks of
// other owners are files.
func plainPower(r *powerRun) {
	r.begin()
	r.fills()
	r.names()
	for _, args := range [][]string{
		{"chown", "--no-dereference", r.bundle, "7:8", "/e/link"},
		{"chown", "--no-dereference", r.bundle, "7:8", "/b/link"},
		{"chown", r.bundle, "7:8", "/e/over"},
		{"mknod", r.bundle, "/e/null", "c", "1", "3"},
	} {
		r.command(args...)
		r.commit()
	}
	r.command("repack", "--image", r.image("first"), r.bundle)
	r.syncAll()
	r.command("umount", r.bundle)
	r.command("mount", r.bundle)
}

var ext4Flags = []string{"-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"} // so that mkfs alone makes it

var powerCases = []powerCase{
	{name: "ext4", fs: "ext4", kb: 96 << 10, mkfs: ext4Flags, steps: rootPower, ordered: true, share: 100},
	{name: "ext4-passthrough", fs: "ext4", kb: 96 << 10, mkfs: ext4Flags, steps: fillsPower, flags: []string{"--passthrough"}, ordered: true, share: 40},
	{name: "ext4-plain-user", fs: "ext4", kb: 96 << 10, mkfs: ext4Flags, steps: plainPower, plain: true, ordered: true, share: 40},
	{name: "xfs", fs: "xfs", kb: 320 << 10, mkfs: []string{"-q", "-K"}, steps: rootPower, ordered: true, share: 20},
	{name: "btrfs", fs: "btrfs", kb: 256 << 10, mkfs: []string{"-q", "-K"}, steps: rootPower, share: 20},
}

func TestAPowerCutLosesNothingThatWasSynced(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedLoop(t)
	imagetest.NeedTools(t, "tar")
	for _, c := range powerCases {
		t.Run(c.name, func(t *testing.T) {
			imagetest.NeedTools(t, "mkfs."+c.fs)
			imagetest.NeedFilesystem(t, c.fs)
			ownMounts(t)
			if c.plain {
				imagetest.NeedTools(t, "fusermount3")
			}
			const each = 200 // cuts of one run
			for left, s := max(1, imagetest.Fewer(*rounds)*c.share/100), *seed; left > 0 && !t.Failed(); left, s = left-each, s+1 {
				r := newPowerRun(t, c, s)
				cuts := r.cuts(min(left, each))
				t.Logf("seed %d: %d steps, %d entries in the log, %d cuts", s, len(r.steps), len(r.log), len(cuts))
				r.checkCuts(cuts, s)
			}
		})
	}
}
