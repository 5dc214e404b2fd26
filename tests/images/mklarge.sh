#!/bin/bash
# mklarge.sh LAYOUT: tag "large" in LAYOUT, made from its tag "compiler": more than
# 1.5 GB of files in eight layers, for measurements. Each layer is an installation in a
# chroot, packed by stock umoci.
set -euo pipefail
. "$(dirname "$0")/common.sh"
[ $# -eq 1 ] || die "want LAYOUT"
layout=$1
need umoci chroot
[ "$(id -u)" -eq 0 ] || die "needs root"
has_tag "$layout" large && exit 0
has_tag "$layout" compiler || die "no tag compiler in $layout: run mkcompiler.sh first"

work=$(mktemp -d)
root=$work/bundle/rootfs
cleanup() {
	if mountpoint -q "$root/proc"; then umount "$root/proc"; fi
	rm -rf "$work"
}
trap cleanup EXIT
umoci unpack --image "$layout:compiler" "$work/bundle"
for packages in 'nodejs npm' golang 'llvm-14-dev libclang-14-dev'; do
	cp -a "$root/etc/resolv.conf" "$work/own-resolv.conf" 2>/dev/null || true
	cp --remove-destination /etc/resolv.conf "$root/etc/resolv.conf"
	mount -t proc proc "$root/proc"
	env -u TMPDIR DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$root" /bin/sh -euc \
		"apt-get -q update; apt-get -q -y --no-install-recommends install $packages; apt-get clean; rm -rf /var/lib/apt/lists/*" \
		</dev/null >"$work/log" 2>&1 || { tail -40 "$work/log" >&2; die "layer of $packages: command failed"; }
	umount "$root/proc"
	rm -f "$root/etc/resolv.conf"
	[ ! -e "$work/own-resolv.conf" ] || cp -a "$work/own-resolv.conf" "$root/etc/resolv.conf"
	umoci repack --refresh-bundle --image "$layout:large-new" --history.comment "$packages" "$work/bundle"
done
umoci tag --image "$layout:large-new" large
umoci rm --image "$layout:large-new"
