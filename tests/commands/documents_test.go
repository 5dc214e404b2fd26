package commands

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// An index with an image each for this machine and for another, and fields that no
// specification knows, at every step of the way.
func multiPlatform(t *testing.T) string {
	t.Helper()
	imagetest.NeedTools(t, "jq")
	dir := newLayout(t)
	mustSh(t, dir, `$um config --image img:a --tag other --platform.os plan9 --platform.arch mips
		entry() { jq -c --arg t "$1" --arg os "$2" --arg arch "$3" '.manifests[] | select(.annotations["org.opencontainers.image.ref.name"] == $t) |
			del(.annotations) + {platform: {os: $os, architecture: $arch}, "x-entry": [$t]}' img/index.json; }
		printf '{"schemaVersion":2,"x-index":"kept","manifests":[%s,%s]}' "$(entry a linux "$(go env GOARCH)")" "$(entry other plan9 mips)" >index
		sum=$(sha256sum <index | cut -c-64); size=$(stat -c %s index); mv index img/blobs/sha256/$sum
		jq -c --arg d sha256:$sum --argjson s $size '.["x-top"] = 7 | .manifests = [{mediaType: "application/vnd.oci.image.index.v1+json", digest: $d,
			size: $s, "x-root": {"k": 1}, annotations: {"org.opencontainers.image.ref.name": "multi", "other": "annotation"}}]' img/index.json >new
		mv new img/index.json`)
	return dir
}

func TestAnImageOfSeveralIsChangedInPlace(t *testing.T) {
	dir := multiPlatform(t)
	show := `top=$(jq -r '.manifests[] | select(.annotations["org.opencontainers.image.ref.name"] == "multi") | .digest[7:]' img/index.json)
		jq -c '[.["x-top"], (.manifests[] | select(.annotations["org.opencontainers.image.ref.name"] == "multi") | .["x-root"], .annotations.other)]' img/index.json
		jq -c '[.["x-index"], (.manifests[] | .["x-entry"], .platform.os)]' img/blobs/sha256/$top
		jq -r '.manifests[] | .digest' img/blobs/sha256/$top`
	before := strings.Split(mustSh(t, dir, show), "\n")
	out := mustSh(t, dir, "echo hi >f; $um config --image img:multi --platform plan9/mips --author them; $um insert --image img:multi --platform plan9/mips f /f; "+show)
	after := strings.Split(out, "\n")
	expect(t, "index.json", `[7,{"k":1},"annotation"]`, after[0])
	expect(t, "the index", `["kept",["a"],"linux",["other"],"plan9"]`, after[1])
	if after[2] != before[2] || after[3] == before[3] {
		t.Errorf("manifests were %v, are %v", before[2:], after[2:])
	}
	out = mustSh(t, dir, `$um stat --json --image img:multi --platform plan9/mips | jq -c '[.config.blob.author, (.history | length)]'
		$um stat --json --image img:multi | jq -c '[.config.blob.author, (.history | length)]'
		$um tag --image img:multi copy; $um ls --layout img
		jq -r '.manifests | map(.digest) | unique | length' img/index.json; $um gc --layout img >/dev/null; $um fsck --layout img >/dev/null`)
	expect(t, "images", "[\"them\",3]\n[null,0]\nmulti\ncopy\n1\n", out)
}

func TestAManifestOfSomethingElseThanAnImageIsShown(t *testing.T) {
	imagetest.NeedTools(t, "jq")
	dir := newLayout(t)
	out := mustSh(t, dir, `printf '{}' >empty; e=$(sha256sum <empty | cut -c-64); cp empty img/blobs/sha256/$e
		printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"text/x","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:%s","size":2,"data":"e30="},"layers":[]}' $e >m
		d=$(sha256sum <m | cut -c-64); jq -c --arg d sha256:$d --argjson s $(stat -c %s m) '.manifests += [{mediaType: "application/vnd.oci.image.manifest.v1+json", digest: $d, size: $s,
			annotations: {"org.opencontainers.image.ref.name": "art"}}]' img/index.json >new; mv new img/index.json; mv m img/blobs/sha256/$d
		$um stat --json --image img:art | jq -c '[keys, .manifest.blob.artifactType]'; $um stat --image img:art`)
	first, text, _ := strings.Cut(out, "\n")
	expect(t, "JSON", `[["config","manifest"],"text/x"]`, first)
	want := "\t\tData: (2 bytes)\n\t\t\t0000: 7b7d                                     {}\n"
	if !strings.Contains(text, "Artifact Type: text/x\n") || !strings.Contains(text, want) || !strings.Contains(text, "== CONFIG ==\nDescriptor:\n") || strings.Contains(text, "HISTORY") {
		t.Errorf("text:\n%s", text)
	}
}

