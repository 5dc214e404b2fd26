package imageconfig

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// WriteText writes a Stat for people, as umoci stat does: scripts want the JSON.
func (s *Stat) WriteText(w io.Writer) error {
	var p printer
	p.line("== MANIFEST ==")
	p.manifest(s)
	if s.Config != nil {
		p.line("")
		p.line("== CONFIG ==")
		if s.History != nil {
			p.config(s)
		}
		p.descriptor(s.Config.Descriptor)
	}
	if s.History != nil {
		p.line("")
		p.line("== HISTORY ==")
	}
	if _, err := io.WriteString(w, p.out.String()); err != nil || s.History == nil {
		return err
	}
	return s.writeHistory(w)
}

func (s *Stat) writeHistory(w io.Writer) error {
	const none = "<none>"
	t := tabwriter.NewWriter(w, 4, 2, 1, ' ', 0)
	fmt.Fprint(t, "LAYER\tCREATED\tCREATED BY\tSIZE\tCOMMENT\n")
	for i := range s.History {
		h := &s.History[i]
		layer, created, size := none, none, none
		if h.Layer != nil {
			layer, size = h.Layer.Digest.String(), humanSize(h.Layer.Size)
		}
		if h.Created != nil {
			created = h.Created.Format(time.RFC3339Nano)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", layer, created, quoted(h.CreatedBy, false), size, quoted(h.Comment, false))
	}
	return t.Flush()
}

// printer writes names and values, indented by what they are part of.
type printer struct {
	out    strings.Builder
	indent string
}

func (p *printer) line(s string) { p.out.WriteString(p.indent + s + "\n") }

// within indents what f writes.
func (p *printer) within(title string, f func()) {
	p.line(title + ":")
	p.indent += "\t"
	f()
	p.indent = p.indent[1:]
}

// value writes one or several values; one with a comma stands in quotes.
func (p *printer) value(name string, values ...string) {
	for i, v := range values {
		if strings.Contains(v, ",") {
			values[i] = strconv.Quote(v)
		} else {
			values[i] = quoted(v, true)
		}
	}
	p.line(name + ": " + strings.Join(values, ", "))
}

// optional is value where there is one.
func (p *printer) optional(name, v string) {
	if v != "" {
		p.value(name, v)
	}
}

func (p *printer) list(name string, values []string) {
	if len(values) == 0 {
		p.value(name, "(empty)")
		return
	}
	p.within(name, func() {
		for _, v := range values {
			p.line(quoted(v, true))
		}
	})
}

func (p *printer) pairs(name string, m map[string]string) {
	if len(m) == 0 {
		return
	}
	p.within(name, func() {
		for _, key := range slices.Sorted(maps.Keys(m)) {
			p.value(quoted(key, true), m[key])
		}
	})
}

func (p *printer) set(name string, m map[string]struct{}) {
	if len(m) > 0 {
		p.value(name, slices.Sorted(maps.Keys(m))...)
	}
}

func (p *printer) manifest(s *Stat) {
	m := s.manifest
	p.value("Schema Version", strconv.Itoa(m.SchemaVersion))
	p.value("Media Type", m.MediaType)
	p.optional("Artifact Type", m.ArtifactType)
	p.within("Config", func() { p.descriptor(m.Config) })
	if len(m.Layers) > 0 {
		p.within("Layers", func() {
			for _, d := range m.Layers {
				p.descriptor(d)
			}
		})
	}
	if m.Subject != nil {
		p.within("Subject", func() { p.descriptor(*m.Subject) })
	}
	p.pairs("Annotations", m.Annotations)
	p.descriptor(s.Manifest.Descriptor)
}

func (p *printer) config(s *Stat) {
	img := &s.image
	if img.Created != nil {
		p.value("Created", img.Created.Format(time.RFC3339Nano))
	}
	p.value("Author", img.Author)
	p.platform(img.Platform)
	c := &img.Config
	p.within("Image Config", func() {
		escaped := ""
		//lint:ignore SA1019 deprecated, and still there
		if c.ArgsEscaped {
			escaped = " (escaped)"
		}
		p.value("User", c.User)
		if len(c.Entrypoint) > 0 {
			p.list("Entrypoint"+escaped, c.Entrypoint)
		}
		p.list("Command"+escaped, c.Cmd)
		p.optional("Working Directory", c.WorkingDir)
		if len(c.Env) > 0 {
			p.list("Environment", c.Env)
		}
		p.optional("Stop Signal", c.StopSignal)
		p.set("Exposed Ports", c.ExposedPorts)
		p.set("Volumes", c.Volumes)
		p.pairs("Labels", c.Labels)
	})
}

func (p *printer) platform(f ispec.Platform) {
	p.within("Platform", func() {
		p.value("OS", f.OS)
		p.optional("OS Version", f.OSVersion)
		if len(f.OSFeatures) > 0 {
			p.value("OS Features", slices.Clone(f.OSFeatures)...)
		}
		arch := quoted(f.Architecture, true)
		if f.Variant != "" {
			arch += " (" + quoted(f.Variant, false) + ")"
		}
		p.line("Architecture: " + arch)
	})
}

func (p *printer) descriptor(d ispec.Descriptor) {
	p.within("Descriptor", func() {
		p.value("Media Type", d.MediaType)
		p.optional("Artifact Type", d.ArtifactType)
		p.value("Digest", d.Digest.String())
		p.value("Size", humanSize(d.Size))
		if d.Platform != nil {
			p.platform(*d.Platform)
		}
		if len(d.URLs) > 0 {
			p.list("URLs", d.URLs)
		}
		p.pairs("Annotations", d.Annotations)
		if len(d.Data) > 0 {
			p.data(d.Data)
		}
	})
}

// Of embedded content, dataShown bytes are shown, dataWidth a line.
const (
	dataShown = 256
	dataWidth = 16
)

// data shows the beginning of embedded content in the form of xxd(1).
func (p *printer) data(b []byte) {
	p.line(fmt.Sprintf("Data: (%d bytes)", len(b)))
	p.indent += "\t"
	shown := b[:min(len(b), dataShown)]
	for at := 0; at < len(shown); at += dataWidth {
		row := shown[at:min(at+dataWidth, len(shown))]
		var digits, text strings.Builder
		for i, c := range row {
			if i > 0 && i%2 == 0 {
				digits.WriteByte(' ')
			}
			fmt.Fprintf(&digits, "%02x", c)
			if c < ' ' || c > '~' {
				c = '.'
			}
			text.WriteByte(c)
		}
		p.line(fmt.Sprintf("%04x: %-39s  %s", at, digits.String(), text.String()))
	}
	if rest := len(b) - len(shown); rest > 0 {
		p.line(fmt.Sprintf("....  (extra %d bytes omitted)", rest))
	}
	p.indent = p.indent[1:]
}

// quoted is s in quotes where that is needed to read it right; precise means also
// where it is empty or has white space.
func quoted(s string, precise bool) string {
	q := strconv.Quote(s)
	if q != `"`+s+`"` || precise && (s == "" || strings.ContainsFunc(s, unicode.IsSpace)) {
		return q
	}
	return s
}

// humanSize is a number of bytes with four digits: 1.234MB.
func humanSize(n int64) string {
	f := float64(n)
	for _, unit := range []string{"B", "kB", "MB", "GB", "TB", "PB"} {
		if f < 1000 {
			return fmt.Sprintf("%.4g%s", f, unit)
		}
		f /= 1000
	}
	return fmt.Sprintf("%.4gEB", f)
}
