package imagetest

import (
	"archive/tar"
	"fmt"
	"math/rand/v2"
	"path"
	"strconv"
	"strings"
	"time"
)

// DefaultTime is the mtime of entries that give none, in seconds.
const DefaultTime = 1_600_000_000

// entry is one line of a layer.
type entry struct {
	hdr  tar.Header
	body []byte
}

// parseLayer reads the language that the package comment describes.
func parseLayer(text string) ([]entry, error) {
	var out []entry
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		e, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("line %d, %q: %w", i+1, line, err)
		}
		out = append(out, e)
	}
	return out, nil
}

// positional is how many fields follow the verb before the options.
var positional = map[string]int{
	"dir": 2, "file": 3, "symlink": 2, "hardlink": 2, "fifo": 2, "char": 3, "block": 3, "whiteout": 1, "opaque": 1,
}

func parseLine(line string) (entry, error) {
	fields, err := split(line)
	if err != nil {
		return entry{}, err
	}
	verb := fields[0]
	n, ok := positional[verb]
	if !ok {
		return entry{}, fmt.Errorf("unknown kind of entry %q", verb)
	}
	if len(fields) < n+1 {
		return entry{}, fmt.Errorf("%s takes %d fields", verb, n)
	}
	args, options := fields[1:n+1], fields[n+1:]
	e := entry{hdr: tar.Header{Name: args[0], ModTime: time.Unix(DefaultTime, 0), Format: tar.FormatPAX}}
	if err := e.fill(verb, args); err != nil {
		return entry{}, err
	}
	for _, o := range options {
		if err := e.option(o); err != nil {
			return entry{}, err
		}
	}
	return e, nil
}

// fill sets what the verb and its fields say.
func (e *entry) fill(verb string, args []string) (err error) {
	h := &e.hdr
	switch verb {
	case "dir":
		h.Typeflag, h.Name = tar.TypeDir, strings.TrimSuffix(h.Name, "/")+"/"
	case "file":
		h.Typeflag = tar.TypeReg
		if e.body, err = content(args[0], args[2]); err != nil {
			return err
		}
		h.Size = int64(len(e.body))
	case "symlink":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, args[1], 0o777
		return nil
	case "hardlink":
		h.Typeflag, h.Linkname = tar.TypeLink, args[1]
		return nil
	case "fifo":
		h.Typeflag = tar.TypeFifo
	case "char", "block":
		h.Typeflag = map[string]byte{"char": tar.TypeChar, "block": tar.TypeBlock}[verb]
		if _, err := fmt.Sscanf(args[2], "%d,%d", &h.Devmajor, &h.Devminor); err != nil {
			return fmt.Errorf("device number %q: %w", args[2], err)
		}
	case "whiteout":
		dir, name := path.Split(args[0])
		h.Typeflag, h.Name = tar.TypeReg, dir+".wh."+name
		return nil
	case "opaque":
		h.Typeflag, h.Name = tar.TypeReg, path.Join(args[0], ".wh..wh..opq")
		return nil
	}
	if h.Mode, err = strconv.ParseInt(args[1], 8, 32); err != nil {
		return fmt.Errorf("mode %q: %w", args[1], err)
	}
	return nil
}

func (e *entry) option(s string) error {
	key, value, ok := strings.Cut(s, "=")
	if !ok {
		return fmt.Errorf("option %q: want KEY=VALUE", s)
	}
	if name, ok := strings.CutPrefix(key, "xattr:"); ok {
		if e.hdr.PAXRecords == nil {
			e.hdr.PAXRecords = map[string]string{}
		}
		e.hdr.PAXRecords["SCHILY.xattr."+name] = value
		return nil
	}
	var err error
	switch key {
	case "uid":
		e.hdr.Uid, err = strconv.Atoi(value)
	case "gid":
		e.hdr.Gid, err = strconv.Atoi(value)
	case "mtime":
		e.hdr.ModTime, err = parseTime(value)
	default:
		err = fmt.Errorf("unknown option")
	}
	if err != nil {
		return fmt.Errorf("option %q: %w", s, err)
	}
	return nil
}

// parseTime reads SECONDS[.FRACTION].
func parseTime(s string) (time.Time, error) {
	whole, frac, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, err
	}
	if len(frac) > 9 {
		return time.Time{}, fmt.Errorf("more than nanoseconds")
	}
	nsec, err := strconv.ParseInt(frac+strings.Repeat("0", 9-len(frac)), 10, 64)
	return time.Unix(sec, nsec), err
}

// content is a literal, or bytes that a file's name fixes: half of them repeat, so
// that compression has something to do.
func content(name, s string) ([]byte, error) {
	number, ok := strings.CutPrefix(s, "@")
	if !ok {
		return []byte(s), nil
	}
	size, err := strconv.Atoi(number)
	if err != nil {
		return nil, fmt.Errorf("content %q: %w", s, err)
	}
	var seed [32]byte
	copy(seed[:], name)
	rnd := rand.NewChaCha8(seed)
	out := make([]byte, size)
	for i := 0; i < size; i += 256 {
		_, _ = rnd.Read(out[i:min(i+128, size)]) // never fails
	}
	return out, nil
}

// split cuts a line at blanks; a Go string literal is one field, or the rest of one.
func split(line string) ([]string, error) {
	var out []string
	for rest := line; rest != ""; rest = strings.TrimLeft(rest, " \t") {
		var field strings.Builder
		for rest != "" && rest[0] != ' ' && rest[0] != '\t' {
			if rest[0] != '"' {
				end := strings.IndexAny(rest, " \t\"")
				if end < 0 {
					end = len(rest)
				}
				field.WriteString(rest[:end])
				rest = rest[end:]
				continue
			}
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				return nil, fmt.Errorf("string literal at %q: %w", rest, err)
			}
			s, err := strconv.Unquote(quoted)
			if err != nil {
				return nil, fmt.Errorf("string literal %s: %w", quoted, err)
			}
			field.WriteString(s)
			rest = rest[len(quoted):]
		}
		out = append(out, field.String())
	}
	return out, nil
}
