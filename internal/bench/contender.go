package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Contenders. ours comes first in every row; the ratio is its median by the peer's.
const (
	ours      = "umoci-mount"
	oursPass  = "umoci-mount --passthrough"
	umoci     = "umoci"
	overlay   = "overlayfs"
	fuseOver  = "fuse-overlayfs"
	igzip     = "igzip"
	userOurs  = "umoci-mount, plain user"
	userOther = "fuse-overlayfs, plain user"
	extracted = "extracted tree" // on the disk, with nothing over it
)

// bench is what the rows share.
type bench struct {
	options
	missing []string
	made    map[string]bool   // what several rows use and is there
	sums    map[string]string // digests of trees: see checkTree
	seq     int
	disks   []string // where they are mounted, the last one last
}

// output runs a program, for what it prints.
func (b *bench) output(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return ""
	}
	return string(out)
}

func (b *bench) have(tool string) bool {
	_, err := exec.LookPath(tool)
	return err == nil
}

// prepare looks for peers and images, and extracts the trees that peers need.
func prepare(o options) (*bench, error) {
	b := &bench{options: o, made: map[string]bool{}, sums: map[string]string{}}
	for _, tool := range []string{umoci, fuseOver, igzip} {
		if !b.have(tool) {
			b.missing = append(b.missing, tool)
		}
	}
	if err := os.RemoveAll(o.work); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.work, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chmod(o.work, 0o777|os.ModeSticky); err != nil { // the plain user's tree is there too
		return nil, err
	}
	tags := strings.Fields(b.output(o.bin, "list", "--layout", o.images))
	if len(tags) == 0 {
		return nil, fmt.Errorf("no images in %s: make bench-images", o.images)
	}
	return b, nil
}

func (b *bench) close() {
	if err := errors.Join(b.sweep(0), os.RemoveAll(b.work)); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

// tag is the image of most rows.
func (b *bench) tag() string { return b.image }

// dir is the root of a new file system. What a file system was used for before counts:
// for minutes ext4 gives no inode out again that was freed, and looks at all of them at
// each creation (recently_deleted in fs/ext4/ialloc.c).
func (b *bench) dir() (string, error) {
	b.seq++
	dir := filepath.Join(b.work, strconv.Itoa(b.seq))
	if err := os.Mkdir(dir, 0o777); err != nil {
		return "", err
	}
	b.disks = append(b.disks, dir)
	return dir, sh(dir+".log", "", `truncate -s 16G "$0.ext4"
		mkfs.ext4 -q -E lazy_itable_init=1,lazy_journal_init=1 "$0.ext4"
		loop=$(losetup --find --show --direct-io=on "$0.ext4")
		mount -o noinit_itable "$loop" "$0"; losetup --detach "$loop"; chmod 1777 "$0"`, dir)
}

// sweep gives file systems back, all but the first few that were made.
func (b *bench) sweep(keep int) error {
	var errs []error
	for _, dir := range b.disks[keep:] {
		errs = append(errs, sh(dir+".log", "", `! mountpoint -q "$0" || umount "$0"; rm -f "$0.ext4"; rmdir "$0"`, dir))
	}
	b.disks = b.disks[:keep]
	return errors.Join(errs...)
}

// shared is the path of something that several rows use, made when the first needs it.
func (b *bench) shared(name string, do func(path string) error) (string, error) {
	path := filepath.Join(b.work, name)
	if b.made[path] {
		return path, nil
	}
	err := do(path)
	b.made[path] = err == nil
	return path, err
}

// layoutOf is the layout that a user can read; "" for root.
func (b *bench) layoutOf(user string) (string, error) {
	if user == "" {
		return b.images, nil
	}
	return b.shared("images-"+user, func(own string) error {
		return sh(own+".log", "", `cp -r "$0" "$1"; chown -R "$2" "$1"`, b.images, own, user)
	})
}

// tree is an image extracted by the program under measurement, by root or by a user, who
// can then read all of it.
func (b *bench) tree(tag, user string) (string, error) {
	return b.shared("tree-"+tag+user, func(dir string) error {
		layout, err := b.layoutOf(user)
		if err != nil {
			return err
		}
		return sh(dir+".log", user, `"$0" raw unpack --extract --image "$1" "$2"`, b.bin, layout+":"+tag, dir)
	})
}

// sh runs a shell script; what it prints goes to a log that a failure quotes. As user,
// where one is given.
func sh(log, user, script string, args ...string) error {
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	defer f.Close()
	line := append([]string{"sh", "-ec", script}, args...)
	if user != "" {
		line = append([]string{"setpriv", "--reuid=" + user, "--regid=" + user, "--init-groups", "--reset-env"}, line...)
	}
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(log)
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(text[max(0, len(text)-500):]))
	}
	return nil
}

// view is a tree that can be changed, and its end.
type view struct {
	root string
	end  func() error
}

// mount gives a contender's view of an image, with nothing changed in it yet; no view that
// shows another tree than the others.
func (b *bench) mount(who, tag string) (view, error) {
	if err := b.checkTree(who, tag); err != nil {
		return view{}, err
	}
	return b.view(who, tag, "")
}

// view is mount, unchecked. cache is a directory for an index of its own, on the disk that
// is made for the view; "": the program's usual one.
func (b *bench) view(who, tag, cache string) (view, error) {
	if who == extracted {
		root, err := b.tree(tag, "")
		return view{root, func() error { return nil }}, err
	}
	dir, err := b.dir()
	if err != nil {
		return view{}, err
	}
	log := dir + ".log"
	user := b.as(who)
	if who == ours || who == oursPass || who == userOurs {
		layout, err := b.layoutOf(user)
		if err != nil {
			return view{}, err
		}
		if cache != "" {
			cache = dir + "/" + cache
		}
		err = sh(log, user, `"$0" mount --passthrough="$3" ${4:+--cache-dir "$4"} --image "$1" "$2/b"`,
			b.bin, layout+":"+tag, dir, strconv.FormatBool(who == oursPass), cache)
		return view{dir + "/b/rootfs", func() error { return sh(log, user, `"$0" umount "$1/b"`, b.bin, dir) }}, err
	}
	lower, err := b.tree(tag, user)
	if err != nil {
		return view{}, err
	}
	if err := sh(log, user, `mkdir "$0/up" "$0/wk" "$0/m"`, dir); err != nil {
		return view{}, err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/up,workdir=%s/wk", lower, dir, dir)
	switch who {
	case overlay:
		err = unix.Mount("overlay", dir+"/m", "overlay", 0, options)
		return view{dir + "/m", func() error { return unix.Unmount(dir+"/m", 0) }}, err
	case fuseOver, userOther:
		if user == "" {
			options += ",dev,suid" // as root's other mounts
		}
		err = sh(log, user, `fuse-overlayfs -o "$0" "$1/m"`, options, dir)
		return view{dir + "/m", func() error {
			return errors.Join(sh(log, user, `fusermount3 -u "$0/m"`, dir), waitGone(dir+"/m"))
		}}, err
	}
	return view{}, fmt.Errorf("no contender %s", who)
}

// waitGone waits for a daemon that ends after its mount.
func waitGone(point string) error {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if !strings.Contains(string(mountinfo()), " "+point+" ") {
			return nil
		}
	}
	return fmt.Errorf("%s is still mounted", point)
}

func mountinfo() []byte {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	return data
}

// settle lets the disk come to rest: written pages otherwise count for who comes next.
func settle(drop bool) error {
	unix.Sync()
	if drop {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
			return err
		}
	}
	time.Sleep(100 * time.Millisecond)
	return nil
}
