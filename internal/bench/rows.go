package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	findAll = `find . -ls >/dev/null`
	tarAll  = `tar -cf - . 2>/dev/null | cat >/dev/null`
	grepAll = `grep -rIl -D skip no-such-text-anywhere usr/share usr/lib 2>/dev/null || true`
	// small makes, looks at, renames and removes ten thousand files.
	small = `perl -e '
		mkdir "work" or die; my $n = 10000;
		for my $i (0..$n-1) { open(my $f, ">", "work/f$i") or die; print $f "x" x 100; close $f }
		for my $i (0..$n-1) { stat("work/f$i") or die }
		for my $i (0..$n-1) { rename("work/f$i", "work/g$i") or die }
		for my $i (0..$n-1) { unlink("work/g$i") or die }
		rmdir "work" or die'`
	sequential = `dd if=/dev/zero of=big bs=1M count=512 status=none; dd if=big of=/dev/null bs=1M status=none; rm big`
	random     = `perl -e '
		open(my $f, "+>", "big") or die; truncate($f, 256 << 20); srand(1); my $b = "x" x 4096;
		for (1..40000) { sysseek($f, 4096 * int(rand(65536)), 0); syswrite($f, $b) == 4096 or die }
		for (1..40000) { sysseek($f, 4096 * int(rand(65536)), 0); sysread($f, $b, 4096) == 4096 or die }'; rm big`
	// compileOne and gitOne use the programs that are measured next: those of a mount of a
	// moment ago would have yet to be read, and those of a directory are in memory. The
	// rows of the first gcc and others are for that.
	compileOne = `chroot . /bin/sh -ec 'cd /tmp; echo "int one;" >one.c; echo "all: ; cc -c one.c && ar rcs one.a one.o" >Makefile; make -s; rm one.* Makefile'`
	gitOne     = `chroot . /bin/sh -ec 'export HOME=/root; mkdir /one; cd /one; echo 1 >one; git init -q .; git add .
		git -c user.name=t -c user.email=t commit -qm one; git clone -q --no-hardlinks /one /two; rm -r /one /two'`
	// compile is a small C project, built by two jobs in the image.
	compile = `chroot . /bin/sh -ec 'mkdir /bld; cd /bld; for i in $(seq 80); do echo "#include <stdio.h>
#include <stdlib.h>
int f$i(int x) { return x + printf(\"%d\", $i); }" >f$i.c; done
		echo "OBJ := \$(patsubst %.c,%.o,\$(wildcard *.c))
lib.a: \$(OBJ)
	ar rcs \$@ \$^" >Makefile; make -s -j2'`
	gitWork = `chroot . /bin/sh -ec 'export HOME=/root GIT_CONFIG_COUNT=2 GIT_CONFIG_KEY_0=user.name GIT_CONFIG_VALUE_0=t GIT_CONFIG_KEY_1=user.email GIT_CONFIG_VALUE_1=t
		mkdir /repo; cp -r /usr/share/perl /repo/perl; cd /repo; git init -q .; git add .; git commit -qm one; git clone -q --no-hardlinks /repo /repo2'`

	// makeDeb and makeNpm make packages of what the image has; no network is asked.
	makeDeb = `chroot . /bin/sh -ec 'mkdir -p /tmp/deb/DEBIAN /tmp/deb/opt; cp -r /usr/share/perl /tmp/deb/opt/perl
		printf "Package: bench\nVersion: 1\nArchitecture: all\nMaintainer: bench <bench@localhost>\nDescription: bench\n" >/tmp/deb/DEBIAN/control
		dpkg-deb --build /tmp/deb /tmp/bench.deb; rm -r /tmp/deb'`
	installDeb = `chroot . apt-get install -y /tmp/bench.deb`
	makeNpm    = `chroot . /bin/sh -ec 'mkdir -p /tmp/npm/package; cp -r /usr/share/perl /tmp/npm/package/perl
		printf "{\"name\": \"bench\", \"version\": \"1.0.0\"}" >/tmp/npm/package/package.json; tar -C /tmp/npm -czf /tmp/bench.tgz package; rm -r /tmp/npm'`
	installNpm = `chroot . /bin/sh -ec 'mkdir /app; cd /app; npm install --offline --no-audit --no-fund --cache /tmp/cache /tmp/bench.tgz'`
)

