package layer

import (
	"errors"
	"fmt"
	"runtime/debug"
)

// Cache files are mapped. They are only ever renamed into place, but their owner can
// cut one short, and memory behind a file's end is SIGBUS. Whatever reads a mapping
// begins with
//
//	defer catchFault(guardFaults(), &err)
//
// and so fails where the process would end. What it returns may point into the
// mapping: touch has read all of that before.

// errCut: a cache file was cut short while it was mapped.
var errCut = errors.New("cache file was cut short while in use")

// guardFaults turns a memory fault of this goroutine into a panic, until catchFault
// is given its answer.
func guardFaults() (before bool) { return debug.SetPanicOnFault(true) }

// catchFault recovers from the panic of a memory fault, for which *err becomes
// ErrChecksum; other panics go on. To be deferred.
func catchFault(before bool, err *error) {
	debug.SetPanicOnFault(before)
	switch r := recover().(type) {
	case nil:
	case interface {
		error
		Addr() uintptr
	}:
		*err = fmt.Errorf("%w: %w", ErrChecksum, errCut)
	default:
		panic(r)
	}
}

// pageSize is the least of any machine.
const pageSize = 4096

// touch reads a byte of every page of b.
//
//go:noinline
func touch(b []byte) (sum byte) {
	for i := 0; i < len(b); i += pageSize {
		sum ^= b[i]
	}
	if len(b) > 0 {
		sum ^= b[len(b)-1]
	}
	return sum
}
