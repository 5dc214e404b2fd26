#!/usr/bin/env bash
# Runs a built copy of pjdfstest (github.com/pjd/pjdfstest) in a mounted image, on a
# directory that its layers have. Root. Usage: pjdfstest.sh DIR [MOUNT_FLAG...]
set -euo pipefail
cd "$(dirname "$0")/.."
suite=$(realpath "$1")
shift
[ -x "$suite/pjdfstest" ] || { echo "$suite: no built pjdfstest" >&2; exit 1; }
command -v prove >/dev/null || { echo "pjdfstest: prove is missing: install perl" >&2; exit 1; }
make -s build
um=$PWD/bin/umoci-mount
dir=$(mktemp -d /var/tmp/umoci-mount-pjdfstest.XXXXXX)
cleanup() {
	cd /
	"$um" umount "$dir/bundle" 2>/dev/null || true
	rm -rf "$dir"
}
trap cleanup EXIT
chmod 755 "$dir"
mkdir -p "$dir/lower/work/inner"
"$um" init --layout "$dir/img"
"$um" new --image "$dir/img:a"
"$um" insert --image "$dir/img:a" "$dir/lower" /
"$um" mount "$@" --image "$dir/img:a" "$dir/bundle"
chmod 755 "$dir/bundle"
cd "$dir/bundle/rootfs/work"
prove -r "$suite/tests"