// both are who can show an image as root; ours in both of its ways with files.
var both = []string{ours, oursPass, overlay, fuseOver}

// readers are both, and what all of them are compared with.
var readers = append(both[:len(both):len(both)], extracted)

// metadata is the target beside fuse-overlayfs where no data is read or written, and for
// a plain user always.
const metadata = 1.0 / 5

// rows are all that is measured, by what a user meets.
func rows() []row {
	list := []row{
		firstMount(),
		nextMount(""),
		nextMount("million"),
		quickEdit(),
		repackFew("compiler", 1),
		repackFew("million", 1),
		repackFew("compiler", 1000),
		repackFew("million", 1000),
		repackMuch(),
		repackMuchSize(),

		in("find -ls, everything cached", findAll, false, readers...).against(overlay, 1.15).against(fuseOver, metadata).against(extracted, 0),
		in("tar of the tree, everything cached", tarAll, false, readers...).against(overlay, 1.3).against(extracted, 0).notQuick(),
		in("grep -r, everything cached", grepAll, false, readers...).against(overlay, 1.3).against(extracted, 0),
		in("find -ls, caches dropped", findAll, true, readers...).against(overlay, 1).against(fuseOver, metadata).against(extracted, 0),
		in("tar of the tree, caches dropped", tarAll, true, readers...).against(overlay, 1).against(extracted, 0).notQuick(),
		in("grep -r, caches dropped", grepAll, true, readers...).against(overlay, 1).against(extracted, 0).notQuick(),

		start("python3 -c pass"), start("gcc --version"), start("node -e 0"),

		anewAfter(compileOne, "make -j2 of 80 C files", compile, both...).against(overlay, 1.25).notQuick(),
		anewAfter(gitOne, "git add, commit and clone", gitWork, both...).against(overlay, 1.25).notQuick(),
		anewAfter(makeDeb, "apt-get install of 1,200 files", installDeb, both...).against(overlay, 1.25).notQuick(),
		anewAfter(makeNpm, "npm install of 1,200 files", installNpm, both...).against(overlay, 1.25).notQuick(),
		anew("create, stat, rename, remove 10 k files", small, both...).against(overlay, 2).against(fuseOver, metadata).quickWithout(fuseOver),
		anew("rm -rf of /usr/share", `rm -rf usr/share`, both...).against(overlay, 0).against(fuseOver, metadata).notQuick(),
		anew("chmod -R of /usr/share", `chmod -R g+w usr/share`, both...).against(overlay, 1).against(fuseOver, metadata).notQuick(),
		anew("chown -R of /usr/share", `chown -R 1:1 usr/share`, both...).against(overlay, 1).against(fuseOver, metadata).notQuick(),
		anew("mv of /usr/share", `mv usr/share moved`, both...).against(overlay, 1).against(fuseOver, metadata).notQuick(),
		anewTwice("write and read 512 MB in sequence, passthrough", sequential, oursPass, overlay).against(overlay, 1.1).notQuick(),
		anewTwice("write and read 512 MB in sequence", sequential, ours, overlay, fuseOver).against(overlay, 0).against(fuseOver, 0).notQuick(),
		anewTwice("write and read 4 KiB at random, 80 k times, passthrough", random, oursPass, overlay).against(overlay, 1.1).notQuick(),
		anewTwice("write and read 4 KiB at random, 80 k times", random, ours, overlay, fuseOver).against(overlay, 0).against(fuseOver, 0).notQuick(),
	}
	for _, r := range []row{
		in("find -ls, everything cached, plain user", findAll, false, userOurs, userOther),
		in("tar of the tree, everything cached, plain user", tarAll, false, userOurs, userOther),
		in("find -ls, caches dropped, plain user", findAll, true, userOurs, userOther),
		anew("create, stat, rename, remove 10 k files, plain user", small, userOurs, userOther),
		anew("chmod -R of /usr/share, plain user", `chmod -R g+w usr/share`, userOurs, userOther),
		anewTwice("write and read 512 MB in sequence, plain user", sequential, userOurs, userOther),
	} {
		list = append(list, r.against(userOther, metadata).notQuick())
	}
	for _, r := range []row{
		memory("idle", 25, `true`), memory("after find", 40, findAll), memory("after reading everything", 128, tarAll),
		cacheSize("index of the layers on disk, of the compressed layers", 2, ".idx", ".toc"),
		cacheSize("merged tree on disk, of the compressed layers", 2, ".tree"),
	} {
		list = append(list, r.notQuick())
	}
	return list
}

