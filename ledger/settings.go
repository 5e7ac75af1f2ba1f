package ledger

import (
	"maps"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
)

// Setting is a setting of the cell that was set, or is being voted on.
type Setting struct {
	Key     string `cbor:"1,keyasint"`
	Value   string `cbor:"2,keyasint"`           // in force
	Version uint64 `cbor:"3,keyasint"`           // how often it was set
	Votes   []Vote `cbor:"4,keyasint,omitempty"` // for another value, by account
}

// Vote is an account's word for a setting to have a value.
type Vote struct {
	Account pcm.AccountID `cbor:"1,keyasint"`
	Value   string        `cbor:"2,keyasint"`
}

// Setting is a setting of the cell as it is now.
func (s *State) Setting(key string) Setting {
	if v, ok := s.settings[key]; ok {
		c := *v
		c.Votes = slices.Clone(v.Votes)
		return c
	}
	return Setting{Key: key, Value: pcm.DefaultSetting(key)}
}

// MaxMembers is how many members the cell takes before it sends newcomers on; 0: no bound.
func (s *State) MaxMembers() int {
	return pcm.SettingNumber(s.Setting(pcm.SettingMaxMembers).Value)
}

// MaxVoters is how many voters the cell wants at most; 0: it was never set.
func (s *State) MaxVoters() int {
	v := s.Setting(pcm.SettingMaxVoters)
	if v.Version == 0 {
		return 0
	}
	return pcm.SettingNumber(v.Value)
}

// Open tells whether the cell takes newcomers.
func (s *State) Open() bool { return s.Setting(pcm.SettingOpen).Value == "yes" }

// Keep is how long records are kept; 0: for ever.
func (s *State) Keep() time.Duration {
	d, _ := pcm.KeepFor(s.Setting(pcm.SettingKeep).Value)
	return d
}

// Deciders are the accounts that decide on settings: those of the peers that sign
// checkpoints, which are the voters.
func (s *State) Deciders() []pcm.AccountID {
	set := map[pcm.AccountID]bool{}
	for _, m := range s.Members() {
		if len(m.NoteKey) > 0 {
			set[m.Account] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// set takes an account's vote on a setting.
func (a *applying) set(op *pcm.Set) (bool, error) {
	if err := pcm.CheckSettingAt(a.Level(), op.Key, op.Value); err != nil {
		return false, err
	}
	deciders := a.Deciders()
	if !slices.Contains(deciders, a.by.Account) {
		return false, pcm.Errorf(pcm.Forbidden, "account %s has no voter in %s: settings are for the accounts that have", pcm.Short(a.by.Account), pcm.Short(a.genesis.Cell))
	}
	now := a.Setting(op.Key)
	if op.Version != now.Version {
		return false, pcm.Errorf(pcm.Conflict, "%s is %s, at version %d, and not at version %d: look at it again", op.Key, now.Value, now.Version, op.Version)
	}
	mine := slices.IndexFunc(now.Votes, func(v Vote) bool { return v.Account == a.by.Account })
	switch {
	case mine >= 0 && now.Votes[mine].Value == op.Value, mine < 0 && now.Value == op.Value:
		return false, nil
	case now.Value == op.Value: // it takes back what it said
		now.Votes = slices.Delete(now.Votes, mine, mine+1)
	case mine >= 0:
		now.Votes[mine].Value = op.Value
	default:
		now.Votes = append(now.Votes, Vote{a.by.Account, op.Value})
	}
	// Who has lost its last voter has no say any more.
	now.Votes = slices.DeleteFunc(now.Votes, func(v Vote) bool { return !slices.Contains(deciders, v.Account) })
	n := 0
	for _, v := range now.Votes {
		if v.Value == op.Value {
			n++
		}
	}
	if 2*n > len(deciders) {
		now.Value, now.Version, now.Votes = op.Value, now.Version+1, nil
	}
	if now.Version == 0 && len(now.Votes) == 0 {
		delete(a.settings, op.Key)
	} else {
		a.settings[op.Key] = &now
	}
	return true, nil
}

// Level is the level of the rules by which the cell judges.
func (s *State) Level() int { return max(1, s.level) }

// Speaks lowers the level up to which this state can follow; it is for tests of
// what an older release does.
func (s *State) Speaks(level int) *State { s.speaks = level; return s }

// spoken is the level up to which this state can follow.
func (s *State) spoken() int {
	if s.speaks != 0 {
		return s.speaks
	}
	return pcm.LedgerLevel
}

// gate refuses commands with operations above the cell's level, as replicas of
// older releases, which can't read them, do.
func (a *applying) gate(cmd pcm.Command) error {
	for _, op := range cmd.Ops {
		if l := op.Level(); l > a.Level() {
			return pcm.Errorf(pcm.Unavailable, "%s is at level %d of the ledger's rules, and %s needs level %d: its voters raise it by themselves when all its peers have been updated", pcm.Short(a.genesis.Cell), a.Level(), op.Kind(), l)
		}
	}
	return nil
}

// upgrade raises the level.
func (a *applying) upgrade(op *pcm.Upgrade) (bool, error) {
	switch {
	case len(a.by.NoteKey) == 0:
		return false, pcm.Errorf(pcm.Forbidden, "peer %s is no voter of %s: those raise the level", pcm.Short(a.by.Peer), pcm.Short(a.genesis.Cell))
	case op.Level <= a.Level():
		return false, nil
	case op.Level > a.spoken():
		err := pcm.Errorf(pcm.Internal, "%s has gone to level %d of the ledger's rules, this release speaks %d: update this peer", pcm.Short(a.genesis.Cell), op.Level, a.spoken())
		a.effects.Halt = err
		return false, err
	}
	a.level = op.Level
	return true, nil
}
