# Shared by the image makers. Each makes a stock OCI image-layout with stock tools
# alone, so that what is tested has no hand in what it is tested on.

die() { echo "$0: $*" >&2; exit 1; }

need() {
	local tool missing=()
	for tool in "$@"; do command -v "$tool" >/dev/null || missing+=("$tool"); done
	[ ${#missing[@]} -eq 0 ] || die "missing: ${missing[*]} (apt-get install umoci mmdebstrap busybox-static)"
}

# layout_init DIR makes an empty image-layout where there is none.
layout_init() {
	[ -e "$1/oci-layout" ] || umoci init --layout "$1"
}

# has_tag LAYOUT TAG
has_tag() {
	[ -e "$1/oci-layout" ] && umoci list --layout "$1" | grep -qxF "$2"
}

# begin_layers LAYOUT BASE NEW extracts tag BASE of LAYOUT, for layers that step adds;
# finish_layers gives the result the tag NEW.
begin_layers() {
	need umoci chroot
	[ "$(id -u)" -eq 0 ] || die "needs root"
	has_tag "$1" "$2" || die "no tag $2 in $1"
	layout=$1 tag=$3
	work=$(mktemp -d)
	root=$work/bundle/rootfs
	trap end_layers EXIT
	umoci unpack --image "$layout:$2" "$work/bundle"
}

end_layers() {
	if mountpoint -q "$root/proc"; then umount "$root/proc"; fi
	rm -rf "$work"
}

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
	umoci repack --refresh-bundle --image "$layout:$tag-new" --history.comment "$name" "$work/bundle"
}

finish_layers() {
	umoci tag --image "$layout:$tag-new" "$tag"
	umoci rm --image "$layout:$tag-new"
}

# What steps begin and end with where they install packages.
install='apt-get -q update && apt-get -q -y --no-install-recommends install'
clean='apt-get clean; rm -rf /var/lib/apt/lists/*'
