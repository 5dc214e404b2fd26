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
