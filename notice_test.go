package pcm

import (
	"strings"
	"testing"
)

func TestOpenNotice(t *testing.T) {
	by, other := NewKey(), NewKey()
	mesh, cell := NewMeshID(NewKey().Public()), NewCellID()
	good := Notice{Mesh: mesh, Cell: cell, By: by.Peer(), At: 1, Keep: []PeerID{other.Peer()}, Recovered: Recovered{Index: 7, Term: 2, Lost: []PeerID{NewKey().Peer()}, Way: "folder", Reason: "fire"}}
	got, err := OpenNotice(by.Seal(DomainNotice, good), mesh, cell)
	if err != nil || got.Recovered.Index != 7 {
		t.Fatalf("%+v, %v", got, err)
	}
	if got.LeavesBehind(by.Peer()) || got.LeavesBehind(other.Peer()) || !got.LeavesBehind(got.Recovered.Lost[0]) || !got.LeavesBehind(NewKey().Peer()) {
		t.Error("who is left behind is wrong")
	}
	many := make([]PeerID, maxRecoveredLost+1)
	for _, c := range []struct {
		what string
		bend func(*Notice)
		key  Key
		dom  Domain
		code Code
	}{
		{"by another key", func(*Notice) {}, other, DomainNotice, Unauthorized},
		{"signed for something else", func(*Notice) {}, by, DomainCell, Unauthorized},
		{"of another mesh", func(n *Notice) { n.Mesh = NewMeshID([]byte("x")) }, by, DomainNotice, Invalid},
		{"of another cell", func(n *Notice) { n.Cell = NewCellID() }, by, DomainNotice, Invalid},
		{"without a date", func(n *Notice) { n.At = 0 }, by, DomainNotice, Invalid},
		{"with too many", func(n *Notice) { n.Keep = many }, by, DomainNotice, Invalid},
		{"without an entry", func(n *Notice) { n.Recovered.Index = 0 }, by, DomainNotice, Invalid},
		{"with a long reason", func(n *Notice) { n.Recovered.Reason = strings.Repeat("x", maxRecoveredReason+1) }, by, DomainNotice, Invalid},
		{"too large", func(n *Notice) { n.Recovered.Reason = strings.Repeat("x", MaxNotice) }, by, DomainNotice, TooLarge},
	} {
		n := good
		c.bend(&n)
		if _, err := OpenNotice(c.key.Seal(c.dom, n), mesh, cell); ErrorCode(err) != c.code {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}
