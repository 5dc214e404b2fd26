package notify

import (
	"encoding/binary"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

// give writes them field by field.
func TestStructsOfTheKernelHaveNoHiddenPadding(t *testing.T) {
	for _, v := range []any{unix.Stat_t{}, unix.Statx_t{}} {
		if got, want := binary.Size(v), int(reflect.TypeOf(v).Size()); got != want {
			t.Errorf("%T: %d bytes are written of %d", v, got, want)
		}
	}
}
