package ledger_test

import (
	"reflect"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// An entry whose commands are decoded already has the same effects.
func TestDecoded(t *testing.T) {
	var effects [2]pcm.Effects
	var digests [2][32]byte
	for i := range effects {
		c := newCell()
		anna := c.enrolled("anna", "anna")
		e := pcm.Entry{Version: pcm.EntryVersion, Stamp: c.stamp, Wall: c.wall}
		for _, name := range []string{"one", "two"} {
			s := anna.key.Seal(pcm.DomainCommand, c.command(anna,
				pcm.Op{Submit: &pcm.Submit{Job: jobID(name), Name: name, Spec: pcm.DigestOf([]byte(name)), Steps: []pcm.Shape{{Count: 1}}, Unit: "credit", Takeover: pcm.TakeoverNone}},
				pcm.Op{Cancel: &pcm.Cancel{Job: jobID("one"), Reason: "not wanted"}}))
			cmd, err := ledger.Check(s)
			if err != nil {
				t.Fatal(err)
			}
			e.Commands = append(e.Commands, s)
			if i == 1 {
				e.Decoded = append(e.Decoded, cmd)
			}
		}
		effects[i] = c.state.Apply(c.index+1, e)
		if len(effects[i].Records) == 0 {
			t.Fatal("no records")
		}
		var err error
		if digests[i], err = c.state.Digest(); err != nil {
			t.Fatal(err)
		}
	}
	if !reflect.DeepEqual(effects[0], effects[1]) || digests[0] != digests[1] {
		t.Errorf("the effects differ: %+v, %+v", effects[0], effects[1])
	}
}
