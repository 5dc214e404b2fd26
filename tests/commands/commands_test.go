package commands

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

func TestTagsAreMadeListedAndRemoved(t *testing.T) {
	dir := newLayout(t)
	out := mustSh(t, dir, `$um tag --image img:a b; $um tag --image img:a c/d-e_f:g; $um new --image img
		$um ls --layout img; echo; $um rm --image img:a; $um remove --image img:nosuch; $um list --layout img`)
	expect(t, "tags", "a\nb\nc/d-e_f:g\nlatest\n\nb\nc/d-e_f:g\nlatest\n", out)
	if s := statOf(t, dir, "b"); len(s.History) != 0 {
		t.Errorf("history of a new image: %v", s.History)
	}
}

func TestAnEmptyLayoutIsValid(t *testing.T) {
	imagetest.NeedTools(t, "umoci")
	dir := t.TempDir()
	expect(t, "tags", "", mustSh(t, dir, "$um init --layout p/q/img; $um ls --layout p/q/img; $stock ls --layout p/q/img; $um fsck --layout p/q/img >/dev/null"))
	data, err := os.ReadFile(filepath.Join(dir, "p/q/img/oci-layout"))
	if err != nil || !strings.Contains(string(data), `"imageLayoutVersion":"1.0.0"`) {
		t.Errorf("oci-layout: %s, %v", data, err)
	}
}

// configFlags are all of config's, with what they make of a new image's config.
const configFlags = `--config.user u:g --config.exposedports 80/tcp --config.exposedports 53/udp --config.env A=1 --config.env B=x=y --config.env A=2
	--config.entrypoint e1 --config.entrypoint 'e 2' --config.cmd c1 --config.cmd c2 --config.volume /v --config.volume /w
	--config.label l=1 --config.label m= --config.workingdir /w/d --config.stopsignal SIGUSR1 --created 2020-02-03T04:05:06Z
	--author 'A <a@b>' --manifest.annotation n=o --manifest.annotation p=q --history.author h --history.comment c --history.created 2021-01-01T00:00:00Z
	--history.created_by 'by me'`

func TestConfigSetsEverythingAsStockUmociDoes(t *testing.T) {
	imagetest.NeedTools(t, "umoci")
	dir := newLayout(t)
	flags := strings.ReplaceAll(configFlags, "\n", " ") + " --os linux --architecture s390x"
	mustSh(t, dir, "cp -a img stock; $um config --image img:a --tag b "+flags+"; $stock config --image stock:a --tag b "+flags+"; $stock tag --image stock:b b")
	ours := statOf(t, dir, "b")
	mustSh(t, dir, "mv img ours; mv stock img")
	theirs := statOf(t, dir, "b")
	sameJSON(t, "config", theirs.Config.Blob, ours.Config.Blob)
	sameJSON(t, "history", theirs.History, ours.History)
	for _, s := range []stat{ours, theirs} { // its config's digest depends on white space
		delete(s.Manifest.Blob, "config")
		delete(s.Manifest.Blob, "mediaType") // 0.4.7 leaves it out
	}
	sameJSON(t, "manifest", theirs.Manifest.Blob, ours.Manifest.Blob)
}

