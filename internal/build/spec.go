package build

import (
	"errors"
	"fmt"
)

// Empty is the base without files.
const Empty = "empty"

// How many layers a target gets.
const (
	LayersTarget = "target" // one
	LayersStep   = "step"   // one a step
)

// Pos is a place in a spec.
type Pos struct {
	File      string
	Line, Col int // from 1; 0: the file as a whole
}

func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col)
}

// ErrSpec: a spec that cannot be built.
var ErrSpec = errors.New("invalid spec")

// PosError is an error with the place in the spec that it is about.
type PosError struct {
	Pos Pos
	Err error
}

func (e *PosError) Error() string { return e.Pos.String() + ": " + e.Err.Error() }

func (e *PosError) Unwrap() error { return e.Err }

// at is an error of a place in a spec.
func at(pos Pos, err error) error {
	if err == nil {
		return nil
	}
	return &PosError{pos, err}
}

// bad is ErrSpec at a place.
func bad(pos Pos, format string, args ...any) error {
	return &PosError{pos, specError(fmt.Sprintf(format, args...))}
}

// specError is ErrSpec with a text of its own.
type specError string

func (e specError) Error() string { return string(e) }

func (e specError) Is(target error) bool { return target == ErrSpec }

// Text is a string of a spec and where it stands.
type Text struct {
	Value string
	Pos   Pos
}

// Spec is a file of targets.
type Spec struct {
	File    string // as it was named
	Dir     string // that relative paths are below
	Targets []*Target
}

// Target is one image to build. Paths are as in the spec.
type Target struct {
	Name string
	Pos  Pos // of the name

	Base   Text
	Layers string // LayersTarget or LayersStep

	Pre, Post []Text // shell text of the host
	Copy      []CopyItem
	Install   []Text // paths or URLs
	Expand    []Text // paths or URLs
	Run       []Text // paths or shell text

	Config Config
}

// CopyItem is one pair of copy.
type CopyItem struct {
	Pos    Pos
	Source string
	Dest   string
	From   Text    // a target or a tag; "": the host
	Owner  string  // "", "USER[:GROUP]" or bundle.OwnerKeep
	Mode   *uint32 // nil: kept
}

// Config is what a target sets in its image's config and manifest. Nil is not set.
type Config struct {
	Pos         Pos // of the first key
	Entrypoint  []string
	Cmd         []string
	Env         []string // NAME=VALUE
	Workdir     *string
	User        *string
	Labels      []string // NAME=VALUE
	Volumes     []string
	Ports       []string
	Author      *string
	Annotations []string // NAME=VALUE
}

// isZero reports whether nothing is set.
func (c *Config) isZero() bool { return c.Pos.Line == 0 }
