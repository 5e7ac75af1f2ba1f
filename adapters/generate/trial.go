package generate

import (
	"bytes"
	"cmp"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Trial is the command that tests a project: with the settings that a back end needs,
// by their examples, and its secrets.
func (p *Project) Trial() string {
	settings := map[string]string{}
	var secrets strings.Builder
	if d := p.Description; d != nil {
		for name, s := range d.Settings {
			if s.Required {
				settings[name] = oneLine(cmp.Or(s.Example, s.Default, "…"))
			}
		}
		for _, name := range slices.Sorted(maps.Keys(d.Secrets)) {
			if !d.Secrets[name].Optional {
				secrets.WriteString(name + "=… ")
			}
		}
	}
	if p.Operations != nil {
		settings["endpoint"] = p.Endpoint
		for _, l := range p.Logins {
			secrets.WriteString(l.Secret + "=… ")
			if l.Kind == "basic" {
				settings["username"] = "…"
			}
		}
	}
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	if err := e.Encode(settings); err != nil {
		return "make test" // texts can be encoded
	}
	return "ADAPTER_SETTINGS='" + strings.ReplaceAll(strings.TrimSpace(text.String()), "'", `'\''`) + "' " + secrets.String() + "make test"
}

var plainPath = regexp.MustCompile(`^[A-Za-z0-9_./+:@-]+$`)

// quote makes a path one word of a shell.
func quote(path string) string {
	if plainPath.MatchString(path) && path[0] != '-' {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