func TestConfigClearsBeforeItSetsAndKeepsWhatItDoesNotKnow(t *testing.T) {
	dir := newLayout(t)
	mustSh(t, dir, "$um config --image img:a "+strings.ReplaceAll(configFlags, "\n", " ")+" --platform.variant v3")
	for _, key := range []string{"cmd", "entrypoint", "env", "exposedports", "labels", "volume"} {
		mustSh(t, dir, "$um config --image img:a --tag t --clear config."+key)
		before, after := statOf(t, dir, "a").Config.Blob["config"].(map[string]any), statOf(t, dir, "t").Config.Blob["config"].(map[string]any)
		name := map[string]string{"cmd": "Cmd", "entrypoint": "Entrypoint", "env": "Env", "exposedports": "ExposedPorts", "labels": "Labels", "volume": "Volumes"}[key]
		if before[name] == nil || after[name] != nil {
			t.Errorf("--clear config.%s: %v became %v", key, before[name], after[name])
		}
		delete(before, name)
		sameJSON(t, "what is left after --clear config."+key, before, after)
	}
	mustSh(t, dir, "$um config --image img:a --tag t --clear config.env --config.env N=1 --clear manifest.annotations --no-history")
	s, was := statOf(t, dir, "t"), statOf(t, dir, "a")
	sameJSON(t, "env", []any{"N=1"}, s.Config.Blob["config"].(map[string]any)["Env"])
	if s.Manifest.Blob["annotations"] != nil || len(s.History) != len(was.History) || s.Config.Blob["variant"] != "v3" {
		t.Errorf("annotations %v, %d entries of history, variant %v", s.Manifest.Blob["annotations"], len(s.History), s.Config.Blob["variant"])
	}
}

func TestInsertedLayersAreThoseOfStockUmoci(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedTools(t, "umoci", "setfattr")
	dir := newLayout(t)
	mustSh(t, dir, `mkdir -p src/d/e; echo hi >src/f; ln src/f src/g; ln -s ../f src/d/l; mknod src/dev c 1 3; mkfifo src/fifo
		chown 5:6 src/d; chmod 2751 src/d; setfattr -n user.x -v y src/f; chown -h 7:8 src/d/l; touch -h -d @1500000000 src/d/e src/d/l src/d src/f src/dev src/fifo src
		cp -a img stock
		for um in $um $stock; do l=stock; if [ $um != $stock ]; then l=img; fi
			$um insert --image $l:a --history.created 2021-01-01T00:00:00Z src /opt/s
			$um insert --image $l:a --tag b --opaque src/d opt/s/../s/d
			$um insert --image $l:a --tag c --whiteout /opt/s/f
			$um insert --image $l:a --tag d --uid-map 100:5:1 --uid-map 0:0:5 --uid-map 7:7:9 --gid-map 0:0:100 src/d /m
			for t in a b c d; do $stock unpack --image $l:$t $l.$t; done
		done`)
	for _, tag := range []string{"a", "b", "c", "d"} {
		imagetest.SameTree(t, tag, imagetest.MustReadTree(t, filepath.Join(dir, "stock."+tag, "rootfs")),
			imagetest.MustReadTree(t, filepath.Join(dir, "img."+tag, "rootfs")), imagetest.CompareOptions{
				// Directories above the target are nobody's: they get the time of the unpacking.
				IgnoreTime: func(p string) bool { return p == "." || p == "opt" },
			})
	}
}

// Stock umoci 0.6.0 takes both flags, and writes the whiteout.
func TestAWhiteoutThatIsOpaqueIsAWhiteout(t *testing.T) {
	dir := newLayout(t)
	out := mustSh(t, dir, `mkdir -p s/d; echo hi >s/d/f; $um insert --image img:a s /x; $um insert --image img:a --whiteout --opaque /x/d
		$um tree --image img:a | grep -c /x`)
	expect(t, "names", "1\n", out)
	if list := imagetest.TopLayer(t, filepath.Join(dir, "img"), "a"); len(list) != 1 || list[0].Name != "x/.wh.d" {
		t.Errorf("the layer is %v", list)
	}
}

func TestHelpSaysWhoTheAuthorIs(t *testing.T) {
	for command, want := range map[string]string{
		"insert": "(default none)", "raw add-layer": "(default the image's)", "config": "(default the image's)", "repack": "(default the image's)",
	} {
		if out := mustSh(t, t.TempDir(), "$um "+command+" --help | grep history.author"); !strings.Contains(out, want) {
			t.Errorf("%s: %s", command, out)
		}
	}
}

