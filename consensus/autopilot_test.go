package consensus

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
)

func ids(list []standing) (ids []pcm.PeerID) {
	for _, s := range list {
		ids = append(ids, s.Peer)
	}
	return ids
}

// peers makes peers from words: the name (its first letter is the owner), then
// flags: L leads, V votes, r ready, R settled, d dead, - doesn't answer, x not
// eligible, f forgot, c coming, @site.
func peers(t *testing.T, text string) (list []standing) {
	t.Helper()
	for _, w := range strings.Fields(text) {
		name, flags, _ := strings.Cut(w, ":")
		flags, site, _ := strings.Cut(flags, "@")
		s := standing{Peer: pcm.PeerID(name), Owner: name[:1], Site: site, Answers: true, Eligible: true}
		for _, f := range flags {
			switch f {
			case 'L':
				s.Voter, s.Leader = true, true
			case 'V':
				s.Voter = true
			case 'r':
				s.Ready = true
			case 'R':
				s.Ready, s.Settled = true, true
			case 'd':
				s.Dead, s.Answers = true, false
			case '-':
				s.Answers = false
			case 'x':
				s.Eligible = false
			case 'f':
				s.Forgot = true
			case 'c':
				s.Coming = true
			default:
				t.Fatalf("flag %c", f)
			}
		}
		list = append(list, s)
	}
	return list
}

func (p plan) String() string {
	var parts []string
	for _, c := range p.Changes {
		parts = append(parts, map[bool]string{true: "+", false: "-"}[c.Promote]+string(c.Peer))
	}
	if p.Transfer != "" {
		parts = append(parts, ">"+string(p.Transfer))
	}
	if p.Pair {
		parts = append(parts, "pair")
	}
	return strings.Join(parts, " ")
}

func TestPlanVoters(t *testing.T) {
	for _, c := range []struct {
		what, view string
		most       int
		want       string
	}{
		{"alone", "a1:L", 3, ""},
		{"one replica waits for a second", "a1:L b1:r", 3, ""},
		{"growth in a pair, over owners", "a1:L a2:r b1:r c1:r", 3, "+b1 +c1 pair"},
		{"the second of one's own if there is no other", "a1:L a2:r b1:r", 3, "+b1 +a2 pair"},
		{"among equals over sites", "a1:L@x b1:r@x c1:r@y d1:r@z", 3, "+c1 +d1 pair"},
		{"three to five", "a1:L b1:V c1:V d1:r e1:r", 5, "+d1 +e1 pair"},
		{"three stay three", "a1:L b1:V c1:V d1:r e1:r", 3, ""},
		{"not eligible", "a1:L b1:r c1:rx", 3, ""},
		{"not stable", "a1:L b1:r c1:c", 3, ""},
		{"silent a moment ago", "a1:L b1:r c1:r-", 3, ""},
		{"no memory yet", "a1:L b1:r c1:rf", 3, ""},
		{"no pair while one is dead", "a1:L b1:V c1:Vd d1:x e1:x", 5, ""},
		{"dead and replaced", "a1:L b1:V c1:Vd d1:r", 3, "-c1 +d1"},
		{"dead and nobody there", "a1:L b1:V c1:Vd", 3, ""},
		{"dead, but without it no majority", "a1:L b1:V- c1:Vd d1:r", 3, ""},
		{"even: promote", "a1:L b1:V c1:r", 3, "+c1"},
		{"even: demote", "a1:L b1:V", 3, "-b1"},
		{"even: demote the dead one", "a1:L b1:V c1:Vd d1:V", 3, "-c1"},
		{"even: demote where votes crowd", "a1:L b1:V b2:V c1:V", 3, "-b1"},
		{"even: the leader stays", "a1:L a2:V b1:V c1:V", 3, "-a2"},
		{"too many", "a1:L b1:V c1:V d1:V e1:V", 3, "-b1"},
		{"two of five dead, one replica", "a1:L b1:V c1:V d1:Vd e1:Vd f1:r", 5, "-d1 +f1"},
		{"two of five dead, nobody there", "a1:L b1:V c1:V d1:Vd e1:Vd", 5, "-d1 -e1"},
		{"one of five dead, nobody there", "a1:L b1:V c1:V d1:V e1:Vd", 5, ""},
		{"a voter without memory", "a1:L b1:V c1:Vf d1:r", 3, "-c1"},
		{"two of them are too many", "a1:L b1:Vf c1:Vf", 3, ""},
		{"better spread", "a1:L a2:V b1:V c1:R", 3, "+c1 -a2"},
		{"better spread, but not settled", "a1:L a2:V b1:V c1:r", 3, ""},
		{"not better", "a1:L b1:V c1:V d1:R", 3, ""},
		{"better site", "a1:L@x b1:V@x c1:V@y d1:R@z", 3, "+d1 -b1"},
		{"may vote no more", "a1:L b1:V c1:Vx d1:R", 3, "+d1 -c1"},
		{"may vote no more, nobody there", "a1:L b1:V c1:Vx", 3, ""},
		{"the leader may vote no more", "a1:Lx b1:V c1:V d1:R", 3, ">b1"},
		{"leads without a vote", "a1:r b1:V", 3, ""},
	} {
		p := planVoters(peers(t, c.view), c.most)
		if got := p.String(); got != c.want {
			t.Errorf("%s: %s with at most %d: %q, want %q (%s)", c.what, c.view, c.most, got, c.want, p.Why)
		}
		if p.Why == "" {
			t.Errorf("%s: no reason", c.what)
		}
	}
}

