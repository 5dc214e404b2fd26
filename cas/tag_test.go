package cas

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// writeIndexJSON puts entries into index.json, as some other program would.
func writeIndexJSON(t *testing.T, l *Layout, entries ...string) {
	t.Helper()
	text := `{"schemaVersion":2,"x-index":{"b":1,"a":2},"manifests":[` + strings.Join(entries, ",") + `]}`
	if err := os.WriteFile(filepath.Join(l.Path(), "index.json"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func entryJSON(d ispec.Descriptor, tag, more string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"annotations":{"org.opencontainers.image.ref.name":%q,"n":"o"}%s}`,
		d.MediaType, d.Digest, d.Size, tag, more)
}

// Stock umoci takes no lock.
func TestATagThatAnotherProgramSetsMeanwhileIsKept(t *testing.T) {
	l := newLayout(t)
	d := blank(t, l, "a").Path.Root()
	for name, change := range map[string]func() error{
		"a new tag":     func() error { return l.SetRef(ctx, "b", d) },
		"a removed tag": func() error { _, err := l.RemoveRef(ctx, "a"); return err },
	} {
		theirs := []string{entryJSON(d, "a", "")}
		writeIndexJSON(t, l, theirs...)
		l.Fault = func(step string) error { // what is to replace index.json is made by then
			if step == "fsync" && len(theirs) < 3 {
				theirs = append(theirs, entryJSON(d, fmt.Sprintf("theirs%d", len(theirs)), ""))
				writeIndexJSON(t, l, theirs...)
			}
			return nil
		}
		err := change()
		l.Fault = nil
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		refs, err := l.Refs(ctx)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"a new tag": "a theirs1 theirs2 b", "a removed tag": "theirs1 theirs2"}[name]
		if got := strings.Join(refs, " "); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestEntriesOfAnIndexKeepTheirUnknownFieldsUnderEveryTag(t *testing.T) {
	l := newLayout(t)
	d := blank(t, l, "a").Path.Root()
	other := entryJSON(d, "other", `, "x-other" :  [ 1 ]`)
	writeIndexJSON(t, l, entryJSON(d, "a", `,"x-entry":{"z":1,"y":2}`), other)
	found, err := l.FindRef(ctx, "a", ResolveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(ctx, "copy", found); err != nil {
		t.Fatal(err)
	}
	kept, err := l.Image(ctx, &Path{Walk: image(t, l, "a").Path.Walk}) // as a bundle keeps it
	if err != nil {
		t.Fatal(err)
	}
	made, err := l.Commit(ctx, kept, Change{History: []ispec.History{{EmptyLayer: true}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(ctx, "a", made); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(l.Path(), "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Manifests []struct {
			Annotations map[string]string
			Entry       json.RawMessage `json:"x-entry"`
		}
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), other) || !strings.Contains(string(data), `"x-index":{"b":1,"a":2}`) {
		t.Errorf("what was not touched is not what it was:\n%s", data)
	}
	seen := map[string]bool{}
	for _, e := range got.Manifests {
		name := e.Annotations[ispec.AnnotationRefName]
		seen[name] = true
		if name != "other" && (string(e.Entry) != `{"z":1,"y":2}` || e.Annotations["n"] != "o") {
			t.Errorf("entry %s lost fields:\n%s", name, data)
		}
	}
	if len(got.Manifests) != 3 || !seen["a"] || !seen["copy"] || !seen["other"] {
		t.Errorf("entries:\n%s", data)
	}
}

func TestATagOfAnIndexForOtherPlatformsCanBeCopied(t *testing.T) {
	l := newLayout(t)
	d := blank(t, l, "a").Path.Root()
	index := fmt.Sprintf(`{"schemaVersion":2,"manifests":[%s,%s]}`,
		entryJSON(d, "", `,"platform":{"os":"plan9","architecture":"mips"}`),
		entryJSON(d, "", `,"platform":{"os":"zos","architecture":"s390x"}`))
	id, size := putBlob(t, l, index)
	writeIndexJSON(t, l, entryJSON(ispec.Descriptor{MediaType: ispec.MediaTypeImageIndex, Digest: id, Size: size}, "multi", ""))
	p, err := l.FindRef(ctx, "multi", ResolveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(ctx, "copy", p); err != nil {
		t.Fatal(err)
	}
	p, err = l.FindRef(ctx, "copy", ResolveOptions{})
	if err != nil || p.Root().Digest != id {
		t.Errorf("%v, %v", p, err)
	}
}
