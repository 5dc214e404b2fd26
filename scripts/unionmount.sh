#!/usr/bin/env bash
# Runs a copy of unionmount-testsuite (github.com/amir73il/unionmount-testsuite) on mounts:
#
#	scripts/unionmount.sh DIR [mount flags]
#
# Its lower directory becomes an image, its upper a bundle's. First with one layer, then
# with up to five, where each layer that the suite puts on top of the last is made by
# repack. As root, with python3.
set -euo pipefail
suite=$(realpath "$1")
shift
export UMOCI_MOUNT UMOCI_MOUNT_FLAGS="$*"
cd "$(dirname "$0")/.."
make -s build
UMOCI_MOUNT=$PWD/bin/umoci-mount
work=$(mktemp -d /var/tmp/umoci-mount-union.XXXXXX)
export UNIONMOUNT_BASEDIR=$work/base
end() {
	umount "$UNIONMOUNT_BASEDIR/m" 2>/dev/null || true
	"$work/bin/mount" end
	rm -rf "$work"
}
trap end EXIT
mkdir "$work/bin" "$UNIONMOUNT_BASEDIR"
chmod 755 "$work" # some tests are another user's

# The suite's mount: of -t fuse.bundle NAME MOUNTPOINT -orw -oOPTIONS, and all others.
cat >"$work/bin/mount" <<'HELPER'
#!/usr/bin/env bash
set -euo pipefail
base=$UNIONMOUNT_BASEDIR
PATH=${PATH#*:} # the real mount
if [ "$1" != end ] && [ "$2" != fuse.bundle ]; then
	exec mount "$@"
fi
exec >/dev/null
# The suite has unmounted what it knows of, which shows the bundle's rootfs elsewhere.
for bundle in "$base"/*/bundle; do
	if mountpoint -q "$bundle/rootfs"; then "$UMOCI_MOUNT" umount "$bundle"; fi
done
if [ "$1" = end ]; then
	exit 0
fi
mnt=$4 options=,${6#-o},
option() {
	local rest=${options#*",$1="}
	echo "${rest%%,*}"
}
lower=$(option lowerdir) upper=$(option upperdir)
layer=$(dirname "$upper")
bundle=$layer/bundle
if [ ! -e "$bundle" ]; then
	image=$base/image:${layer##*/}
	if [[ $lower == *:* ]]; then
		"$UMOCI_MOUNT" repack --image "$image" "$(dirname "${lower%%:*}")/bundle"
	else
		rm -rf "$base/image"
		"$UMOCI_MOUNT" init --layout "$base/image"
		"$UMOCI_MOUNT" new --image "$image"
		tar -C "$lower" -cf "$base/lower.tar" .
		"$UMOCI_MOUNT" raw add-layer --image "$image" "$base/lower.tar"
	fi
	# shellcheck disable=SC2086 # flags are words
	"$UMOCI_MOUNT" mount --no-mount $UMOCI_MOUNT_FLAGS --image "$image" "$bundle"
	cp -a "$upper/." "$bundle/upper/"
fi
# shellcheck disable=SC2086
"$UMOCI_MOUNT" mount $UMOCI_MOUNT_FLAGS "$bundle"
mount --bind "$bundle/rootfs" "$mnt"
HELPER
chmod +x "$work/bin/mount"

cd "$suite"
export PATH=$work/bin:$PATH
for layers in --ov --ov=5; do
	log=$work/log
	if ! python3 ./run "$layers" --fuse=bundle >"$log" 2>&1; then
		tail -n 20 "$log"
		exit 1
	fi
	echo "unionmount-testsuite $layers: $(grep -ac '^\*\*\* .*--ov' "$log") tests"
	umount "$UNIONMOUNT_BASEDIR/m"
	mount end
done
