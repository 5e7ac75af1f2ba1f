package node

import (
	"testing"

	"github.com/jointcloud/pcm"
)

// A member that doesn't vote binds no note key and raises no level: with both in one
// command it could stop the whole cell for good.
func TestOnlyVotersHaveASay(t *testing.T) {
	leader, other, member := pcm.PeerID("leader"), pcm.PeerID("voter"), pcm.PeerID("member")
	voters := func() []pcm.PeerID { return []pcm.PeerID{leader, other} }
	key := pcm.Op{NoteKey: &pcm.NoteKey{Key: []byte("key")}}
	back := pcm.Op{NoteKey: &pcm.NoteKey{Peer: member}}
	up := func(level int) pcm.Op { return pcm.Op{Upgrade: &pcm.Upgrade{Level: level}} }
	for _, c := range []struct {
		name string
		by   pcm.PeerID
		ops  []pcm.Op
		ok   bool
	}{
		{"a voter's key", other, []pcm.Op{key}, true},
		{"a member's key", member, []pcm.Op{key}, false},
		{"a member's key, then a level", member, []pcm.Op{key, up(1 << 30)}, false},
		{"a key behind something else", member, []pcm.Op{{Renew: &pcm.Renew{}}, key}, false},
		{"a key taken back", leader, []pcm.Op{back}, true},
		{"the leader's level", leader, []pcm.Op{up(pcm.LedgerLevel)}, true},
		{"a level that nobody here speaks", leader, []pcm.Op{up(pcm.LedgerLevel + 1)}, false},
		{"another voter's level", other, []pcm.Op{up(pcm.LedgerLevel)}, false},
		{"the leader's base", leader, []pcm.Op{{Base: &pcm.Base{}}}, true},
		{"another voter's base", other, []pcm.Op{{Base: &pcm.Base{}}}, false},
		{"all else", member, []pcm.Op{{Renew: &pcm.Renew{}}}, true},
	} {
		err := mayLead(pcm.Command{Peer: c.by, Ops: c.ops}, leader, voters)
		if c.ok != (err == nil) || !c.ok && pcm.ErrorCode(err) != pcm.Forbidden {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
