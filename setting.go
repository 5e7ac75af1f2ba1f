package pcm

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// The settings of a cell. They are the same for all its peers, and changed by
// command alone.
const (
	SettingMaxMembers = "max_members" // past it newcomers are sent on; 0: no bound but the cell's own
	SettingMaxVoters  = "max_voters"  // 1, 3 or 5
	SettingOpen       = "open"        // yes, no: whether the cell takes newcomers
	SettingKeep       = "keep"        // all, or how long records are kept: 90d
)

// Settings say what each setting may be, for people, in the order of their names.
var Settings = []struct{ Key, Default, Form string }{
	{SettingKeep, "all", "all, or how long records are kept: days like 90d, or less than one day, like 12h, 30m or 20s"},
	{SettingMaxMembers, "0", "0 (no bound) to 10000"},
	{SettingMaxVoters, "3", "1, 3 or 5"},
	{SettingOpen, "yes", "yes or no"},
}

// Bounds of settings.
const (
	maxMembersSet = 10_000
	maxKeepDays   = 36_500
)

// DefaultSetting is the value of a setting that was never set; "" if there is no such setting.
func DefaultSetting(key string) string {
	for _, s := range Settings {
		if s.Key == key {
			return s.Default
		}
	}
	return ""
}

// keepBefore is the form of [SettingKeep] at levels of the rules before the third.
const keepBefore = "all, or a number of days like 90d (agreed on, but nothing is removed yet)"

// CheckSetting checks that a value is one that the setting can have, in its one form.
func CheckSetting(key, value string) error { return CheckSettingAt(LedgerLevel, key, value) }

// CheckSettingAt is [CheckSetting] by the rules of a level, in its words: what a cell
// refuses is part of its state.
func CheckSettingAt(level int, key, value string) error {
	form := ""
	names := make([]string, 0, len(Settings))
	for _, s := range Settings {
		names = append(names, s.Key)
		if s.Key == key {
			form = s.Form
		}
	}
	ok := false
	switch key {
	case SettingMaxMembers:
		n, err := strconv.Atoi(value)
		ok = err == nil && n >= 0 && n <= maxMembersSet && strconv.Itoa(n) == value
	case SettingMaxVoters:
		ok = slices.Contains([]string{"1", "3", "5"}, value)
	case SettingOpen:
		ok = value == "yes" || value == "no"
	case SettingKeep:
		_, ok = KeepFor(value)
		if level < 3 {
			form, ok = keepBefore, ok && (value == "all" || strings.HasSuffix(value, "d"))
		}
	default:
		hint := ""
		if near := Nearest(key, names); near != "" {
			hint = "; did you mean " + near + "?"
		}
		return Errorf(Invalid, "a cell has no setting %.40q: %s%s", key, strings.Join(names, ", "), hint)
	}
	if !ok {
		return Errorf(Invalid, "%s can't be %.40q: %s", key, value, form)
	}
	return nil
}

// SettingNumber reads a value that is a number; 0 if it isn't.
func SettingNumber(value string) int {
	n, err := strconv.Atoi(value)
	if err != nil {
		return 0
	}
	return n
}

// KeepFor reads a value of [SettingKeep]: how long records are kept; 0: for ever.
func KeepFor(value string) (time.Duration, bool) {
	if value == "all" {
		return 0, true
	}
	for _, u := range []struct {
		name string
		each time.Duration
		most int
	}{
		{"d", 24 * time.Hour, maxKeepDays}, {"h", time.Hour, 23}, {"m", time.Minute, 59}, {"s", time.Second, 59},
	} {
		count, found := strings.CutSuffix(value, u.name)
		if !found {
			continue
		}
		n, err := strconv.Atoi(count)
		return time.Duration(n) * u.each, err == nil && n >= 1 && n <= u.most && strconv.Itoa(n) == count
	}
	return 0, false
}

// Set is one account's word for a setting of the cell to have a value. It takes
// effect when more than half of the accounts that have voters in the cell say the
// same; until then it is remembered. Version is that of the setting now, so that
// nobody agrees to what was meant for another state.
type Set struct {
	Key     string `json:"key" cbor:"1,keyasint"`
	Value   string `json:"value" cbor:"2,keyasint"`
	Version uint64 `json:"version" cbor:"3,keyasint"`
}

// LedgerLevel is the level of the ledger's rules that this release speaks: which
// operations there are, and what they mean.
//
//	1: the first
//	2: netting, resolution, settings, trade across cells, recovery of the cell
//	3: what was bought in other cells stays on record; resolutions that end; a quota of nettings; bases; pay after a job's end; mandates
const LedgerLevel = 3

// Upgrade raises the level of the cell's rules. It is proposed when all its
// replicas speak the level; one that doesn't stops at it.
type Upgrade struct {
	Level int `json:"level" cbor:"1,keyasint"`
}

// Level is the first level at which the operation may be proposed.
func (o Op) Level() int {
	switch {
	case o.Base != nil, o.Resolve != nil && o.Resolve.Timed, o.Succeed != nil:
		return 3
	case o.Submit != nil && (o.Submit.PayAfterMS != 0 || o.Submit.Mandate != nil), o.Award != nil && o.Award.Attest != nil:
		return 3
	case o.Accept != nil && len(o.Accept.Receipt) > 0, o.Abandon != nil && len(o.Abandon.Receipt) > 0:
		return 3
	case o.Net != nil, o.Resolve != nil, o.Set != nil, o.Recovered != nil, o.Void != nil, o.Clear != nil:
		return 2
	case o.Place != nil && o.Place.Terms.Abroad(), o.Award != nil && o.Award.Terms.Abroad():
		return 2
	case o.Abandon != nil && (len(o.Abandon.Results) > 0 || o.Abandon.Over || o.Abandon.Unsold):
		return 2
	}
	return 1
}
