#!/bin/bash
# umoci-suite.sh UMOCI LAYOUT: umoci's own suite (test/*.bats below the directory UMOCI,
# a copy of its sources) against bin/umoci-mount under the name umoci, on the image
# "latest" of LAYOUT. Needs root, bats, jq, attr, xattr, sponge (moreutils) and gomtree.
# What differs, and why, is in docs/from-umoci.md.
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: $0 UMOCI LAYOUT" >&2; exit 2; }
suite=$(cd "$1" && pwd)
image=$(cd "$2" && pwd)
bin=$(cd "$(dirname "$0")/.." && pwd)/bin/umoci-mount
for tool in bats jq getfattr xattr sponge gomtree; do
	command -v "$tool" >/dev/null || { echo "no $tool" >&2; exit 2; }
done
[ -x "$bin" ] || { echo "no $bin: make build" >&2; exit 2; }
[ -x "$suite/hack/docker-meta-scripts/helpers/oci-validate.sh" ] || echo "the suite's validator of layouts is not there: its submodule" >&2

work=$(mktemp -d "${TMPDIR:-/var/tmp}/umoci-suite.XXXXXX")
cleanup() {
	awk -v dir="$work/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | while read -r point; do umount -l "$point"; done
	rm -rf "$work"
}
trap cleanup EXIT
ln -s "$bin" "$work/umoci"
export UMOCI=$work/umoci SOURCE_IMAGE=$image BATS_TMPDIR=$work TMPDIR=$work UMOCI_MOUNT_MTREE=1
status=0
for file in "$suite"/test/*.bats; do
	echo "== ${file##*/}"
	bats --tap "$file" >"$work/out" 2>&1 || status=1
	grep -E '^(ok|not ok) ' "$work/out" || cat "$work/out"
done
exit "$status"