func TestARawLayerIsAddedAsItIs(t *testing.T) {
	dir := newLayout(t)
	out := mustSh(t, dir, `mkdir s; echo hi >s/f; tar -C s -cf l.tar .
		$um raw add-layer --image img:a l.tar; $um raw add-layer --image img:a --tag b --compress none - <l.tar
		$um cat --image img:b /f; sha256sum <l.tar`)
	sum := strings.Fields(out)[1]
	s := statOf(t, dir, "b")
	diffIDs := s.Config.Blob["rootfs"].(map[string]any)["diff_ids"]
	sameJSON(t, "diff_ids", []any{"sha256:" + sum, "sha256:" + sum}, diffIDs)
	layers := s.Manifest.Blob["layers"].([]any)
	if mt := layers[1].(map[string]any)["mediaType"]; mt != "application/vnd.oci.image.layer.v1.tar" {
		t.Errorf("media type %v", mt)
	}
}

func TestGCKeepsWhatTagsAndBundlesNeed(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	dir := newLayout(t)
	t.Setenv("UMOCI_MOUNT_CACHE", filepath.Join(dir, "cache"))
	mustSh(t, dir, `echo hi >f; $um insert --image img:a f /f; echo ho >f; $um insert --image img:a --tag b f /f`)
	all := blobs(t, dir)
	b := env.MountAt(t, filepath.Join(dir, "bundle"), dir+"/img:b")
	out := mustSh(t, dir, `$um rm --image img:b; $um gc --layout img`)
	if n := blobs(t, dir); n >= all || lines(out, "removed") != 1 { // an old image's documents went
		t.Errorf("%d of %d blobs are left: %s", n, all, out)
	}
	kept := blobs(t, dir)
	b.Umount(t)
	mustSh(t, dir, `$um gc --layout img; $um mount bundle; cat bundle/rootfs/f; $um umount bundle`)
	if n := blobs(t, dir); n != kept {
		t.Errorf("an unmounted bundle's blobs: %d of %d are left", n, kept)
	}
	out = mustSh(t, dir, `rm -rf bundle; $um gc --layout img; $um fsck --layout img >/dev/null; $um cat --image img:a /f`)
	if n := blobs(t, dir); n != kept-3 || !strings.Contains(out, "hi") { // manifest, config, layer
		t.Errorf("after the bundle's removal: %d of %d are left\n%s", n, kept, out)
	}
}

// What a bundle needs is recorded in the layout: whoever collects garbage finds it,
// with whatever cache, and with the bundle mounted or not.
func TestGCKnowsBundlesOfEveryKindAndCache(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	for name, c := range map[string]struct{ make, after, use string }{
		"mounted with another cache": {"$um mount --cache-dir $PWD/c2 --image img:a b", "$um umount b", "$um mount b; cat b/rootfs/f"},
		"raw":                        {"$um raw unpack --image img:a b", "$um umount b", "$um raw unpack --image img:a b; cat b/f"},
		"extracted":                  {"$um unpack --extract --image img:a b", "echo x >b/rootfs/new", "$um repack --image img:new b; $um cat --image img:new /f"},
		"refreshed": {"$um mount --image img:a b", "echo x >b/rootfs/new; $um repack --refresh-bundle --image img:a b; $um umount b",
			"$um mount b; echo y >b/rootfs/new; $um repack --image img:new b; $um cat --image img:new /f"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newLayout(t)
			mustSh(t, dir, "echo hi >f; $um insert --image img:a f /f; "+c.make+"; "+c.after)
			out := mustSh(t, dir, "cp img/index.json saved; $um rm --image img:a; $um gc --layout img >/dev/null; cp saved img/index.json; "+
				c.use+"; if [ -e b/.umoci-mount ] || [ -e .b.umoci-mount ]; then $um umount b; fi")
			expect(t, "/f", "hi\n", out)
			mustSh(t, dir, "$um rm --image img:a; $um rm --image img:new; rm -rf b .b.umoci-mount; $um gc --layout img")
			if n := blobs(t, dir); n != 0 {
				t.Errorf("%d blobs are left when the bundle is gone", n)
			}
		})
	}
}