// ref names an image of the layout.
func (b *bench) ref(tag string) string { return b.images + ":" + tag }

// firstMount is from nothing to a live tree; umoci extracts, and igzip reads the layers
// alone.
func firstMount() row {
	r := row{name: "first mount, nothing cached", contenders: []string{ours, umoci, igzip}, goals: []goal{{umoci, 1.0 / 8}, {igzip, 1}}}
	r.begin = func(b *bench, who string) (trial, func() error, error) {
		layers, err := b.layers(b.tag())
		if err != nil {
			return nil, nil, err
		}
		return func() (s float64, err error) {
			dir, err := b.dir()
			if err != nil {
				return 0, err
			}
			if err := settle(true); err != nil {
				return 0, err
			}
			switch who {
			case ours:
				s, err = timed(func() error {
					return sh(dir+".log", "", `"$0" mount --cache-dir "$2/cache" --image "$1" "$2/b"`, b.bin, b.ref(b.tag()), dir)
				})
				return s, errors.Join(err, sh(dir+".log", "", `"$0" umount "$1/b"`, b.bin, dir))
			case umoci:
				return timed(func() error { return sh(dir+".log", "", `umoci unpack --image "$0" "$1/b"`, b.ref(b.tag()), dir) })
			}
			return timed(func() error {
				return sh(dir+".log", "", `for l in "$0" "$@"; do igzip -d -c "$l" >/dev/null; done`, layers...)
			})
		}, nil, nil
	}
	return r
}

// layers are the blobs of an image's layers.
func (b *bench) layers(tag string) ([]string, error) {
	var stat struct {
		Manifest struct {
			Blob struct {
				Layers []struct{ Digest string }
			}
		}
	}
	if err := json.Unmarshal([]byte(b.output(b.bin, "stat", "--json", "--image", b.ref(tag))), &stat); err != nil {
		return nil, fmt.Errorf("stat of %s: %w", tag, err)
	}
	var out []string
	for _, l := range stat.Manifest.Blob.Layers {
		out = append(out, filepath.Join(b.images, "blobs", strings.Replace(l.Digest, ":", "/", 1)))
	}
	return out, nil
}

// nextMount is from the command's start to a tree that answers.
func nextMount(tag string) row {
	r := row{name: "next mount", contenders: []string{ours}, most: 0.025}
	if tag != "" {
		r.name, r.full = r.name+", 1 M entries", true
	}
	r.begin = func(b *bench, _ string) (trial, func() error, error) {
		image := b.ref(b.tag())
		if tag == "million" {
			var err error
			if image, err = b.million(); err != nil {
				return nil, nil, err
			}
		}
		dir, err := b.dir()
		if err != nil {
			return nil, nil, err
		}
		once := func() (float64, error) {
			s, err := timed(func() error {
				return sh(dir+".log", "", `"$0" mount --image "$1" "$2/b"; cd "$2/b/rootfs"; [ -d . ]`, b.bin, image, dir)
			})
			return s, errors.Join(err, sh(dir+".log", "", `"$0" umount --discard "$1/b"`, b.bin, dir))
		}
		_, err = once() // makes the index
		return func() (float64, error) {
			if err := settle(false); err != nil {
				return 0, err
			}
			return once()
		}, nil, err
	}
	return r
}

// quickEdit is mount, change a file, unmount, repack.
func quickEdit() row {
	r := row{name: "quick edit: mount, change a file, unmount, repack", contenders: []string{ours, umoci}, goals: []goal{{umoci, 0.01}}, most: 0.1}
	r.begin = func(b *bench, who string) (trial, func() error, error) {
		tool := map[string]string{ours: b.bin, umoci: umoci}[who]
		script := `"$0" unpack --image "$1" "$2/b"; echo changed >>"$2/b/rootfs/etc/passwd"; [ "$3" = umoci ] || "$0" umount "$2/b"; "$0" repack --image "$1-edited" "$2/b"`
		return func() (s float64, err error) {
			dir, err := b.dir()
			if err != nil {
				return 0, err
			}
			if err := settle(false); err != nil {
				return 0, err
			}
			s, err = timed(func() error { return sh(dir+".log", "", script, tool, b.ref(b.tag()), dir, who) })
			return s, errors.Join(err, sh(dir+".log", "", `"$0" rm --image "$1-edited"`, b.bin, b.ref(b.tag())))
		}, nil, nil
	}
	return r
}

