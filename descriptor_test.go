package pcm

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// described is a good descriptor, and the key of its leader.
func described(now time.Time) (Descriptor, Key) {
	keys := []Key{NewKey(), NewKey(), NewKey()}
	slices.SortFunc(keys, func(a, b Key) int { return strings.Compare(string(a.Peer()), string(b.Peer())) })
	d := Descriptor{
		Mesh: NewMeshID(NewKey().Public()), Cell: NewCellID(), Name: "east", Number: 7, Leader: keys[1].Peer(), Term: 3,
		Members: 5, MaxMembers: 8, Open: true, IssuedAt: now.UnixMilli(), NotAfter: now.Add(time.Hour).UnixMilli(),
	}
	for _, k := range keys {
		d.Voters = append(d.Voters, DescribedPeer{Peer: k.Peer(), Account: k.Account(), Addrs: []string{"/ip4/192.0.2.1/tcp/7419"}})
	}
	return d, keys[1]
}

func TestDescriptor(t *testing.T) {
	now := time.Now()
	good, leader := described(now)
	got, err := OpenDescriptor(leader.Seal(DomainCell, good), now)
	if err != nil || got.Name != "east" || len(got.Voters) != 3 || got.Room() != 3 || !got.Votes(leader.Peer()) {
		t.Fatalf("%+v %v", got, err)
	}
	for _, c := range []struct {
		what string
		code Code
		mend func(*Descriptor)
	}{
		{"of a bad cell", Invalid, func(d *Descriptor) { d.Cell = "cell-x" }},
		{"with a name that moves the cursor", Invalid, func(d *Descriptor) { d.Name = "\x1b[2J" }},
		{"without voters", Invalid, func(d *Descriptor) { d.Voters = nil }},
		{"with a voter twice", Invalid, func(d *Descriptor) { d.Voters[2] = d.Voters[1] }},
		{"out of order", Invalid, func(d *Descriptor) { slices.Reverse(d.Voters) }},
		{"with fewer members than voters", Invalid, func(d *Descriptor) { d.Members = 2 }},
		{"with many addresses", Invalid, func(d *Descriptor) { d.Voters[0].Addrs = make([]string, 5) }},
		{"with a long address", Invalid, func(d *Descriptor) { d.Voters[0].Addrs = []string{strings.Repeat("x", 300)} }},
		{"by who doesn't vote", Invalid, func(d *Descriptor) { d.Voters = slices.Delete(d.Voters, 1, 2) }},
		{"of another leader", Unauthorized, func(d *Descriptor) { d.Leader = d.Voters[0].Peer }},
		{"of the past", Invalid, func(d *Descriptor) { d.NotAfter = now.Add(-time.Hour).UnixMilli(); d.IssuedAt = d.NotAfter - 1 }},
		{"of the future", Invalid, func(d *Descriptor) { d.IssuedAt = now.Add(time.Hour).UnixMilli() }},
		{"too large", TooLarge, func(d *Descriptor) { d.Name = strings.Repeat("x", MaxDescriptor) }},
	} {
		d := good
		d.Voters = slices.Clone(good.Voters)
		c.mend(&d)
		if _, err := OpenDescriptor(leader.Seal(DomainCell, d), now); ErrorCode(err) != c.code {
			t.Errorf("a descriptor %s: %v", c.what, err)
		}
	}
	other := leader.Seal(DomainOffer, good)
	if _, err := OpenDescriptor(other, now); ErrorCode(err) != Unauthorized {
		t.Errorf("signed for another purpose: %v", err)
	}
}

func TestDescriptorOrder(t *testing.T) {
	d := func(term, number uint64) Descriptor { return Descriptor{Term: term, Number: number} }
	for _, c := range []struct {
		a, b Descriptor
		want bool
	}{
		{d(2, 1), d(1, 9), true}, {d(1, 9), d(2, 1), false}, {d(1, 2), d(1, 1), true}, {d(1, 1), d(1, 1), false},
	} {
		if got := c.a.Newer(c.b); got != c.want {
			t.Errorf("%v newer than %v: %v", c.a, c.b, got)
		}
	}
	closed := Descriptor{Members: 3, MaxMembers: 8}
	full := Descriptor{Members: 9, MaxMembers: 8, Open: true}
	if closed.Room() != 0 || full.Room() != 0 {
		t.Errorf("room in a closed cell %d, in a full one %d", closed.Room(), full.Room())
	}
	var many Descriptor
	many.Voters = []DescribedPeer{{Addrs: make([]string, 9)}}
	many.Clip()
	if len(many.Voters[0].Addrs) != maxDescribedAt {
		t.Error("not clipped")
	}
}
