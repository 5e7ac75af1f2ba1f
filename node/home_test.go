package node

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

func TestHomesAmong(t *testing.T) {
	now := time.Now()
	cell := func(name string, members, most int, open bool) pcm.Descriptor {
		return pcm.Descriptor{Cell: pcm.NewCellID(), Name: name, Members: members, MaxMembers: most, Open: open, IssuedAt: now.UnixMilli(), NotAfter: now.Add(time.Hour).UnixMilli()}
	}
	silent := cell("ghost", 1, 200, true)
	silent.IssuedAt, silent.NotAfter = now.Add(-31*time.Minute).UnixMilli(), now.Add(29*time.Minute).UnixMilli()
	own := cell("north", 3, 5, true)
	full := cell("north", 5, 5, true)
	south, east, closed := cell("south", 1, 5, true), cell("east", 4, 9, true), cell("west", 1, 9, false)
	twin := cell("south", 1, 5, true)
	few, fewer := cell("few", 2, 5, true), cell("fewer", 3, 5, true)
	for _, c := range []struct {
		what   string
		wish   string
		own    pcm.Descriptor
		others []pcm.Descriptor
		want   []home
		code   pcm.Code
		says   string
	}{
		{"no wish: the inviter's cell", "", own, []pcm.Descriptor{south}, []home{{own.Cell, "north"}}, "", ""},
		{"it is full: the roomiest other ones, then one of its own", "", full, []pcm.Descriptor{south, east, closed}, []home{{east.Cell, "east"}, {south.Cell, "south"}, {"", "carl"}}, "", ""},
		{"the roomiest other one is silent", "", full, []pcm.Descriptor{south, silent}, []home{{south.Cell, "south"}, {silent.Cell, "ghost"}, {"", "carl"}}, "", ""},
		{"at most three are asked", "", full, []pcm.Descriptor{few, fewer, east, south}, []home{{east.Cell, "east"}, {south.Cell, "south"}, {few.Cell, "few"}, {"", "carl"}}, "", ""},
		{"no cell has room: one of its own", "", full, []pcm.Descriptor{closed}, []home{{"", "carl"}}, "", ""},
		{"by name", "south", own, []pcm.Descriptor{south, east}, []home{{south.Cell, "south"}}, "", ""},
		{"by ID", string(east.Cell), own, []pcm.Descriptor{south, east}, []home{{east.Cell, "east"}}, "", ""},
		{"by short ID", pcm.Short(east.Cell), own, []pcm.Descriptor{south, east}, []home{{east.Cell, "east"}}, "", ""},
		{"the inviter's by name", "north", own, nil, []home{{own.Cell, "north"}}, "", ""},
		{"the inviter's by name, full", "north", full, []pcm.Descriptor{south}, nil, pcm.Refused, "south"},
		{"a closed one", "west", own, []pcm.Descriptor{closed}, nil, pcm.Refused, "takes no newcomers"},
		{"an unknown one", "centre", own, []pcm.Descriptor{south}, nil, pcm.NotFound, "new:centre"},
		{"one of two of a name", "south", own, []pcm.Descriptor{south, twin}, nil, pcm.Conflict, pcm.Short(twin.Cell)},
		{"one of two of a name, by ID", string(twin.Cell), own, []pcm.Descriptor{south, twin}, []home{{twin.Cell, "south"}}, "", ""},
		{"a new one", "new:centre", own, nil, []home{{"", "centre"}}, "", ""},
		{"a new one with the newcomer's name", "new:", own, nil, []home{{"", "carl"}}, "", ""},
		{"a new one with a name that is taken", "new:south", own, []pcm.Descriptor{south}, nil, pcm.Conflict, "--cell south"},
		{"a new one with a bad name", "new:So uth", own, nil, nil, pcm.Invalid, "not a name"},
	} {
		got, err := homesAmong(c.wish, "carl", c.own, c.others, now)
		if pcm.ErrorCode(err) != c.code || err == nil && !slices.Equal(got, c.want) || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %+v, %v", c.what, got, err)
		}
	}
}

func TestWorthTelling(t *testing.T) {
	voter := func(s string) pcm.DescribedPeer { return pcm.DescribedPeer{Peer: pcm.PeerID(s)} }
	last := pcm.Descriptor{Number: 1, Term: 3, Members: 20, MaxMembers: 30, Open: true, Voters: []pcm.DescribedPeer{voter("a"), voter("b")}}
	change := func(f func(*pcm.Descriptor)) pcm.Descriptor {
		d := last
		d.Number = 2
		f(&d)
		return d
	}
	for _, c := range []struct {
		what  string
		last  pcm.Descriptor
		d     pcm.Descriptor
		since time.Duration
		want  bool
	}{
		{"the first of a leader", pcm.Descriptor{}, last, 0, true},
		{"a new term at once", last, change(func(d *pcm.Descriptor) { d.Term++ }), time.Second, true},
		{"nothing new", last, change(func(*pcm.Descriptor) {}), time.Minute, false},
		{"nothing new for long", last, change(func(*pcm.Descriptor) {}), describeEvery, true},
		{"news too soon", last, change(func(d *pcm.Descriptor) { d.Open = false }), describeGap / 2, false},
		{"closed", last, change(func(d *pcm.Descriptor) { d.Open = false }), describeGap, true},
		{"one more of many", last, change(func(d *pcm.Descriptor) { d.Members++ }), time.Minute, false},
		{"many more", last, change(func(d *pcm.Descriptor) { d.Members += 3 }), time.Minute, true},
		{"full", last, change(func(d *pcm.Descriptor) { d.MaxMembers = 20 }), time.Minute, true},
		{"another voter", last, change(func(d *pcm.Descriptor) { d.Voters = []pcm.DescribedPeer{voter("a"), voter("c")} }), time.Minute, true},
	} {
		if got := worthTelling(c.last, c.d, c.since, describeEvery); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
	if describeInterval(1) != describeEvery || describeInterval(1000) != 1000*describeShare {
		t.Error("the mesh's budget is not kept")
	}
}