// repackFew repacks a mounted bundle with n new files: the image's size does not count.
func repackFew(tag string, n int) row {
	r := row{name: "repack of one changed file, image " + tag, contenders: []string{ours}, most: 0.05, full: true}
	if n > 1 {
		r.name, r.most = fmt.Sprintf("repack of %d changed files, image %s", n, tag), 0 // shows what it grows with
	}
	r.begin = func(b *bench, _ string) (trial, func() error, error) {
		image := b.ref(tag)
		if tag == "million" {
			var err error
			if image, err = b.million(); err != nil {
				return nil, nil, err
			}
		}
		dir, err := b.dir()
		if err != nil {
			return nil, nil, err
		}
		err = sh(dir+".log", "", `"$0" mount --image "$1" "$2/b"; for i in $(seq "$3"); do echo "$i" >"$2/b/rootfs/changed$i"; done`, b.bin, image, dir, strconv.Itoa(n))
		return func() (float64, error) {
				if err := settle(false); err != nil {
					return 0, err
				}
				return timed(func() error { return sh(dir+".log", "", `"$0" repack --image "$1-few" "$2/b"`, b.bin, image, dir) })
			}, func() error {
				return sh(dir+".log", "", `"$0" umount "$2/b"; "$0" rm --image "$1-few"`, b.bin, image, dir)
			}, err
	}
	return r
}

// repackMuch repacks 500 MB of new files, half of which compress.
func repackMuch() row {
	r := row{name: "repack of 500 MB of changes", contenders: []string{ours, umoci}, goals: []goal{{umoci, 1}}, full: true}
	r.begin = func(b *bench, who string) (trial, func() error, error) {
		repack, end, err := b.muchChanged(who)
		return func() (float64, error) {
			if err := settle(false); err != nil {
				return 0, err
			}
			return timed(repack)
		}, end, err
	}
	return r
}

// repackMuchSize is the size of the layer that repackMuch makes, in MB.
func repackMuchSize() row {
	r := row{name: "the layer of 500 MB of changes", contenders: []string{ours, umoci}, goals: []goal{{umoci, 1.02}}, unit: "MB", full: true}
	r.begin = func(b *bench, who string) (trial, func() error, error) {
		repack, end, err := b.muchChanged(who)
		return func() (float64, error) {
			if err := repack(); err != nil {
				return 0, err
			}
			layers, err := b.layers("minbase-much")
			if err != nil {
				return 0, err
			}
			info, err := os.Stat(layers[len(layers)-1])
			if err != nil {
				return 0, err
			}
			return float64(info.Size()) / 1e6, nil
		}, end, err
	}
	return r
}

// muchChanged prepares a bundle with 500 MB of new files, and gives what repacks it as
// minbase-much, and what ends it.
func (b *bench) muchChanged(who string) (repack, end func() error, err error) {
	tool := map[string]string{ours: b.bin, umoci: umoci}[who]
	dir, err := b.dir()
	if err != nil {
		return nil, nil, err
	}
	err = sh(dir+".log", "", `"$0" unpack --image "$1" "$2/b"; mkdir "$2/b/rootfs/new"
		perl -e 'srand(2); for my $i (0..499) { open(my $f, ">", "$ARGV[0]/$i") or die;
			for (1..64) { print $f pack("L*", map { int(rand(2**32)) } 1..2048), "some text that compresses well " x 264 } }' "$2/b/rootfs/new"`, tool, b.ref("minbase"), dir)
	return func() error {
			return sh(dir+".log", "", `"$0" repack --image "$1-much" "$2/b"`, tool, b.ref("minbase"), dir)
		}, func() error {
			return sh(dir+".log", "", `[ "$3" = umoci ] || "$0" umount "$2/b"; "$0" rm --image "$1-much"`, b.bin, b.ref("minbase"), dir, who)
		}, err
}

// start is the first start of a program after caches were dropped.
func start(command string) row {
	return in("first "+command+", caches dropped", "chroot . "+command+" >/dev/null", true, both...).against(overlay, 1.5).notQuick()
}

