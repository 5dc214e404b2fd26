// Bench measures umoci-mount beside what a user could take in its place: stock umoci,
// kernel overlayfs and fuse-overlayfs over the extracted tree, that tree on the disk
// itself, and igzip for reading layers.
//
//	go run ./internal/bench [-quick] [-rows REGEXP] [-runs N] -bin bin/umoci-mount -images DIR
//
// Each row is one thing that a user does. Its contenders run in turn, several times,
// after a sync and a pause; the row's figure is the ratio of the medians of one run.
// A contender that is not there is left out, and the report says so. Results: a table in
// Markdown, all figures as JSON, and a plot as SVG.
package main