func TestRuntimeConfigsAreTheBundles(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	dir := newLayout(t)
	mustSh(t, dir, `mkdir -p s/etc; echo 'web:x:33:33::/srv:/bin/sh' >s/etc/passwd; $um insert --image img:a s /
		$um config --image img:a --config.user web --config.cmd sh --config.env X=1 --config.workingdir /srv
		$um raw runtime-config --image img:a one.json 2>/dev/null; $um raw config --image img:a --rootfs s two.json
		$um unpack --image img:a b; $um umount b
		sed 's,"path": "s","path": "rootfs",' two.json | cmp - b/config.json
		grep -q '"uid": 33' two.json; grep -q 'HOME=/srv' two.json; grep -q '"uid": 0' one.json; ! grep -q HOME one.json
		$um config --image img:a --config.user 7:8; $um raw config --image img:a five.json; grep -q '"uid": 7' five.json
		$um raw config --image img:a --rootfs not/yet six.json; sed 's,"path": "yet","path": ".",' six.json | cmp - five.json
		$um config --image img:a --config.user nobody-knows; if $um raw config --image img:a --rootfs s three.json; then exit 1; fi; ! test -e three.json
		$um raw config --image img:a four.json 2>warning; grep -q nobody-knows warning; grep -q '"uid": 0' four.json; ! grep -q HOME four.json`)
}

func TestEpochMakesEverythingReproducible(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	var first string
	for i := range 2 {
		dir := newLayout(t)
		mustSh(t, dir, `mkdir s; echo hi >s/f; $um insert --image img:a s /x; $um config --image img:a --author me; tar --mtime=@5 -cf l.tar -C s f; $um raw add-layer --image img:a l.tar`)
		data, err := os.ReadFile(filepath.Join(dir, "img/index.json"))
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = string(data)
		}
		expect(t, "index.json", first, string(data))
	}
}

