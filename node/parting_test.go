package node

import (
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
)

// Anybody may say that it recovered a cell, and give any date: a peer goes by what it
// knows of who says so first.
func TestWhichRecoveryIsRejoined(t *testing.T) {
	said := func(by string, at int64, change func(*consensus.Parting)) consensus.Parting {
		p := consensus.Parting{Notice: pcm.Notice{By: pcm.PeerID(by), At: at}}
		if change != nil {
			change(&p)
		}
		return p
	}
	own := func(p *consensus.Parting) { p.Own = true }
	stopped := func(p *consensus.Parting) { p.Stopped, p.Believed = true, true }
	believed := func(p *consensus.Parting) { p.Believed = true }
	refused := func(p *consensus.Parting) { p.Refused, p.Believed = true, true }
	for _, c := range []struct {
		what string
		all  []consensus.Parting
		want pcm.PeerID
	}{
		{"none", nil, ""},
		{"its own", []consensus.Parting{said("self", 9, own)}, ""},
		{"anybody's word", []consensus.Parting{said("self", 9, own), said("anybody", 1, nil)}, "anybody"},
		{"a liar's later date", []consensus.Parting{said("voter", 5, stopped), said("liar", 1<<60, nil)}, "voter"},
		{"a liar's, where nobody stopped yet", []consensus.Parting{said("liar", 1<<60, nil), said("voter", 5, believed)}, "voter"},
		{"a recovery after another one", []consensus.Parting{said("first", 5, stopped), said("second", 7, stopped)}, "second"},
		{"what was not refused", []consensus.Parting{said("refused", 7, refused), said("voter", 5, believed)}, "voter"},
		{"what it stopped for", []consensus.Parting{said("first", 5, stopped), said("second", 7, believed)}, "first"},
	} {
		got := pcm.PeerID("")
		if p := rejoinable(c.all); p != nil {
			got = p.Notice.By
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}