// The text that umoci 0.6 prints of such an image.
func TestStatTextIsUmocis(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	dir := newLayout(t)
	out := mustSh(t, dir, `echo hi >f; touch -d @5 f; $um insert --image img:a --history.comment 'a	tab' --compress none f /f
		$um config --image img:a --config.user 7 --config.cmd sh --config.cmd 'a b' --config.entrypoint e --config.env X=1 --config.volume /v --config.volume /w,x \
			--config.label 'k=v w' --config.workingdir /d --config.stopsignal SIGTERM --config.exposedports 80/tcp --author me --os linux --architecture arm --platform.variant v7
		$um stat --image img:a | sed 's/[0-9a-f]\{64\}/HEX/; s/Size: [0-9.k]*B/Size: N/'`)
	want := `== MANIFEST ==
Schema Version: 2
Media Type: application/vnd.oci.image.manifest.v1+json
Config:
	Descriptor:
		Media Type: application/vnd.oci.image.config.v1+json
		Digest: sha256:HEX
		Size: N
Layers:
	Descriptor:
		Media Type: application/vnd.oci.image.layer.v1.tar
		Digest: sha256:HEX
		Size: N
Descriptor:
	Media Type: application/vnd.oci.image.manifest.v1+json
	Digest: sha256:HEX
	Size: N
	Annotations:
		org.opencontainers.image.ref.name: a

== CONFIG ==
Created: 2023-11-14T22:13:20Z
Author: me
Platform:
	OS: linux
	Architecture: arm (v7)
Image Config:
	User: 7
	Entrypoint:
		e
	Command:
		sh
		"a b"
	Working Directory: /d
	Environment:
		X=1
	Stop Signal: SIGTERM
	Exposed Ports: 80/tcp
	Volumes: /v, "/w,x"
	Labels:
		k: "v w"
Descriptor:
	Media Type: application/vnd.oci.image.config.v1+json
	Digest: sha256:HEX
	Size: N

== HISTORY ==
LAYER                                                                   CREATED              CREATED BY   SIZE    COMMENT
sha256:HEX 2023-11-14T22:13:20Z umoci insert 2.048kB "a\ttab"
<none>                                                                  2023-11-14T22:13:20Z umoci config <none>  
`
	expect(t, "text", want, out)
}

func TestHistoryFlagsCountWhereTheyAreGiven(t *testing.T) {
	dir := newLayout(t)
	mustSh(t, dir, `echo x >f; $um config --image img:a --author boss --history.author '' --history.created_by ''; $um insert --image img:a f /f
		tar cf l.tar f; $um raw add-layer --image img:a l.tar; $um insert --image img:a --no-history f /g 2>warning; grep -q 'no history' warning`)
	s := statOf(t, dir, "a")
	if len(s.History) != 3 {
		t.Fatalf("history %v", s.History)
	}
	for i, want := range []map[string]any{
		{"empty_layer": true},
		{"created_by": "umoci insert"},
		{"created_by": "umoci raw add-layer", "author": "boss"},
	} {
		got := s.History[i]
		for _, key := range []string{"created", "layer", "diff_id"} {
			delete(got, key)
		}
		sameJSON(t, fmt.Sprintf("entry %d", i), want, got)
	}
}

// A plain user's files may be closed to himself, and belong to others in the image.
func TestAPlainUserInsertsWhatHeHasClosed(t *testing.T) {
	imagetest.NeedRoot(t) // to become one
	imagetest.NeedTools(t, "setpriv", "setfattr")
	dir, err := os.MkdirTemp(env.Dir, "user-") // t.TempDir is root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	mustSh(t, dir, `mkdir -p work/src/closed; echo 1 >work/src/closed/x; echo 2 >work/src/unreadable
		setfattr -n user.rootlesscontainers -v 0x08e807 work/src/unreadable
		chmod 0 work/src/closed work/src/unreadable; chown -R 65534:65534 work; chmod 755 .
		cd work; UMOCI_MOUNT_CACHE=$PWD/cache setpriv --reuid 65534 --regid 65534 --clear-groups sh -ec '
			$um init --layout img; $um new --image img:a; $um insert --image img:a --rootless src /s; $um insert --image img:a --opaque src/unreadable /s/u --rootless'`)
	out := mustSh(t, dir, `cd work; stat -c %a src/closed src/unreadable; $um cat --image img:a /s/closed/x /s/u; $um tree --image img:a /s | awk '{print $1, $3, $NF}'`)
	expect(t, "result", "0\n0\n1\n2\ndrwxr-xr-x 0:0 /s\nd--------- 0:0 /s/closed\n-rw-r--r-- 0:0 /s/closed/x\n---------- 1000:0 /s/u\n---------- 1000:0 /s/unreadable\n", out)
}

// A command that is interrupted leaves the tags as they were, and the next one removes
// what it left behind.
func TestAnInterruptedCommandLeavesTheLayoutAsItWas(t *testing.T) {
	dir := newLayout(t)
	mustSh(t, dir, "mkfifo pipe; cp img/index.json before")
	out := mustSh(t, dir, `(head -c 512 /dev/zero; sleep 60) >pipe & writer=$!
		$um raw add-layer --image img:a - <pipe & adder=$!
		for i in $(seq 200); do ls -d img/.umoci-* >/dev/null 2>&1 && break; sleep 0.05; done
		ls -d img/.umoci-* | wc -l; kill -KILL $adder; kill $writer; wait $adder || true; ls -d img/.umoci-* | wc -l
		cmp img/index.json before; $um new --image img:b; ls -d img/.umoci-* 2>/dev/null | wc -l; $um gc --layout img; $um fsck --layout img >/dev/null`)
	if !strings.HasPrefix(out, "1\n1\n0\n") {
		t.Errorf("temporary directories: %s", out)
	}
}