func TestWhatUmociRefusesIsRefusedInOneLine(t *testing.T) {
	dir := newLayout(t)
	mustSh(t, dir, "echo x >f; mkdir d; gzip -k f")
	for args, code := range map[string]int{
		"init":                                                       imagetest.CodeUsage,
		"init --layout img":                                          imagetest.CodeState,
		"init --layout a:b":                                          imagetest.CodeUsage,
		"new --image nosuch:a":                                       imagetest.CodeNotFound,
		"new --image img:":                                           imagetest.CodeUsage,
		"new --image img:/bad":                                       imagetest.CodeUsage,
		"tag --image img:a":                                          imagetest.CodeUsage,
		"tag --image img:a bad//tag":                                 imagetest.CodeUsage,
		"tag --image img:nosuch b":                                   imagetest.CodeNotFound,
		"ls --layout nosuch":                                         imagetest.CodeNotFound,
		"stat --image img:nosuch":                                    imagetest.CodeNotFound,
		"stat":                                                       imagetest.CodeUsage,
		"config --image img:nosuch --author x":                       imagetest.CodeNotFound,
		"config --image img:a --clear rootfs.diffids":                imagetest.CodeUsage,
		"config --image img:a --clear nosuch":                        imagetest.CodeUsage,
		"config --image img:a --config.env novalue":                  imagetest.CodeUsage,
		"config --image img:a --manifest.annotation x":               imagetest.CodeUsage,
		"config --image img:a --created yesterday":                   imagetest.CodeUsage,
		"config --image img:a --tag ''":                              imagetest.CodeUsage,
		"config --image img:a --created ''":                          imagetest.CodeUsage,
		"config --image img:a --history.created ''":                  imagetest.CodeUsage,
		"config --image img:a --no-history --history.comment ''":     imagetest.CodeUsage,
		"config --image img:a --platform linux":                      imagetest.CodeUsage,
		"config --image img:a --platform plan9/mips":                 imagetest.CodeNotFound,
		"config --image img:a extra":                                 imagetest.CodeUsage,
		"insert --image img:a f /x/.wh.y":                            imagetest.CodeFailure,
		"insert --image img:a --whiteout /.wh.x":                     imagetest.CodeFailure,
		"insert --image img:a '' /x":                                 imagetest.CodeUsage,
		"insert --image img:a f ''":                                  imagetest.CodeUsage,
		"insert --image img:a f /":                                   imagetest.CodeUsage,
		"insert --image img:a --whiteout /":                          imagetest.CodeUsage,
		"insert --image img:a --uid-map 0:4000000:1 f /x":            imagetest.CodeState,
		"insert --image img:a --gid-map 0:4000000:1 f /x":            imagetest.CodeState,
		"insert --image img:a --uid-map 0:100000:1 --uid-map x f /x": imagetest.CodeUsage,
		"raw add-layer --image img:a f.gz":                           imagetest.CodeImage,
		"rm":                                                         imagetest.CodeUsage,
		"rm --image ''":                                              imagetest.CodeUsage,
		"ls --layout ''":                                             imagetest.CodeUsage,
		"ls --layout img extra":                                      imagetest.CodeUsage,
		"config --image img:a --no-history --history.author x":       imagetest.CodeUsage,
		"insert --image img:a nosuch /x":                             imagetest.CodeNotFound,
		"insert --image img:a f":                                     imagetest.CodeUsage,
		"insert --image img:a --whiteout f /x":                       imagetest.CodeUsage,
		"insert --image img:a --compress lzma f /x":                  imagetest.CodeUsage,
		"raw add-layer --image img:a nosuch":                         imagetest.CodeNotFound,
		"raw add-layer --image img:a img/index.json":                 imagetest.CodeImage,
		"raw runtime-config --image img:nosuch x.json":               imagetest.CodeNotFound,
		"gc --layout nosuch":                                         imagetest.CodeNotFound,
		"gc --layout img --nosuch":                                   imagetest.CodeUsage,
		"nosuch":                                                     imagetest.CodeUsage,
		"raw nosuch":                                                 imagetest.CodeUsage,
	} {
		before := imagetest.MustReadTree(t, filepath.Join(dir, "img"))
		r := sh(t, dir, "$um "+args)
		if r.Code != code || lines(r.Stderr) != 1 || !strings.HasPrefix(r.Stderr, "umoci-mount: ") {
			t.Errorf("%s: exit %d, want %d: %s", args, r.Code, code, r.Stderr)
		}
		after := imagetest.MustReadTree(t, filepath.Join(dir, "img"))
		maps.DeleteFunc(after, func(p string, _ *imagetest.Entry) bool { return strings.HasPrefix(p, ".lock") || p == "." })
		maps.DeleteFunc(before, func(p string, _ *imagetest.Entry) bool { return strings.HasPrefix(p, ".lock") || p == "." })
		imagetest.SameTree(t, fmt.Sprintf("the layout after %q", args), before, after, imagetest.CompareOptions{
			DirNlink: true, IgnoreTime: func(string) bool { return true },
		})
	}
}

// As with umoci, the umask takes its part of the modes of a bundle's files.
func TestABundlesFilesKeepToTheUmask(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	dir := newLayout(t)
	const modes = `stat -c %a b/config.json b/umoci.json b/*.mtree | sort -u; `
	out := mustSh(t, dir, `umask 077; $um unpack --mtree --image img:a b; `+modes+`
		echo hi >b/rootfs/f; $um repack --refresh-bundle --image img:b b; `+modes+`$um umount b; rm -rf b
		umask 022; $um unpack --mtree --image img:a b; `+modes+`$um umount b; rm -rf b
		umask 077; $um unpack --extract --image img:a b; `+modes+`
		echo hi >b/rootfs/f; $um repack --refresh-bundle --image img:b b; `+modes)
	expect(t, "modes", "600\n600\n644\n600\n600\n", out)
}

// Of a success only what the result does not say is on stderr (docs/cli.md).
func TestARepackWithoutChangesSaysSoOnStderr(t *testing.T) {
	imagetest.NeedRoot(t)
	dir := newLayout(t)
	mustSh(t, dir, "$um unpack --no-mount --image img:a b")
	for args, want := range map[string]string{"": "nothing has changed: img:b has no new layer\n", " --allow-empty": ""} {
		if r := sh(t, dir, "$um repack --image img:b b"+args); r.Code != 0 || r.Stdout != "" || r.Stderr != want {
			t.Errorf("repack%s: exit %d, %q, %q", args, r.Code, r.Stdout, r.Stderr)
		}
	}
}

