#!/bin/bash
# mkdebian.sh LAYOUT: tag "minbase" in LAYOUT, one layer, Debian bookworm's smallest
# system that has apt. DEBIAN_MIRROR names another mirror than deb.debian.org.
set -euo pipefail
. "$(dirname "$0")/common.sh"
[ $# -eq 1 ] || die "want LAYOUT"
layout=$1
need umoci mmdebstrap
[ "$(id -u)" -eq 0 ] || die "needs root"
has_tag "$layout" minbase && exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$work/root.tar" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
layout_init "$layout"
umoci new --image "$layout:minbase-new"
umoci raw add-layer --image "$layout:minbase-new" "$work/root.tar"
umoci config --image "$layout:minbase-new" --config.cmd /bin/bash
umoci tag --image "$layout:minbase-new" minbase
umoci rm --image "$layout:minbase-new"
