package consensus

import (
	"slices"
	"testing"

	"github.com/jointcloud/pcm"
)

func TestVotersAreSpreadOverOwners(t *testing.T) {
	owner := func(id pcm.PeerID) string { return string(id[0]) }
	for _, c := range []struct{ voters, ready, want []pcm.PeerID }{
		{[]pcm.PeerID{"a1"}, []pcm.PeerID{"a2", "a3", "b1", "c1"}, []pcm.PeerID{"b1", "c1", "a2", "a3"}},
		{[]pcm.PeerID{"a1"}, []pcm.PeerID{"b2", "b1", "a2"}, []pcm.PeerID{"b1", "a2", "b2"}},
		{[]pcm.PeerID{"a1"}, []pcm.PeerID{"a3", "a2"}, []pcm.PeerID{"a2", "a3"}},
		{nil, nil, []pcm.PeerID{}},
	} {
		if got := spread(c.ready, c.voters, owner); !slices.Equal(got, c.want) {
			t.Errorf("voters %v, ready %v: %v, want %v", c.voters, c.ready, got, c.want)
		}
	}
}
