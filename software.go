package pcm

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Software is what a pool has installed: names with versions, "" where the version is not stated.
type Software map[string]string

// MaxSoftware bounds what a pool may state, and a task ask for.
const MaxSoftware = 32

// Validate checks the bounds.
func (s Software) Validate() error {
	if len(s) > MaxSoftware {
		return Errorf(Invalid, "software: %d names are too many: at most %d", len(s), MaxSoftware)
	}
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if !ValidName(name) {
			return Errorf(Invalid, "software %.40q is not a name of lower-case letters, digits, dots and dashes", name)
		}
		if v := s[name]; v != "" && !validVersion(v) {
			return Errorf(Invalid, "software %s: %.40q is not a version like 12.4", name, v)
		}
	}
	return nil
}

// validVersion tells whether v begins with a digit and has at most 31 letters, digits, dots and the like.
func validVersion(v string) bool {
	return v != "" && len(v) <= 31 && v[0] >= '0' && v[0] <= '9' && !strings.ContainsFunc(v, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(".-_+~", r)
	})
}

func (s Software) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		parts = append(parts, strings.TrimSpace(name+" "+s[name]))
	}
	return strings.Join(parts, ", ")
}

// SoftwareAsk is one thing that a task needs to be installed.
type SoftwareAsk struct {
	Name    string
	Exact   bool   // this version, or one that only adds to it: 12 takes 12.4
	Version string // at least, unless Exact; "": any
}

// ParseSoftware reads "python", "cuda>=12" (or ≥) or "gcc=12.2".
func ParseSoftware(s string) (SoftwareAsk, error) {
	var a SoftwareAsk
	name, version, op := s, "", ""
	if at := strings.IndexAny(s, "=<>≥!~"); at >= 0 {
		name, version = s[:at], s[at:]
		for _, o := range []string{">=", "≥", "=="} {
			if v, ok := strings.CutPrefix(version, o); ok {
				op, version = o, v
			}
		}
		if op == "" && strings.HasPrefix(version, "=") {
			op, version = "=", version[1:]
		}
		if op == "" {
			return a, Errorf(Invalid, "%.40q: versions are compared with >= or =", s)
		}
	}
	a = SoftwareAsk{strings.ToLower(strings.TrimSpace(name)), op == "=" || op == "==", strings.TrimSpace(version)}
	if !ValidName(a.Name) {
		return a, Errorf(Invalid, "%.40q is not the name of software; write it like python, cuda>=12 or gcc=12.2", s)
	}
	if op != "" && !validVersion(a.Version) {
		return a, Errorf(Invalid, "%.40q has no version like 12.4 after %s", s, op)
	}
	return a, nil
}

func (a SoftwareAsk) String() string {
	switch {
	case a.Version == "":
		return a.Name
	case a.Exact:
		return a.Name + "=" + a.Version
	}
	return a.Name + ">=" + a.Version
}

// Misses says what a pool's software lacks; "" if it will do.
func (a SoftwareAsk) Misses(have Software) string {
	v, ok := have[a.Name]
	switch {
	case !ok && len(have) == 0:
		return fmt.Sprintf("wants software %s, the pool states none", a)
	case !ok:
		hint := ""
		if near := Nearest(a.Name, slices.Sorted(maps.Keys(have))); near != "" {
			hint = " (did you mean " + near + "?)"
		}
		return fmt.Sprintf("wants software %s, the pool has %s%s", a, have, hint)
	case a.Version == "":
		return ""
	case v == "":
		return fmt.Sprintf("wants software %s, the pool doesn't state its version of %s", a, a.Name)
	case a.Exact && v != a.Version && !strings.HasPrefix(v, a.Version+"."), !a.Exact && compareVersions(v, a.Version) < 0:
		return fmt.Sprintf("wants software %s, the pool has %s %s", a, a.Name, v)
	}
	return ""
}

// compareVersions orders versions by their numbers, from the left; a part that is
// no number is compared as text and comes before any number, so that 1.0rc1 < 1.0.1.
func compareVersions(a, b string) int {
	parts := func(v string) []string {
		return strings.FieldsFunc(v, func(r rune) bool { return strings.ContainsRune(".-_+~", r) })
	}
	x, y := parts(a), parts(b)
	for i := range max(len(x), len(y)) {
		if i >= len(x) {
			return -1
		}
		if i >= len(y) {
			return 1
		}
		n, err1 := strconv.ParseUint(x[i], 10, 62)
		m, err2 := strconv.ParseUint(y[i], 10, 62)
		switch {
		case err1 == nil && err2 == nil && n != m:
			return sign(n > m)
		case err1 == nil && err2 == nil:
		case err1 == nil || err2 == nil:
			return sign(err1 == nil)
		case x[i] != y[i]:
			return sign(x[i] > y[i])
		}
	}
	return 0
}

func sign(more bool) int {
	if more {
		return 1
	}
	return -1
}