func TestPlanOfOperators(t *testing.T) {
	for _, c := range []struct {
		do, view string
		most     int
		want     string // changes, or "CODE: a part of the reason"
	}{
		{"promote b1", "a1:L b1:r c1:r", 3, "+b1 +c1 pair"},
		{"promote b1", "a1:L b1:r", 3, "refused: weaker"},
		{"promote b1", "a1:L b1:V", 3, ""},
		{"promote d1", "a1:L b1:V c1:V d1:r", 3, "refused: --instead-of"},
		{"promote d1 c1", "a1:L b1:V c1:V d1:r", 3, "+d1 -c1"},
		{"promote d1 c1", "a1:L b1:V c1:V- d1:r", 3, "-c1 +d1"},
		{"promote d1 c1", "a1:L b1:V- c1:V- d1:r", 3, "refused: majority"},
		{"promote d1 e1", "a1:L b1:V c1:V d1:r e1:r", 3, "invalid: not a voter"},
		{"promote c1", "a1:L b1:V c1:r", 3, "+c1"},
		{"promote d1", "a1:L b1:V c1:V d1:rx", 5, "refused: voter_eligible"},
		{"promote d1", "a1:L b1:V c1:V d1:c", 5, "unavailable: history"},
		{"promote d1", "a1:L b1:V c1:V d1:r-", 5, "unavailable: answer"},
		{"promote d1", "a1:L", 5, "not_found: members"},
		{"demote c1", "a1:L b1:V c1:V d1:r", 3, "+d1 -c1"},
		{"demote c1", "a1:L b1:V c1:V- d1:r", 3, "-c1 +d1"},
		{"demote c1", "a1:L b1:V c1:V", 3, "refused: --force"},
		{"demote! c1", "a1:L b1:V c1:V", 3, "-c1"},
		{"demote c1", "a1:L b1:V c1:V d1:V e1:V", 5, "-c1"},
		{"demote c1", "a1:L b1:V c1:V d1:V- e1:V-", 5, "refused: majority"},
		{"demote a1", "a1:L", 3, "refused: only voter"},
		{"demote a1", "a1:L b1:V c1:V d1:r", 3, "+d1 -a1"},
		{"demote d1", "a1:L d1:r", 3, ""},
		{"demote z1", "a1:L d1:r", 3, "not_found: members"},
	} {
		words := append(strings.Fields(c.do), "")
		view := peers(t, c.view)
		var p plan
		var err error
		if words[0] == "promote" {
			p, err = planPromote(view, c.most, pcm.PeerID(words[1]), pcm.PeerID(words[2]))
		} else {
			p, err = planDemote(view, pcm.PeerID(words[1]), words[0] == "demote!")
		}
		got := p.String()
		if code, part, refused := strings.Cut(c.want, ": "); refused {
			if err == nil || string(pcm.ErrorCode(err)) != code || !strings.Contains(err.Error(), part) {
				t.Errorf("%s of %s: %q, %v; want %s", c.do, c.view, got, err, c.want)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%s of %s: %q, %v; want %q", c.do, c.view, got, err, c.want)
		}
	}
}

func TestVotersAreSpreadOverOwnersAndSites(t *testing.T) {
	for _, c := range []struct{ voters, ready, want string }{
		{"a1:L", "a2:r a3:r b1:r c1:r", "[b1 c1 a2 a3]"},
		{"a1:L", "b2:r b1:r a2:r", "[b1 a2 b2]"},
		{"a1:L", "a3:r a2:r", "[a2 a3]"},
		{"a1:L@x", "a3:r@x a2:r@x a4:r@y", "[a4 a2 a3]"},
		{"", "", "[]"},
	} {
		if got := fmt.Sprint(ids(spread(peers(t, c.ready), peers(t, c.voters)))); got != c.want {
			t.Errorf("voters %s, ready %s: %v, want %v", c.voters, c.ready, got, c.want)
		}
	}
}

// simulated is a cell whose truth is known: a change is committed if, and only if,
// a majority of those that vote after it is up and has its memory.
type simulated struct {
	r    *rand.Rand
	list []standing // Answers is the truth; Dead is what the leader believes
	most int
	log  []string
}

func (c *simulated) voters() (list []standing) {
	for _, s := range c.list {
		if s.Voter {
			list = append(list, s)
		}
	}
	return list
}

func (c *simulated) quorate() bool {
	n, up := 0, 0
	for _, v := range c.voters() {
		n++
		if v.Answers && !v.Forgot {
			up++
		}
	}
	return up > n/2
}

// spare is how many more voters may fail.
func (c *simulated) spare() int {
	n, up := 0, 0
	for _, v := range c.voters() {
		n++
		if v.Answers && !v.Forgot {
			up++
		}
	}
	return up - n/2 - 1
}

func (c *simulated) apply(ch change) bool {
	i := slices.IndexFunc(c.list, func(s standing) bool { return s.Peer == ch.Peer })
	c.list[i].Voter = ch.Promote
	if !c.quorate() {
		return false // it is in the logs, and waits for peers to come back
	}
	if ch.Promote {
		c.list[i].Ready, c.list[i].Settled, c.list[i].Coming = false, false, false
	} else {
		c.list[i].Coming = c.list[i].Answers
	}
	return true
}

// elect gives leadership to a voter that is up.
func (c *simulated) elect() {
	var up []int
	for i := range c.list {
		c.list[i].Leader = false
		if s := c.list[i]; s.Voter && s.Answers && !s.Forgot {
			up = append(up, i)
		}
	}
	if c.quorate() {
		c.list[up[c.r.IntN(len(up))]].Leader = true
	}
}

func (c *simulated) lead() bool {
	return slices.ContainsFunc(c.list, func(s standing) bool { return s.Leader })
}

// TestAutopilotOfRandomCells plays many cells with peers that come, go, forget and
// lose their eligibility, also between the changes of one plan. No plan may cost
// a majority that was there when it was made and carried out; in peace each cell
// comes to rest with an odd number of living, eligible, well spread voters.
func TestAutopilotOfRandomCells(t *testing.T) {
	const cells = 1500
	lost := 0
	for seed := range uint64(cells) {
		c := &simulated{r: rand.New(rand.NewPCG(seed, 7)), most: []int{1, 3, 5}[seed%3]}
		for i := range 1 + c.r.IntN(9) {
			c.list = append(c.list, standing{
				Peer: pcm.PeerID(fmt.Sprintf("p%d", i)), Answers: true, Eligible: i == 0 || c.r.IntN(6) > 0, Coming: i > 0,
				Voter: i == 0, Leader: i == 0, Owner: fmt.Sprint(c.r.IntN(4)), Site: []string{"", "x", "y", "z"}[c.r.IntN(4)],
			})
		}
		ok := c.war(t, seed)
		if !ok {
			lost++
		}
		c.peace(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d:\n%s", seed, strings.Join(c.log, "\n"))
		}
	}
	if lost == 0 || lost > cells*3/4 {
		t.Errorf("%d of %d cells lost their majority by the faults alone: those are too few or too many to show anything", lost, cells)
	}
}

func (c *simulated) note(format string, args ...any) {
	c.log = append(c.log, fmt.Sprintf(format, args...))
}

// war is a time of faults; false if those alone cost the majority at some point.
func (c *simulated) war(t *testing.T, seed uint64) bool {
	kept := true
	for range 40 {
		// Something happens.
		i := c.r.IntN(len(c.list))
		s := &c.list[i]
		switch c.r.IntN(8) {
		case 0:
			s.Answers, s.Ready, s.Settled, s.Coming, s.Dead = false, false, false, false, c.r.IntN(2) == 0
		case 1:
			s.Dead = !s.Answers
		case 2:
			s.Forgot = !s.Answers && c.r.IntN(3) == 0 || s.Forgot
		case 3, 4:
			s.Answers, s.Dead, s.Coming = true, false, !s.Voter
		case 5:
			if !s.Voter && s.Answers {
				s.Ready, s.Coming, s.Forgot = true, false, false // demoted: it begins anew
			}
		case 6:
			s.Settled = s.Ready
		case 7:
			s.Eligible = c.r.IntN(6) > 0
		}
		if !c.lead() || s.Leader && !s.Answers {
			c.elect()
		}
		if !c.lead() {
			kept = false
			continue
		}
		c.round(t, seed, true)
	}
	return kept
}

// round makes a plan and carries it out; faults may come in between.
func (c *simulated) round(t *testing.T, seed uint64, faults bool) (p plan) {
	before, spare := c.quorate(), c.spare()
	p = planVoters(c.list, c.most)
	if len(p.Changes) > 0 || p.Transfer != "" {
		c.note("%v: %v (%s)", c.list, p, p.Why)
	}
	for _, ch := range p.Changes {
		i := slices.IndexFunc(c.list, func(s standing) bool { return s.Peer == ch.Peer })
		s := c.list[i]
		if ch.Promote && (s.Voter || !s.Ready || !s.Eligible || !s.Answers || s.Forgot) {
			t.Errorf("seed %d: %v promotes %+v", seed, p, s)
		}
		if !ch.Promote && (s.Leader || !s.Voter) {
			t.Errorf("seed %d: %v demotes %+v", seed, p, s)
		}
	}
	undisturbed := true
	for k, ch := range p.Changes {
		if !c.apply(ch) {
			if before && undisturbed {
				t.Errorf("seed %d: %v cost the majority", seed, p)
			}
			break
		}
		if faults && k == 0 && c.r.IntN(8) == 0 {
			v := c.r.IntN(len(c.list))
			c.list[v].Answers, c.list[v].Ready, c.list[v].Coming = false, false, false
			undisturbed = false
			if c.list[v].Leader || !c.quorate() {
				c.list[v].Leader = false
				c.elect()
				break
			}
			if p.Pair && !c.list[slices.IndexFunc(c.list, func(s standing) bool { return s.Peer == p.Changes[1].Peer })].Answers {
				c.apply(change{false, p.Changes[0].Peer})
				break
			}
			if next := p.Changes[1:]; len(next) > 0 && next[0].Promote {
				break // the newcomer may be the one that fell: carrying on is the leader's own next round
			}
		}
	}
	if undisturbed && len(p.Changes) > 0 && before && c.spare() < min(spare, 0) {
		t.Errorf("seed %d: %v left the cell with %d to spare, it had %d", seed, p, c.spare(), spare)
	}
	if p.Transfer != "" {
		for i := range c.list {
			c.list[i].Leader = c.list[i].Peer == p.Transfer
		}
	}
	return p
}

// peace lets all that are up get ready; the cell must come to rest.
func (c *simulated) peace(t *testing.T, seed uint64) {
	for i := range c.list {
		c.list[i].Answers, c.list[i].Dead = true, false
		c.list[i].Forgot = c.list[i].Forgot && c.list[i].Voter && c.r.IntN(2) == 0
	}
	c.elect()
	if !c.lead() {
		return // too many voters have lost their memory: for people to recover
	}
	for range 60 {
		for i := range c.list {
			if s := &c.list[i]; !s.Voter {
				s.Ready, s.Settled, s.Coming, s.Forgot = true, true, false, false
			}
		}
		p := c.round(t, seed, false)
		if t.Failed() {
			return
		}
		if len(p.Changes) > 0 || p.Transfer != "" {
			continue
		}
		c.judge(t, seed)
		return
	}
	t.Errorf("seed %d: no rest", seed)
}

// judge looks at a cell that has come to rest, all of whose peers are well.
func (c *simulated) judge(t *testing.T, seed uint64) {
	voters := c.voters()
	n, good := len(voters), 0
	for _, s := range c.list {
		if s.Eligible {
			good++
		}
	}
	want := min(c.most, max(1, good-(1-good%2)))
	bad := badness(voters)
	switch {
	case n%2 == 0, n > c.most:
		t.Errorf("seed %d: %d voters of at most %d", seed, n, c.most)
	case n < want && good > bad[0]:
		// Voters that may not vote any more count until somebody can take their place.
		if n+2 <= c.most && good-(n-bad[0]) >= 2 {
			t.Errorf("seed %d: %d voters, there could be %d", seed, n, want)
		}
	}
	for _, out := range voters {
		for _, in := range c.list {
			if in.Voter || !in.Eligible || out.Leader || n < 3 {
				continue
			}
			if b := badness(append(without(voters, out.Peer), in)); slices.Compare(b[:], bad[:]) < 0 {
				t.Errorf("seed %d: %s instead of %s would be better", seed, in.Peer, out.Peer)
			}
		}
	}
	if slices.ContainsFunc(voters, func(s standing) bool { return s.Forgot }) {
		t.Errorf("seed %d: a voter without memory stayed", seed)
	}
}
