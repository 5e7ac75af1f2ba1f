package client

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/jointcloud/pcm"
)

const (
	maxSecret  = 64 << 10 // bytes of one secret
	maxSecrets = 64       // of one back end
	maxHidden  = 256      // values that are still hidden after they went out of use
	hidden     = "***"
)

// Secrets are values known by reference only: "env:NAME" is a variable of this
// process's environment, "file:/absolute/path" a file. They are read when they
// are used, so that they can be changed while the node runs. Whatever was read is
// remembered to be blotted out by [Secrets.Redact].
type Secrets struct {
	refs map[string]string

	mu     sync.Mutex
	last   map[string]string // as they were read last, by name
	values []string          // what else must not be seen: older ones, and what log-ins gave; the oldest first
	blot   *strings.Replacer
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// CheckReference refuses, with code Invalid, what is no reference to a secret. Its
// message doesn't repeat the text: it may be the secret itself.
func CheckReference(ref string) error {
	if name, ok := strings.CutPrefix(ref, "env:"); ok {
		if envName.MatchString(name) {
			return nil
		}
		return pcm.Errorf(pcm.Invalid, "what stands behind env: is not the name of an environment variable")
	}
	if path, ok := strings.CutPrefix(ref, "file:"); ok {
		if filepath.IsAbs(path) && filepath.Clean(path) == path {
			return nil
		}
		return pcm.Errorf(pcm.Invalid, "what stands behind file: is not a clean absolute path")
	}
	return pcm.Errorf(pcm.Invalid, "a secret is not written down here: name where it is, env:NAME or file:/absolute/path")
}

// NewSecrets checks references by name. They are not read yet.
func NewSecrets(refs map[string]string) (*Secrets, error) {
	if len(refs) > maxSecrets {
		return nil, pcm.Errorf(pcm.TooLarge, "%d secrets are over the bound of %d", len(refs), maxSecrets)
	}
	for _, name := range slices.Sorted(maps.Keys(refs)) {
		if err := CheckReference(refs[name]); err != nil {
			return nil, pcm.Errorf(pcm.Invalid, "secret %.64q: %w", name, err)
		}
	}
	return &Secrets{refs: maps.Clone(refs), last: map[string]string{}}, nil
}

// String names no value and no reference.
func (s *Secrets) String() string { return hidden }

// GoString is as empty as String.
func (s *Secrets) GoString() string { return hidden }

// describe says where the secret is, for messages.
func (s *Secrets) describe(name string) string {
	if s != nil && s.refs[name] != "" {
		return name + " (" + s.refs[name] + ")"
	}
	return name
}

// Get reads a secret. The error has code Invalid where there is no such
// reference, else Unavailable, and names the reference.
func (s *Secrets) Get(name string) (string, error) {
	if s == nil || s.refs[name] == "" {
		return "", pcm.Errorf(pcm.Invalid, "there is no secret named %.64q: add it under secrets, as env:NAME or file:/absolute/path", name)
	}
	value, err := readReference(s.refs[name])
	if err != nil {
		return "", pcm.Errorf(pcm.Unavailable, "secret %s: %w", s.describe(name), err)
	}
	s.mu.Lock()
	old := s.last[name]
	s.last[name] = value
	s.mu.Unlock()
	if old != value {
		s.hide(old)
		s.renew()
	}
	return value, nil
}

func readReference(ref string) (string, error) {
	var value string
	if name, ok := strings.CutPrefix(ref, "env:"); ok {
		value = os.Getenv(name)
	} else {
		// Not to hang on a pipe that nobody writes to.
		f, err := os.OpenFile(strings.TrimPrefix(ref, "file:"), os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return "", pcm.Errorf(pcm.Unavailable, "%w", err)
		}
		defer f.Close()
		info, err := f.Stat()
		switch {
		case err != nil:
			return "", pcm.Errorf(pcm.Unavailable, "%w", err)
		case !info.Mode().IsRegular():
			return "", pcm.Errorf(pcm.Unavailable, "it is not a regular file")
		case info.Mode().Perm()&0o027 != 0:
			return "", pcm.Errorf(pcm.Unavailable, "its mode %04o lets others read or change it: chmod 600 it", info.Mode().Perm())
		}
		data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
		if err != nil {
			return "", pcm.Errorf(pcm.Unavailable, "%w", err)
		}
		value = strings.TrimRight(string(data), "\r\n")
	}
	switch {
	case value == "":
		return "", pcm.Errorf(pcm.Unavailable, "it is not set or empty")
	case len(value) > maxSecret:
		return "", pcm.Errorf(pcm.Unavailable, "it is over the bound of %d bytes", maxSecret)
	}
	return value, nil
}

// hide has a value blotted out from now on: one that was read, or one that a
// log-in gave.
func (s *Secrets) hide(value string) {
	if s == nil || value == "" {
		return
	}
	s.mu.Lock()
	i := slices.Index(s.values, value)
	if i >= 0 {
		s.values = slices.Delete(s.values, i, i+1)
	}
	s.values = append(s.values, value)
	if len(s.values) > maxHidden {
		s.values = slices.Delete(s.values, 0, 1)
	}
	s.mu.Unlock()
	if i < 0 {
		s.renew()
	}
}

// renew makes the blot anew, of all that must not be seen.
func (s *Secrets) renew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var forms []string
	for _, v := range slices.AppendSeq(slices.Clone(s.values), maps.Values(s.last)) {
		forms = append(forms, shapes(v)...)
	}
	// A secret may begin with another one: the longest form first.
	slices.SortFunc(forms, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	var pairs []string
	for _, f := range slices.Compact(forms) {
		pairs = append(pairs, f, hidden)
	}
	s.blot = strings.NewReplacer(pairs...)
}

// shapes are the forms in which a value shows up in URLs, JSON, headers and dumps.
func shapes(v string) []string {
	var quoted bytes.Buffer
	e := json.NewEncoder(&quoted)
	_ = e.Encode(v) // a string always can be
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
	lines := strings.Split(quoted.String(), "\n")
	all := []string{
		v, url.QueryEscape(v), url.PathEscape(v), escape(v), lines[0][1 : len(lines[0])-1], lines[1][1 : len(lines[1])-1],
		base64.StdEncoding.EncodeToString([]byte(v)), base64.URLEncoding.EncodeToString([]byte(v)),
	}
	for _, part := range strings.Split(v, "\n") { // a message shows lines apart
		if len(part) >= 8 {
			all = append(all, part)
		}
	}
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(s string) bool { return s == "" })
}

// signed are parameters that make a URL a credential by itself.
var signed = regexp.MustCompile(`(?i)\b(X-Amz-Signature|X-Amz-Security-Token|X-Obs-Security-Token|Signature|sig|temp_url_sig|access_token|token|api_?key)=[^&\s"'<>]+`)

// Redact blots out, in whatever form, each secret that was read or given, and the
// signatures of URLs.
func (s *Secrets) Redact(text string) string {
	if s != nil {
		s.mu.Lock()
		blot := s.blot
		s.mu.Unlock()
		if blot != nil {
			text = blot.Replace(text)
		}
	}
	return signed.ReplaceAllString(text, "${1}="+hidden)
}