func TestAMountIsALineOfStatusWhateverItsPath(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	dir := newLayout(t)
	b := env.MountAt(t, filepath.Join(dir, "bun\ndle"), filepath.Join(dir, "img:a"))
	if out := mustSh(t, dir, "$um status"); lines(out, `bun\ndle"`, "img:a") != 1 {
		t.Errorf("status: %s", out)
	}
	b.Umount(t)
}

func TestUnderTheNameUmociItSaysUmoci(t *testing.T) {
	dir := newLayout(t)
	out := mustSh(t, dir, "ln -s $um umoci; ./umoci --version; ./umoci help; ./umoci raw config --help")
	for _, want := range []string{"umoci version ", "image spec: 1.", "runtime spec: 1.", "go: go1.", "umoci raw runtime-config"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// The calls of a build script that wraps umoci: an image is made from nothing in a
// directory that it works in as root.
func TestAWrappersSequenceRunsUnchanged(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	imagetest.NeedTools(t, "busybox")
	dir := t.TempDir()
	out := mustSh(t, dir, `ln -s $um umoci; PATH=$PWD:$PATH
		umoci init --layout oci; umoci new --image oci:empty
		umoci unpack --image oci:empty work
		mkdir -p work/rootfs/bin; cp $(command -v busybox) work/rootfs/bin/busybox; chroot work/rootfs /bin/busybox --install -s /bin
		umoci repack --image oci:base work
		umoci config --image oci:base --config.cmd /bin/sh --author me; umoci tag --image oci:base base-1
		umoci umount work; rm -rf work
		umoci unpack --image oci:base work; echo made >work/rootfs/made; chroot work/rootfs /bin/cat /made
		umoci repack --image oci:target work; umoci umount work; rm -rf work
		umoci rm --image oci:empty; umoci gc --layout oci >/dev/null; umoci ls --layout oci; umoci cat --image oci:target /made`)
	expect(t, "output", "made\nbase\nbase-1\ntarget\nmade\n", out)
}

// Neither the layout's path nor the bundle's need be UTF-8: both are in JSON documents.
func TestPathsThatAreNoUTF8AreKept(t *testing.T) {
	imagetest.NeedRoot(t)
	imagetest.NeedFuse(t)
	dir := newLayout(t)
	env.MountAt(t, filepath.Join(dir, "b\xfe"), filepath.Join(dir, "img:a")).Umount(t)
	out := mustSh(t, dir, `bad=$(printf '\376'); $um rm --image img:a; $um gc --layout img
		echo x >b$bad/upper/f; $um repack --image img:a b$bad; $um cat --image img:a f
		mv img i$bad; $um unpack --cache-dir cache$bad --image i$bad:a c$bad; $um umount c$bad; $um unpack c$bad; $um umount c$bad
		ls -d cache$bad >/dev/null; rm -r b$bad c$bad; $um rm --image i$bad:a; $um gc --layout i$bad | sed 's/,.*//'`)
	expect(t, "output", "removed 0 blobs, 0 B\nx\nremoved 5 blobs\n", out)
}

// What cannot be written is not done, whatever a script does with it.
func TestACommandWhoseOutputIsLostFails(t *testing.T) {
	dir := newLayout(t)
	for _, args := range []string{
		"ls --layout img", "gc --layout img", "stat --image img:a", "stat --json --image img:a", "status", "tree --image img:a",
		"tree --json --image img:a", "fsck --layout img", "fsck --json --layout img", "cache ls", "cache prune --all", "--version",
	} {
		if r := sh(t, dir, "$um "+args+" >/dev/full"); r.Code != imagetest.CodeSpace || !strings.Contains(r.Stderr, "no space left") {
			t.Errorf("%s: exit %d\n%s", args, r.Code, r.Stderr)
		}
	}
}
