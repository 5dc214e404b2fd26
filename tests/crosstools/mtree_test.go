package crosstools

import (
	"os"
	"path/filepath"
	"testing"

	mtree "github.com/vbatts/go-mtree"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// A manifest that we write from the index says of a tree what go-mtree finds in it,
// mounted or extracted; and a change shows. The program gomtree is asked too.
func TestGomtreeValidatesOurManifests(t *testing.T) {
	imagetest.NeedTools(t, "gomtree")
	m := newMade(t, "gzip")
	for name, flag := range map[string]string{"mounted": "--mtree", "extracted": "--extract"} {
		t.Run(name, func(t *testing.T) {
			bundle := filepath.Join(m.dir, name)
			env.Must(t, "unpack", "--image", m.layout+":new", flag, bundle)
			if name == "mounted" {
				defer env.Must(t, "umount", bundle)
			}
			manifests, err := filepath.Glob(filepath.Join(bundle, "sha256_*.mtree"))
			if err != nil || len(manifests) != 1 {
				t.Fatalf("manifests %v, %v", manifests, err)
			}
			rootfs := filepath.Join(bundle, "rootfs")
			if deltas := checkMtree(t, manifests[0], rootfs); len(deltas) > 0 {
				t.Errorf("differences: %v", deltas)
			}
			if err := os.WriteFile(filepath.Join(rootfs, "etc/passwd"), []byte("changed"), 0o644); err != nil {
				t.Fatal(err)
			}
			if deltas := checkMtree(t, manifests[0], rootfs); len(deltas) == 0 {
				t.Error("a changed file is not seen")
			}
		})
	}
}

// checkMtree compares a tree with a manifest by go-mtree, and by gomtree.
func checkMtree(t *testing.T, manifest, rootfs string) []string {
	t.Helper()
	f, err := os.Open(manifest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	spec, err := mtree.ParseSpec(f)
	if err != nil {
		t.Fatal(err)
	}
	deltas, err := mtree.Check(rootfs, spec, spec.UsedKeywords(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range deltas {
		out = append(out, d.String())
	}
	r := env.Command(t, nil, "gomtree", "validate", "-f", manifest, "-p", rootfs)
	if (r.Code == 0) != (len(out) == 0) {
		t.Errorf("gomtree: exit %d, go-mtree finds %v\n%s%s", r.Code, out, r.Stdout, r.Stderr)
	}
	return out
}

func TestSkopeoInspectsWhatWeTaggedAndConfigured(t *testing.T) {
	imagetest.NeedTools(t, "jq")
	m := newMade(t, "none")
	env.Must(t, "tag", "--image", m.layout+":new", "second/tag_1.0")
	out := m.run("sh", "-ec", `skopeo inspect --raw "oci:$0:second/tag_1.0" | jq -r '.layers[-1].mediaType'
		skopeo inspect --config "oci:$0:second/tag_1.0" | jq -c '[.config.Cmd, (.history | map(.created_by))]'`, m.layout)
	want := "application/vnd.oci.image.layer.v1.tar\n[[\"/bin/sh\"],[\"imagetest\",\"umoci repack\",\"umoci config\"]]\n"
	if out != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}
