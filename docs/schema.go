// Package docs holds the documents that the program itself prints.
package docs

import _ "embed"

// BuildSchema is the JSON schema of `umoci-mount build`'s specs.
//
//go:embed build-schema.json
var BuildSchema []byte
