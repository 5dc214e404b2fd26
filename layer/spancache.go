package layer

// spanCache holds decoded spans, shared by all blobs of an image.
type spanCache struct {
	maxBytes int64
}

// newSpanCache bounds the memory of decoded spans to about maxBytes.
func newSpanCache(maxBytes int64) *spanCache { return &spanCache{maxBytes: maxBytes} }
