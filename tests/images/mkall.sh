#!/bin/bash
# mkall.sh DIR: every image of the end-to-end tests, as tags of the image-layout
# DIR/images. What is there already is kept; delete DIR to make it anew.
set -euo pipefail
here=$(dirname "$0")
[ $# -eq 1 ] || { echo "usage: $0 DIR" >&2; exit 1; }
mkdir -p "$1"
exec 9>"$1/lock"
flock 9
for image in busybox debian compiler; do
	SECONDS=0
	"$here/mk$image.sh" "$1/images"
	echo "image $image: ready after ${SECONDS} s"
done
