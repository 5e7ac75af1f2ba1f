package rest

import (
	"cmp"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/rest/client"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// Config is a back end of a site: its description, and what the site says of it.
// Daemon and supervisor are given the same.
type Config struct {
	Dir      string `json:"dir"`      // the supervisor's folder
	Instance string `json:"instance"` // this node's name at back ends
	File     string `json:"file"`     // of the description
	Name     string `json:"name"`     // of the adapter; "": the description's

	Settings map[string]string `json:"settings,omitempty"`
	Secrets  map[string]string `json:"secrets,omitempty"` // references: env:NAME, file:/PATH

	AllowPrivate bool   `json:"allow_private,omitempty"` // of addresses: see client.Config
	CA           string `json:"ca,omitempty"`            // file of certificates

	Poll time.Duration `json:"poll,omitempty"` // 0: what the description says
	Rate float64       `json:"rate,omitempty"` // 0: what the description says
	// How long what was seen of pools is believed, also while the back end is away; 0: what the description says.
	Refresh time.Duration `json:"refresh,omitempty"`

	Labels pcm.Labels `json:"labels,omitempty"` // of all pools, beside those described
}

// Bounds and defaults of what descriptions leave open.
const (
	defaultRate    = 10
	defaultBurst   = 20
	defaultTimeout = 30 * time.Second
	defaultTries   = 5
	defaultPoll    = 5 * time.Second
	defaultRefresh = time.Minute
	minPoll        = 20 * time.Millisecond
)

// Load reads the description's file. The error says on which line it is wrong.
func (c Config) Load() (*description.Description, error) {
	info, err := os.Stat(c.File)
	if err == nil && info.Size() > description.MaxSize {
		return nil, pcm.Errorf(pcm.TooLarge, "the description %s has %d bytes, over the bound of %d", c.File, info.Size(), description.MaxSize)
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(c.File)
	}
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "can't read the description: %w", err)
	}
	d, problems := description.ParseIn(data, os.DirFS(filepath.Dir(c.File)))
	if d == nil {
		for _, p := range problems {
			if !p.Warning {
				return nil, pcm.Errorf(pcm.Invalid, "the description %s can't be used: %s ('pcm adapter lint %s' shows all that is wrong)", c.File, p, c.File)
			}
		}
	}
	return d, nil
}

// Check compares what the site says with what the description asks for.
func (c Config) Check(d *description.Description) error {
	name := cmp.Or(c.Name, d.Name)
	if !pcm.ValidName(name) {
		return pcm.Errorf(pcm.Invalid, "%q is not a name of lower-case letters, digits, dots and dashes", name)
	}
	for _, k := range slices.Sorted(maps.Keys(c.Settings)) {
		s, ok := d.Settings[k]
		if !ok {
			return pcm.Errorf(pcm.Invalid, "%s has no setting %q%s", name, k, known("settings", slices.Sorted(maps.Keys(d.Settings)), k))
		}
		if s.Pattern != "" {
			whole, err := regexp.Compile(`^(?:` + s.Pattern + `)$`)
			if err != nil {
				return pcm.Errorf(pcm.Invalid, "setting %s of %s has a pattern that can't be read: %w", k, name, err)
			}
			if v := c.Settings[k]; v != "" && !whole.MatchString(v) {
				return pcm.Errorf(pcm.Invalid, "setting %s of %s is %q, which doesn't look like it (%s)%s", k, name, v, s.About, example(s))
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(c.Secrets)) {
		if _, ok := d.Secrets[k]; !ok {
			return pcm.Errorf(pcm.Invalid, "%s has no secret %q%s", name, k, known("secrets", slices.Sorted(maps.Keys(d.Secrets)), k))
		}
		if err := client.CheckReference(c.Secrets[k]); err != nil {
			return pcm.Errorf(pcm.Invalid, "secret %s of %s: %w", k, name, err)
		}
	}
	if err := c.missing(name, d); err != nil {
		return err
	}
	if c.Poll < 0 || c.Poll > 0 && c.Poll < minPoll || c.Poll > time.Hour {
		return pcm.Errorf(pcm.Invalid, "%s: poll %s is out of range: %s to 1h", name, c.Poll, minPoll)
	}
	if c.Refresh < 0 || c.Refresh > time.Hour {
		return pcm.Errorf(pcm.Invalid, "%s: refresh %s is out of range: at most 1h", name, c.Refresh)
	}
	if c.Rate < 0 || c.Rate > 1e5 {
		return pcm.Errorf(pcm.Invalid, "%s: a rate of %g calls a second is out of range", name, c.Rate)
	}
	return c.Labels.Validate()
}

func example(s description.Setting) string {
	if s.Example == "" {
		return ""
	}
	return ", e.g. " + s.Example
}

func known(what string, all []string, k string) string {
	if n := pcm.Nearest(k, all); n != "" {
		return "; did you mean " + n + "?"
	}
	if len(all) == 0 {
		return ": it has no " + what
	}
	return ": it has " + list(all)
}

func list(all []string) string {
	text := ""
	for i, s := range all {
		if i > 0 {
			text += ", "
		}
		text += s
	}
	return text
}

// notes is the folder that holds a note for each attempt that may have left
// something at the back end.
func (c Config) notes(name string) string { return filepath.Join(c.Dir, "described", name) }
