package build

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/umoci-mount/umoci-mount/cas"
)

// DefaultTagFormat names each build of a target.
const DefaultTagFormat = "{name}-{date}_{n}"

// CheckTagFormat finds what is wrong with a format: {name}, {date} (2006-01-02), {time}
// (150405) and {n}, the first number from 1 that makes a name which is free.
func CheckTagFormat(format string) error {
	if format == "" {
		return nil
	}
	name := fillTag(format, "name", time.Unix(0, 0).UTC(), 1)
	if strings.ContainsAny(name, "{}") {
		return fmt.Errorf("tag format %q: want {name}, {date}, {time} and {n} in it", format)
	}
	if err := cas.CheckTag(name); err != nil {
		return fmt.Errorf("tag format %q: %w", format, err)
	}
	return nil
}

func fillTag(format, name string, now time.Time, n int) string {
	return strings.NewReplacer("{name}", name, "{date}", now.Format(time.DateOnly), "{time}", now.Format("150405"),
		"{n}", strconv.Itoa(n)).Replace(format)
}

// maxTagNumber bounds the search for a free one.
const maxTagNumber = 1 << 20

// buildTag is a target's second tag: one that is free, where the format has a number.
func buildTag(format, name string, now time.Time, taken func(string) bool) (string, error) {
	for n := 1; n < maxTagNumber; n++ {
		tag := fillTag(format, name, now, n)
		if !taken(tag) || !strings.Contains(format, "{n}") {
			return tag, cas.CheckTag(tag)
		}
	}
	return "", fmt.Errorf("no number is free for %s of %s", format, name)
}

// tag gives all targets their tags in one change of index.json.
func (b *builder) tag(ctx context.Context) ([]Result, error) {
	now := b.opt.Now
	if b.opt.Epoch != nil {
		now = *b.opt.Epoch
	}
	var res []Result
	err := b.layout.Update(ctx, func(ix *cas.Index) error {
		res = nil
		for _, k := range b.plan.tasks {
			r := Result{Target: k.Name, Manifest: b.result(k).Descriptor(), Cached: b.done[k].cached, Tags: []string{k.Name}}
			if b.opt.TagFormat != "" {
				tag, err := buildTag(b.opt.TagFormat, k.Name, now, func(tag string) bool {
					return slices.ContainsFunc(ix.Entries, func(e cas.Entry) bool { return e.RefName() == tag })
				})
				if err != nil {
					return err
				}
				if tag != k.Name {
					r.Tags = append([]string{tag}, r.Tags...)
				}
			}
			for _, tag := range r.Tags {
				setTag(ix, tag, r.Manifest)
			}
			res = append(res, r)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("tag the results: %w", err)
	}
	return res, nil
}

// setTag is cas.Layout.Tag within a change.
func setTag(ix *cas.Index, tag string, d ispec.Descriptor) {
	ix.Entries = slices.DeleteFunc(ix.Entries, func(e cas.Entry) bool { return e.RefName() == tag })
	ix.Entries = append(ix.Entries, cas.Entry{Descriptor: ispec.Descriptor{
		MediaType: d.MediaType, Digest: d.Digest, Size: d.Size,
		Annotations: map[string]string{ispec.AnnotationRefName: tag},
	}})
}
