package crosstools

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umoci-mount/umoci-mount/internal/imagetest"
)

// kiwiScript has kiwi make a container archive of the tree at argv[1], import that as a
// root tree of its own, change it, and make a second container on top of the first.
const kiwiScript = `
import os, sys
sys.path.insert(0, '/usr/lib/python3/dist-packages')
from kiwi.defaults import Defaults
from kiwi.runtime_config import RuntimeConfig
from kiwi.container.oci import ContainerImageOCI
from kiwi.system.root_import.oci import RootImportOCI
from kiwi.system.uri import Uri

tree, work, temp = sys.argv[1:]
Defaults.set_temp_location(temp)
RuntimeConfig(reread=True)
def build(root, name, base):
    image = ContainerImageOCI(root, 'oci-archive', {
        'container_name': name, 'container_tag': 'tag', 'maintainer': 'tux', 'entry_command': ['/bin/sh', '-x'],
        'workingdir': '/root', 'expose_ports': ['80'], 'volumes': ['/var/log'], 'environment': {'A': 'b'}, 'labels': {'k': 'v'},
        'history': {'created_by': 'kiwi', 'comment': 'made'},
    })
    return image.create(work + '/' + name + '.tar', base)
first = build(tree, 'first', None)
imported = work + '/imported'
os.mkdir(imported)
RootImportOCI(imported, Uri('file://' + first), {'archive_transport': 'oci-archive'}).sync_data()
with open(imported + '/etc/second', 'w') as f:
    f.write('2')
os.remove(imported + '/etc/gone')
build(imported, 'second', Defaults.get_imported_root_image(imported))
`

// Kiwi removes its bundles without unmounting them. UMOCI_MOUNT_EXTRACT=1 is for such
// tools: mounted, the clean-up may meet a busy directory and leave it.
func TestKiwiMakesAndImportsContainersThroughOurs(t *testing.T) {
	imagetest.NeedTools(t, "kiwi", "rsync", "skopeo", "jq")
	for name, vars := range map[string][]string{"mounted": nil, "extracted": {"UMOCI_MOUNT_EXTRACT=1"}} {
		t.Run(name, func(t *testing.T) {
			temp := t.TempDir()
			w := newWrapper(t, vars...)
			w.sh(`mkdir -p tree/etc tree/bin tree/proc tree/root; echo root:x:0:0::/root:/bin/sh >tree/etc/passwd; echo x >tree/etc/gone
				echo tool >tree/bin/tool; chmod 4755 tree/bin/tool; ln tree/bin/tool tree/bin/other; chown 7:8 tree/etc/passwd; ln -s tool tree/bin/sh`)
			if err := os.WriteFile(filepath.Join(w.dir, "build.py"), []byte(kiwiScript), 0o600); err != nil {
				t.Fatal(err)
			}
			r := env.Command(t, w.env, "/usr/bin/python3", filepath.Join(w.dir, "build.py"), filepath.Join(w.dir, "tree"), w.dir, temp)
			if r.Code != 0 {
				t.Fatalf("kiwi: exit %d\n%s\n%s", r.Code, r.Stdout, r.Stderr)
			}
			w.sh("skopeo copy -q oci-archive:second.tar:second:tag oci:check:second")
			w.expect("the layers and history", `umoci stat --json --image check:second | jq -c '[(.manifest.blob.layers | length), (.config.blob.history | map(.created_by))]'`,
				`[2,["kiwi","kiwi"]]`+"\n")
			w.expect("the configuration", "skopeo inspect --config oci:check:second | jq -c '[.author, .config]'",
				`["tux",{"ExposedPorts":{"80":{}},"Env":["A=b"],"Entrypoint":["/bin/sh","-x"],"Volumes":{"/var/log":{}},"WorkingDir":"/root","Labels":{"k":"v"}}]`+"\n")
			w.expect("the second tree", "umoci tree --image check:second | awk '{print $1, $2, $3, $NF}'",
				"drwxr-xr-x 6 0:0 /\ndrwxr-xr-x 2 0:0 /bin\n-rwsr-xr-x 2 0:0 /bin/other\nlrwxrwxrwx 1 0:0 tool\n-rwsr-xr-x 2 0:0 /bin/tool\n"+
					"drwxr-xr-x 2 0:0 /etc\n-rw-r--r-- 1 7:8 /etc/passwd\n-rw-r--r-- 1 0:0 /etc/second\ndrwxr-xr-x 2 0:0 /proc\ndrwxr-xr-x 2 0:0 /root\n")
			w.expect("the imported tree", "stat -c '%a %u:%g %h' imported/bin/tool imported/etc/passwd; ls imported/etc",
				"4755 0:0 2\n644 7:8 1\npasswd\nsecond\n")
			left, err := filepath.Glob(filepath.Join(temp, "kiwi_oci_root_dir.*"))
			if err != nil {
				t.Fatal(err)
			}
			if name == "extracted" && (len(left) > 0 || strings.Contains(r.Stderr, "rror")) {
				t.Errorf("left behind: %v\n%s", left, r.Stderr)
			}
			for _, bundle := range left {
				env.Run(t, "umount", bundle) // if it is mounted still
			}
		})
	}
}
