package overlay_test

import (
	"github.com/umoci-mount/umoci-mount/layer"
	"github.com/umoci-mount/umoci-mount/overlay"
)

var _ overlay.Lower = (*layer.Image)(nil)
