package description

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Forms in which keys and tokens are written.
var secretForms = regexp.MustCompile(`^(?:` + strings.Join([]string{
	`(?:AKIA|ASIA)[0-9A-Z]{16}`,                                // AWS
	`gh[pousr]_[0-9A-Za-z]{20,}`,                               // GitHub
	`glpat-[0-9A-Za-z_-]{20,}`,                                 // GitLab
	`xox[abprs]-[0-9A-Za-z-]{10,}`,                             // Slack
	`sk-[0-9A-Za-z_-]{20,}`,                                    // OpenAI and others
	`eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]*`,  // JWT
	`(?s:-----BEGIN [A-Z ]*PRIVATE KEY-----.*)`,                // PEM
	`(?i:bearer|basic|token|apikey)\s+[0-9A-Za-z+/=._~-]{12,}`, // as a header has it
	`(?i:[a-z0-9+.-]+)://[^/\s:@$]+:[^/\s:@$]+@.*`,             // a URL with a password
}, "|") + `)$`)

// Names of fields and headers that hold secrets.
var secretNames = regexp.MustCompile(`(?i)(authorization|cookie|passw(or)?d|secret|token|api[_-]?key|access[_-]?key|credential)`)

// looksSecret tells whether a text is likely a key, token or password. Where one is
// expected, less is believed to be harmless.
func looksSecret(s string, expected bool) bool {
	s = strings.TrimSpace(s)
	if secretForms.MatchString(s) {
		return true
	}
	if !expected || len(s) < 20 || strings.ContainsAny(s, " \t\n${}") {
		return false
	}
	kinds := 0
	for _, set := range []string{"abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"} {
		if strings.ContainsAny(s, set) {
			kinds++
		}
	}
	return kinds >= 2
}

// secrets finds values in a template that should stand elsewhere.
func (c *compiler) secrets(path, name string, raw any) {
	switch v := raw.(type) {
	case string:
		if looksSecret(v, secretNames.MatchString(name)) {
			c.add(path, "here stands something like a key, token or password: declare it below secrets, and let the log-in name it")
		}
	case []any:
		for i, x := range v {
			c.secrets(fmt.Sprintf("%s[%d]", path, i), name, x)
		}
	case map[string]any:
		for _, k := range sorted(v) {
			c.secrets(path+"."+k, k, v[k])
		}
	}
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
