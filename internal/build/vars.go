package build

import "regexp"

// variable is ${{NAME}} or ${{NAME:DEFAULT}}: no shell has the form.
var variable = regexp.MustCompile(`\$\{\{\s*([A-Za-z_][A-Za-z0-9_.-]*)\s*(:([^}]*))?\}\}`)

// expandVars puts in what was set.
func (d *decoder) expandVars(s string, pos Pos) (string, error) {
	var err error
	out := variable.ReplaceAllStringFunc(s, func(match string) string {
		m := variable.FindStringSubmatch(match)
		d.used[m[1]] = true
		if v, ok := d.vars[m[1]]; ok {
			return v
		}
		if m[2] == "" && err == nil {
			err = bad(pos, "${{%s}} is not set: set it with --set %s=VALUE, or give it a default: ${{%s:VALUE}}", m[1], m[1], m[1])
		}
		return m[3]
	})
	return out, err
}
