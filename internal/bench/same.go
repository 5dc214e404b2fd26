package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// treeSum is the digest of all in a directory: names, content, and what tar keeps of each
// object. The directory itself is left out: overlayfs' root has times of its own; and so is
// /dev for a plain user, who cannot extract a device.
func (b *bench) treeSum(dir, user string) (string, error) {
	log := fmt.Sprintf("%s/sum-%d", b.work, len(b.sums)) // what sh prints goes there
	left := ""
	if user != "" {
		left = "dev"
	}
	err := sh(log, user, `cd "$0"; find . -mindepth 1 -maxdepth 1 ! -name "$1" -print0 | LC_ALL=C sort -z |
		tar --null -T - --sort=name --numeric-owner -cf - 2>/dev/null | sha256sum`, dir, left)
	if err != nil {
		return "", err
	}
	sum, err := os.ReadFile(log)
	return strings.TrimSpace(string(sum)), err
}

// wantedSum is the digest of the tree that stock umoci extracts; where it is not here, or
// a plain user is to extract, of the one that the peers' views are made of.
func (b *bench) wantedSum(tag, user string) (string, error) {
	key := "wanted " + tag + " " + user
	if sum := b.sums[key]; sum != "" {
		return sum, nil
	}
	dir, err := b.tree(tag, user)
	if err != nil {
		return "", err
	}
	if user == "" && b.have(umoci) {
		disk, err := b.dir()
		if err != nil {
			return "", err
		}
		dir = disk + "/b/rootfs"
		if err := sh(disk+".log", "", `umoci unpack --image "$0" "$1/b"`, b.ref(tag), disk); err != nil {
			return "", err
		}
	}
	b.sums[key], err = b.treeSum(dir, user)
	return b.sums[key], err
}

// checkTree sees, once for each contender and image, that it shows the tree it should. It
// has its own cache: what is measured later has not been read before.
func (b *bench) checkTree(who, tag string) (err error) {
	key := who + " " + tag
	if b.sums[key] != "" {
		return nil
	}
	user := b.as(who)
	want, err := b.wantedSum(tag, user)
	if err != nil {
		return err
	}
	v, err := b.view(who, tag, "check-cache")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.end()) }()
	got, err := b.treeSum(v.root, user)
	if err == nil && got != want {
		err = fmt.Errorf("it shows another tree than it should: %s, not %s", got, want)
	}
	if err == nil {
		b.sums[key] = got
	}
	return err
}
