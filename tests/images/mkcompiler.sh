#!/bin/bash
# mkcompiler.sh LAYOUT: tag "compiler" in LAYOUT, made from its tag "minbase": five
# layers and more than 30,000 entries. Each layer is an installation in a chroot,
# packed by stock umoci; the last one deletes, so that there are whiteouts.
set -euo pipefail
. "$(dirname "$0")/common.sh"
[ $# -eq 1 ] || die "want LAYOUT"
layout=$1
need umoci chroot
[ "$(id -u)" -eq 0 ] || die "needs root"
has_tag "$layout" compiler && exit 0
has_tag "$layout" minbase || die "no tag minbase in $layout: run mkdebian.sh first"

work=$(mktemp -d)
root=$work/bundle/rootfs
cleanup() {
	if mountpoint -q "$root/proc"; then umount "$root/proc"; fi
	rm -rf "$work"
}
trap cleanup EXIT

# step NAME COMMAND: one layer.
step() {
	local name=$1
	shift
	# The container's own files come back afterwards: no layer has the host's.
	cp /etc/resolv.conf "$work/resolv.conf"
	[ ! -e "$root/etc/resolv.conf" ] || cp -a "$root/etc/resolv.conf" "$work/own-resolv.conf"
	cp --remove-destination "$work/resolv.conf" "$root/etc/resolv.conf"
	mount -t proc proc "$root/proc"
	env -u TMPDIR DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$root" /bin/sh -euc "$*" </dev/null >"$work/$name.log" 2>&1 ||
		{ tail -40 "$work/$name.log" >&2; die "layer $name: command failed"; }
	umount "$root/proc"
	rm -f "$root/etc/resolv.conf"
	[ ! -e "$work/own-resolv.conf" ] || cp -a "$work/own-resolv.conf" "$root/etc/resolv.conf"
	umoci repack --refresh-bundle --image "$layout:compiler-new" --history.comment "$name" "$work/bundle"
}

install='apt-get -q update && apt-get -q -y --no-install-recommends install'
clean='apt-get clean; rm -rf /var/lib/apt/lists/*'
umoci unpack --image "$layout:minbase" "$work/bundle"
step compiler "$install gcc g++ make libc6-dev; $clean"
step tools "$install git python3; $clean"
step headers "$install libboost-dev; $clean"
step slim 'rm -rf /usr/share/doc /usr/share/man; mkdir /usr/share/doc; echo removed >/usr/share/doc/README
	mv /usr/share/perl5 /opt/perl5; ln -s /opt/perl5 /usr/share/perl5
	chown -R 1000:1000 /srv; chmod 2775 /srv; ln /usr/bin/make /usr/local/bin/mk'
umoci tag --image "$layout:compiler-new" compiler
umoci rm --image "$layout:compiler-new"
