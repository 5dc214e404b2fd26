package imageconfig

import (
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// History says what an image's history is to say of a change. Nil is not asked for;
// an empty string is.
type History struct {
	None      bool // nothing
	Author    *string
	Comment   *string
	Created   *time.Time
	CreatedBy *string

	Now   time.Time  // where Created is not given
	Epoch *time.Time // in its place, where set: SOURCE_DATE_EPOCH
}

// Entry is the entry of a change that command made; author is the image's. None: nil.
func (h *History) Entry(command, author string, empty bool) []ispec.History {
	if h.None {
		return nil
	}
	created := h.Now
	switch {
	case h.Created != nil:
		created = *h.Created
	case h.Epoch != nil:
		created = h.Epoch.UTC()
	}
	e := ispec.History{Created: &created, CreatedBy: command, Author: author, EmptyLayer: empty}
	for _, f := range []struct{ to, from *string }{
		{&e.Author, h.Author}, {&e.Comment, h.Comment}, {&e.CreatedBy, h.CreatedBy},
	} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	return []ispec.History{e}
}