// memory is the daemon's resident memory after some work, in MB.
func memory(when string, most float64, script string) row {
	r := row{name: "daemon's memory, " + when, contenders: []string{ours}, most: most, unit: "MB"}
	r.begin = func(b *bench, who string) (trial, func() error, error) {
		image := b.ref(b.tag())
		if script == findAll {
			var err error
			if image, err = b.million(); err != nil {
				return nil, nil, err
			}
		}
		return func() (mb float64, err error) {
			dir, err := b.dir()
			if err != nil {
				return 0, err
			}
			defer func() { err = errors.Join(err, sh(dir+".log", "", `"$0" umount "$1/b"`, b.bin, dir)) }()
			if err := sh(dir+".log", "", `"$0" mount --image "$1" "$2/b"; cd "$2/b/rootfs"; `+script, b.bin, image, dir); err != nil {
				return 0, err
			}
			time.Sleep(restAfter)
			return b.resident(dir + "/b")
		}, nil, nil
	}
	return r
}

// restAfter is how long a daemon takes at most to give back what a burst left in memory.
const restAfter = 7 * time.Second

// resident is the memory of the daemon of a bundle, in MB.
func (b *bench) resident(bundle string) (float64, error) {
	var mounts []struct {
		PID    int
		Bundle string
	}
	if err := json.Unmarshal([]byte(b.output(b.bin, "status", "--json")), &mounts); err != nil {
		return 0, err
	}
	for _, m := range mounts {
		if m.Bundle != bundle {
			continue
		}
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.PID))
		if err != nil {
			return 0, err
		}
		if kb := regexp.MustCompile(`VmRSS:\s*(\d+)`).FindSubmatch(data); kb != nil {
			n, err := strconv.ParseFloat(string(kb[1]), 64)
			return n / 1024, err
		}
	}
	return 0, fmt.Errorf("%s is not mounted", bundle)
}

// cacheSize is what files of some kinds in the cache of an image take, in percent of its
// compressed layers.
func cacheSize(name string, most float64, kinds ...string) row {
	r := row{name: name, contenders: []string{ours}, most: most, unit: "%"}
	r.begin = func(b *bench, _ string) (trial, func() error, error) {
		return func() (float64, error) {
			dir, err := b.dir()
			if err != nil {
				return 0, err
			}
			if err := sh(dir+".log", "", `"$0" cache warm --cache-dir "$2/cache" --image "$1"`, b.bin, b.ref(b.tag()), dir); err != nil {
				return 0, err
			}
			var index, blobs float64
			err = filepath.WalkDir(dir+"/cache", func(_ string, d fs.DirEntry, err error) error {
				if err != nil || !slices.Contains(kinds, filepath.Ext(d.Name())) {
					return err
				}
				info, err := d.Info()
				index += float64(info.Size())
				return err
			})
			if err != nil {
				return 0, err
			}
			layers, err := b.layers(b.tag())
			for _, l := range layers {
				info, err := os.Stat(l)
				if err != nil {
					return 0, err
				}
				blobs += float64(info.Size())
			}
			return 100 * index / blobs, err
		}, nil, nil
	}
	return r
}

// million is an image of a million small files in a thousand directories.
func (b *bench) million() (string, error) {
	script := `"$0" init --layout "$1"; "$0" new --image "$1:million"
		perl -e 'for my $d (0..999) { printf "%s", head("d$d/", 5, 0); for my $f (0..999) { my $t = "$d $f\n"; print head("d$d/f$f", 0, length $t), $t, "\0" x (512 - length $t) } }
			print "\0" x 1024;
			sub head { my ($n, $type, $size) = @_; my $h = pack("a100 a8 a8 a8 a12 a12 a8 a1 a100 a6 a2 a247", $n, $type ? "0000755" : "0000644", "0000000", "0000000",
				sprintf("%011o", $size), "14000000000", "        ", $type, "", "ustar", "00", "");
				substr($h, 148, 8) = sprintf("%06o\0 ", unpack("%32C*", $h)); $h }' >"$1.tar"
		"$0" raw add-layer --image "$1:million" "$1.tar"; rm "$1.tar"`
	if !b.have("perl") {
		return "", errors.New("no perl")
	}
	layout, err := b.shared("million", func(path string) error { return sh(path+".log", "", script, b.bin, path) })
	return layout + ":million", err
}
