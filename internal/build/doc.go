// Package build makes images from a YAML spec: each target from a base and some steps
// (docs/build.md).
//
//	spec.go, decode*.go, vars.go   the spec, read strictly, with positions
//	plan.go, order.go              what is built from what, and in which order
//	inputs.go, fetch.go            files and URLs that steps need: checked before all
//	cachekey.go, cache.go          what a step's result depends on; results kept
//	build.go, target.go, step.go   the building itself
//	session.go, workdir.go         the mount that steps work on, and its leftovers
//	container.go, run.go           how a step's commands run
//	tagname.go, report.go          names of results, what the user sees
//
// # How a target is built
//
// Each step makes an image of the one before it and one layer. `copy` and `expand` write
// that layer straight from files and archives: nothing is extracted, owners and devices
// need no privilege, and no name can lead out of the image. `install` and `run`, and the
// hooks, work on a mount, whose changes are repacked after each. In the end the layers
// are squashed into one, unless the target wants one a step.
//
// Nothing is tagged before all targets are done; then all tags are set in one change of
// index.json.
//
// # Cache
//
// A step's key is a digest of the base's manifest, the key of the step before, the
// step's kind and text, and the content that it reads. The layout remembers which
// manifest a key led to (bundle.BuildCacheName), and holds it against gc.
//
// # What a killed build leaves
//
// Mounts and containers live below one work directory, which is locked by the process.
// The next build of the same user ends what is in directories whose lock is free.
package build
