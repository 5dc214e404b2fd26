#!/bin/bash
# mkbusybox.sh LAYOUT: tag "busybox" in LAYOUT, one layer, the static busybox and a
# link for each of its applets.
set -euo pipefail
. "$(dirname "$0")/common.sh"
[ $# -eq 1 ] || die "want LAYOUT"
layout=$1
need umoci busybox
[ "$(id -u)" -eq 0 ] || die "needs root"
has_tag "$layout" busybox && exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
layout_init "$layout"
umoci new --image "$layout:busybox-new"
umoci unpack --image "$layout:busybox-new" "$work/bundle"
root=$work/bundle/rootfs
mkdir -p "$root"/{bin,dev,etc,home,proc,root,sbin,sys,tmp,usr/bin,var/log}
chmod 1777 "$root/tmp"
chmod 0700 "$root/root"
install -m 0755 "$(command -v busybox)" "$root/bin/busybox"
busybox --list | while read -r applet; do
	[ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
printf 'NAME=busybox\nID=busybox\n' >"$root/etc/os-release"
umoci repack --image "$layout:busybox-new" "$work/bundle"
umoci config --image "$layout:busybox-new" --config.cmd /bin/sh
umoci tag --image "$layout:busybox-new" busybox
umoci rm --image "$layout:busybox-new"
