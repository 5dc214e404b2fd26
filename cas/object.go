package cas

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// object is a JSON object whose unknown fields and order survive a change.
type object struct {
	keys   []string                   // in the order of the document
	fields map[string]json.RawMessage // as they stand in the document
}

// parseObject reads one object and nothing after it. A field that is there twice is
// refused: which of the two counts differs from reader to reader. ErrMalformed.
func parseObject(data []byte) (*object, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	tok, err := dec.Token()
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if tok != json.Delim('{') {
		return nil, fmt.Errorf("%w: not a JSON object", ErrMalformed)
	}
	o := &object{fields: map[string]json.RawMessage{}}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("%w: %v", ErrMalformed, err)
		}
		key, ok := tok.(string)
		if !ok {
			return nil, fmt.Errorf("%w: not a JSON object", ErrMalformed)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, fmt.Errorf("%w: %v", ErrMalformed, err)
		}
		if _, have := o.fields[key]; have {
			return nil, fmt.Errorf("%w: field %q is there twice", ErrMalformed, key)
		}
		o.keys = append(o.keys, key)
		o.fields[key] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("%w: something follows the JSON object", ErrMalformed)
	}
	return o, nil
}

// exact refuses fields whose names are those given but for the case of letters.
// encoding/json takes the one for the other where the specification does not: a
// document would mean one thing here and another thing elsewhere.
func (o *object) exact(names ...string) error {
	for _, key := range o.keys {
		for _, name := range names {
			if key != name && strings.EqualFold(key, name) {
				return fmt.Errorf("%w: field %q in place of %q", ErrMalformed, key, name)
			}
		}
	}
	return nil
}

// clone is a copy that can be changed: fields are replaced, and never written to.
func (o *object) clone() *object {
	return &object{keys: slices.Clone(o.keys), fields: maps.Clone(o.fields)}
}

// get decodes a field into v; an absent or null field leaves v as it is.
func (o *object) get(key string, v any) error {
	raw, ok := o.fields[key]
	if !ok || string(raw) == "null" {
		return nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%w: field %q: %v", ErrMalformed, key, err)
	}
	return nil
}

// set replaces a field, or adds it; see place.
func (o *object) set(key string, v any) error {
	raw, err := marshal(v)
	if err != nil {
		return err
	}
	o.setRaw(key, raw)
	return nil
}

func (o *object) setRaw(key string, raw json.RawMessage) {
	if _, have := o.fields[key]; !have {
		o.keys = slices.Insert(o.keys, o.place(key), key)
	}
	o.fields[key] = raw
}

// fieldOrder is the order of fields in image-spec's structures, of all documents at
// once: index, manifest, descriptor, config, and the config's config.
var fieldOrder = []string{
	"schemaVersion", "mediaType", "artifactType", "digest", "size", "urls",
	"created", "author", "architecture", "os", "os.version", "os.features", "variant",
	"User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "ArgsEscaped",
	"config", "layers", "manifests", "subject", "annotations", "data", "platform", "rootfs", "history",
}

// place is where a new field goes: before the first that comes later in fieldOrder,
// else to the end. So the document is the one that umoci would write, and has the same
// digest, where it had nothing that umoci does not know.
func (o *object) place(key string) int {
	rank := slices.Index(fieldOrder, key)
	if rank < 0 {
		return len(o.keys)
	}
	at := slices.IndexFunc(o.keys, func(k string) bool { return slices.Index(fieldOrder, k) > rank })
	if at < 0 {
		return len(o.keys)
	}
	return at
}

// remove drops a field.
func (o *object) remove(key string) {
	if _, have := o.fields[key]; !have {
		return
	}
	delete(o.fields, key)
	o.keys = slices.DeleteFunc(o.keys, func(k string) bool { return k == key })
}

// appendTo adds v to an array field, which is made where it is missing.
func (o *object) appendTo(key string, v any) error {
	var list []json.RawMessage
	if err := o.get(key, &list); err != nil {
		return err
	}
	raw, err := marshal(v)
	if err != nil {
		return err
	}
	o.setRaw(key, joinArray(append(list, raw)))
	return nil
}

// joinArray is a JSON array of elements as they are; encoding/json would take the
// white space out of them.
func joinArray(list []json.RawMessage) json.RawMessage {
	out := json.RawMessage{'['}
	for i, raw := range list {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, raw...)
	}
	return append(out, ']')
}

func (o *object) bytes() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, key := range o.keys {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := marshal(key)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(o.fields[key])
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// marshal is JSON as umoci writes it, with <, > and & escaped: a document that both
// could have written has one digest. What is only passed on does not come here.
func marshal(v any) (json.RawMessage, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode JSON: %w", err)
	}
	return data, nil
}
