// Package imageconfig changes what an image says of itself, and shows it.
package imageconfig

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/umoci-mount/umoci-mount/cas"
)

// Edit is a change of an image's config and manifest. Nil and empty fields change
// nothing; Clear comes before everything else.
type Edit struct {
	Clear []string // names of Clearable

	User         *string
	ExposedPorts []string // added
	Env          []string // NAME=VALUE; one of a name takes the place of another
	Entrypoint   []string // all of it
	Cmd          []string // all of it
	Volumes      []string // added
	Labels       []string // NAME=VALUE; set
	WorkingDir   *string
	StopSignal   *string

	Created      *time.Time
	Author       *string
	OS           *string
	Architecture *string
	Variant      *string

	Annotations []string // NAME=VALUE of the manifest; set
}

// ErrEdit: a change that cannot be made.
var ErrEdit = errors.New("invalid change")

// Clearable names what Clear can clear: fields of the config's config, or of the
// manifest.
var Clearable = []string{
	"config.cmd", "config.entrypoint", "config.env", "config.exposedports", "config.labels", "config.volume", "manifest.annotations",
}

// configFields are the JSON names of what is cleared in config.config.
var configFields = map[string]string{
	"config.cmd": "Cmd", "config.entrypoint": "Entrypoint", "config.env": "Env",
	"config.exposedports": "ExposedPorts", "config.labels": "Labels", "config.volume": "Volumes",
}

// Check finds what is wrong with an edit before anything is read or written. ErrEdit.
func (e *Edit) Check() error {
	for _, name := range e.Clear {
		if name == "rootfs.diffids" {
			return fmt.Errorf("%w: --clear=%s is not safe", ErrEdit, name)
		}
		if !slices.Contains(Clearable, name) {
			return fmt.Errorf("%w: unknown key to --clear: %s (want one of %s)", ErrEdit, name, strings.Join(Clearable, ", "))
		}
	}
	for flag, list := range map[string][]string{"config.env": e.Env, "config.label": e.Labels, "manifest.annotation": e.Annotations} {
		for _, s := range list {
			if name, _, ok := strings.Cut(s, "="); !ok || name == "" {
				return fmt.Errorf("%w: %s: want NAME=VALUE: %q", ErrEdit, flag, s)
			}
		}
	}
	return nil
}

// Apply changes an image's documents, for cas.Change.
func (e *Edit) Apply(config, manifest cas.Document) error {
	if slices.Contains(e.Clear, "manifest.annotations") {
		manifest.Remove("annotations")
	}
	if err := setPairs(manifest, "annotations", e.Annotations); err != nil {
		return err
	}
	if err := setMediaType(manifest); err != nil {
		return err
	}
	if err := config.Exact("created", "author", "architecture", "os", "variant", "config"); err != nil {
		return err
	}
	if err := config.Within("config", e.applyConfig); err != nil {
		return err
	}
	if e.Created != nil {
		if err := config.Set("created", e.Created); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		key   string
		value *string
	}{{"author", e.Author}, {"os", e.OS}, {"architecture", e.Architecture}, {"variant", e.Variant}} {
		if err := setString(config, f.key, f.value); err != nil {
			return err
		}
	}
	return nil
}

// setMediaType lets a manifest without one say what it is, as image-spec wants it to.
// One that is another type's says so already: Docker's schema demands it.
func setMediaType(manifest cas.Document) error {
	var have string
	if err := manifest.Get("mediaType", &have); err != nil || have != "" {
		return err
	}
	return manifest.Set("mediaType", ispec.MediaTypeImageManifest)
}

func (e *Edit) applyConfig(c cas.Document) error {
	if err := c.Exact("User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal"); err != nil {
		return err
	}
	for _, name := range e.Clear {
		if field, ok := configFields[name]; ok {
			c.Remove(field)
		}
	}
	for _, f := range []struct {
		key   string
		value *string
	}{{"User", e.User}, {"WorkingDir", e.WorkingDir}, {"StopSignal", e.StopSignal}} {
		if err := setString(c, f.key, f.value); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		key  string
		list []string
	}{{"Entrypoint", e.Entrypoint}, {"Cmd", e.Cmd}} {
		if len(f.list) > 0 {
			if err := c.Set(f.key, f.list); err != nil {
				return err
			}
		}
	}
	return errors.Join(
		addKeys(c, "ExposedPorts", e.ExposedPorts), addKeys(c, "Volumes", e.Volumes),
		setEnv(c, e.Env), setPairs(c, "Labels", e.Labels),
	)
}

// setString sets a field; an empty value drops one that images may be without.
func setString(d cas.Document, key string, value *string) error {
	switch {
	case value == nil:
		return nil
	case *value == "" && key != "os" && key != "architecture":
		d.Remove(key)
		return nil
	}
	return d.Set(key, *value)
}

// setPairs sets keys of an object field whose values are strings.
func setPairs(d cas.Document, key string, pairs []string) error {
	return setKeys(d, key, pairs, func(m map[string]json.RawMessage, pair string) error {
		name, value, _ := strings.Cut(pair, "=")
		raw, err := json.Marshal(value)
		m[name] = raw
		return err
	})
}

// addKeys adds keys to an object field that is used as a set.
func addKeys(d cas.Document, key string, names []string) error {
	return setKeys(d, key, names, func(m map[string]json.RawMessage, name string) error {
		if _, have := m[name]; !have {
			m[name] = json.RawMessage("{}")
		}
		return nil
	})
}

// setKeys changes an object field by one key after the other. Its keys are sorted
// then, as encoding/json, and so umoci, writes maps.
func setKeys(d cas.Document, key string, list []string, set func(m map[string]json.RawMessage, item string) error) error {
	if len(list) == 0 {
		return nil
	}
	m := map[string]json.RawMessage{}
	if err := d.Get(key, &m); err != nil {
		return err
	}
	for _, item := range list {
		if err := set(m, item); err != nil {
			return err
		}
	}
	return d.Set(key, m)
}

// setEnv sets variables, each where one of its name is, else at the end.
func setEnv(d cas.Document, vars []string) error {
	if len(vars) == 0 {
		return nil
	}
	var env []string
	if err := d.Get("Env", &env); err != nil {
		return err
	}
	for _, s := range vars {
		name, _, _ := strings.Cut(s, "=")
		i := slices.IndexFunc(env, func(have string) bool { return strings.HasPrefix(have, name+"=") || have == name })
		if i >= 0 {
			env[i] = s
		} else {
			env = append(env, s)
		}
	}
	return d.Set("Env", env)
}
