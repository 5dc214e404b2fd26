#!/usr/bin/env bash
# Shows the whole loop on an image made from what any machine with Go has: busybox
# and the Go source tree. Installs what is missing when root, builds, and works in a
# temporary directory that it removes.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
run() { # shows a command, runs it, shows its time
	printf '\033[36m$ %s\033[0m\n' "$*"
	local start end
	start=$(date +%s%N)
	"$@"
	end=$(date +%s%N)
	printf '\033[2m  (%d ms)\033[0m\n' $(((end - start) / 1000000))
}

declare -A provides=([umoci]=umoci [runc]=runc [busybox]=busybox-static [jq]=jq [fusermount3]=fuse3 [tar]=tar)
missing=()
for command in "${!provides[@]}"; do
	command -v "$command" >/dev/null || missing+=("${provides[$command]}")
done
if [ ${#missing[@]} -gt 0 ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "missing: run   sudo apt-get install -y ${missing[*]}   and then make demo again" >&2
		exit 1
	fi
	say "installing ${missing[*]}"
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi
if [ "$(id -u)" != 0 ]; then
	echo "the demo runs a container with runc, which takes root: sudo make demo" >&2
	exit 1
fi
[ -e /dev/fuse ] || { echo "no /dev/fuse: load the fuse module (modprobe fuse)" >&2; exit 1; }

make -s build
PATH=$PWD/bin:$PATH
goroot=$(go env GOROOT)
work=$(mktemp -d /var/tmp/umoci-mount-demo.XXXXXX)
cleanup() {
	for b in bundle again; do
		[ ! -d "$work/$b" ] || umoci-mount umount --lazy "$work/$b" 2>/dev/null || true
	done
	rm -rf "$work"
}
trap cleanup EXIT
cd "$work"
export UMOCI_MOUNT_CACHE=$work/cache

say "an image of three layers: busybox, the Go tools, the Go source tree (made by stock umoci)"
mkdir -p root/bin root/etc root/tmp root/proc root/dev root/sys
cp "$(command -v busybox)" root/bin/busybox
for applet in sh ls cat echo vi sed rm mv find wc true; do ln -s busybox "root/bin/$applet"; done
echo 'NAME="Demo"' >root/etc/os-release
tar -C root --numeric-owner --owner=0 --group=0 -cf busybox.tar .
tar -C "$goroot" --transform 's,^,usr/local/go/,' --numeric-owner --owner=0 --group=0 -cf tools.tar bin pkg
tar -C "$goroot" --transform 's,^,usr/local/go/,' --numeric-owner --owner=0 --group=0 -cf src.tar src
umoci init --layout demo
umoci new --image demo:1
for layer in busybox tools src; do umoci raw add-layer --image demo:1 "$layer.tar"; done
umoci config --image demo:1 --config.cmd /bin/sh
rm -rf root ./*.tar
du -sh demo

say "the first mount reads each layer once and indexes it"
run umoci-mount mount --image demo:1 bundle
ls bundle
echo "$(find bundle/rootfs | wc -l) files and directories in bundle/rootfs"

say "run it"
jq '.process.terminal = false
	| .process.args = ["/bin/sh", "-c", "echo written inside >/etc/inside; rm -r /usr/local/go/src/cmd; ls /usr/local/go"]
	| .linux.namespaces |= map(select(.type != "cgroup"))' bundle/config.json >config.json
mv config.json bundle/config.json
run runc run -b bundle "umoci-mount-demo-$$"

say "edit it from outside, and move a populated directory of a lower layer"
run sed -i s/Demo/Edited/ bundle/rootfs/etc/os-release
run mv bundle/rootfs/usr/local/go/src/net bundle/rootfs/network

say "what changed"
printf '\033[36m$ umoci-mount diff bundle\033[0m\n'
umoci-mount diff bundle >diff.txt
grep -v '/network/' diff.txt
echo "… and $(grep -c '/network/' diff.txt) paths below /network"
run umoci-mount status

say "unmount, and make a layer of it"
run umoci-mount umount bundle
run umoci-mount repack --image demo:2 bundle

say "the new layer"
manifest=$(jq -r '.manifests[] | select(.annotations["org.opencontainers.image.ref.name"] == "2").digest' demo/index.json)
layer=$(jq -r '.layers[-1].digest' "demo/blobs/sha256/${manifest#sha256:}")
tar -tvzf "demo/blobs/sha256/${layer#sha256:}" >layer.txt
head -n 12 layer.txt
echo "… $(wc -l <layer.txt) entries, $(stat -c %s "demo/blobs/sha256/${layer#sha256:}") bytes"

say "mount the result: the index is there already"
run umoci-mount mount --image demo:2 again
run cat again/rootfs/etc/inside again/rootfs/etc/os-release
run umoci-mount umount again

say "the same with stock umoci, for comparison"
run umoci unpack --image demo:2 stock
echo x >stock/rootfs/etc/inside
run umoci repack --image demo:3 stock
