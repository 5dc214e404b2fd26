package extract

import "errors"

var (
	// ErrUnmapped: an owner in the image has no id in the mapping asked for.
	ErrUnmapped = errors.New("is outside the id map")
	// ErrName: an entry's name is not one path component; the tree is damaged.
	ErrName = errors.New("not a file name")
)
