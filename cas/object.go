package cas

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// object is a JSON object whose unknown fields and order survive a change.
type object struct {
	keys   []string
	fields map[string]json.RawMessage
}

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
		if _, have := o.fields[key]; !have {
			o.keys = append(o.keys, key)
		}
		o.fields[key] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	return o, nil
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

// set replaces a field, or adds it at the end.
func (o *object) set(key string, v any) error {
	raw, err := marshal(v)
	if err != nil {
		return err
	}
	if _, have := o.fields[key]; !have {
		o.keys = append(o.keys, key)
	}
	o.fields[key] = raw
	return nil
}

// remove drops a field.
func (o *object) remove(key string) {
	if _, have := o.fields[key]; !have {
		return
	}
	delete(o.fields, key)
	for i, k := range o.keys {
		if k == key {
			o.keys = append(o.keys[:i], o.keys[i+1:]...)
			return
		}
	}
}

// appendTo adds v to an array field.
func (o *object) appendTo(key string, v any) error {
	var list []json.RawMessage
	if err := o.get(key, &list); err != nil {
		return err
	}
	raw, err := marshal(v)
	if err != nil {
		return err
	}
	return o.set(key, append(list, raw))
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

// MarshalJSON is the object as it is written.
func (o *object) MarshalJSON() ([]byte, error) { return o.bytes() }

// marshal is JSON without the escaping of <, > and &, which OCI documents do not
// need, and which would change values that are only passed on.
func marshal(v any) (json.RawMessage, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode JSON: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
