package rest

import (
	"maps"
	"slices"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// Missing is what a site has yet to say of a back end, all of it: it rides in the
// chain of the error that [Config.Check] gives.
type Missing struct {
	Name     string // of the adapter
	Settings []Need
	Secrets  []Need
}

// Need is a setting or a secret.
type Need struct {
	Name    string
	About   string
	Example string // of a setting's value; may be ""
}

// Error names them as a configuration has them.
func (m *Missing) Error() string {
	var all []string
	for _, n := range m.Settings {
		all = append(all, "the setting "+n.Name+": "+n.about())
	}
	for _, n := range m.Secrets {
		all = append(all, "the secret "+n.Name+" ("+n.About+"): name where it is, env:NAME or file:/absolute/path")
	}
	return m.Name + " needs " + strings.Join(all, "; ")
}

func (n Need) about() string {
	if n.Example == "" {
		return n.About
	}
	return n.About + ", e.g. " + n.Example
}

// missing lists what d asks for and c does not say; nil: nothing.
func (c Config) missing(name string, d *description.Description) error {
	m := &Missing{Name: name}
	for _, k := range slices.Sorted(maps.Keys(d.Settings)) {
		if s := d.Settings[k]; s.Required && c.Settings[k] == "" && s.Default == "" {
			m.Settings = append(m.Settings, Need{k, s.About, s.Example})
		}
	}
	for _, k := range slices.Sorted(maps.Keys(d.Secrets)) {
		if s := d.Secrets[k]; !s.Optional && c.Secrets[k] == "" {
			m.Secrets = append(m.Secrets, Need{k, s.About, ""})
		}
	}
	if len(m.Settings)+len(m.Secrets) == 0 {
		return nil
	}
	return pcm.Errorf(pcm.Invalid, "%w", m)
}
