package cas

import "encoding/json"

// Document is a JSON object that is being changed. Fields that are not set stay as
// they are, byte for byte, and in their order.
type Document struct{ o *object }

// Exact refuses fields whose names are those given but for the case of letters:
// encoding/json reads them as if they were. ErrMalformed.
func (d Document) Exact(names ...string) error { return d.o.exact(names...) }

// Get decodes a field into v, which stays as it is where there is none. ErrMalformed.
func (d Document) Get(key string, v any) error { return d.o.get(key, v) }

// Set replaces a field, or adds it where image-spec's structures have it.
func (d Document) Set(key string, v any) error { return d.o.set(key, v) }

// Remove drops a field.
func (d Document) Remove(key string) { d.o.remove(key) }

// Within changes an object that is a field. It is made where there is none, and
// dropped where nothing is left of it.
func (d Document) Within(key string, change func(Document) error) error {
	raw, ok := d.o.fields[key]
	if !ok || string(raw) == "null" {
		raw = json.RawMessage("{}")
	}
	inner, err := parseObject(raw)
	if err != nil {
		return err
	}
	if err := change(Document{inner}); err != nil {
		return err
	}
	if len(inner.keys) == 0 && !ok {
		return nil
	}
	if raw, err = inner.bytes(); err != nil {
		return err
	}
	d.o.setRaw(key, raw)
	return nil
}
