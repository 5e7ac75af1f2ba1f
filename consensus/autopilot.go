package consensus

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// standing is a peer of a cell as its leader sees it.
type standing struct {
	Peer     pcm.PeerID
	Voter    bool
	Leader   bool
	Answers  bool // in the last survey, or it is the leader itself
	Dead     bool // silent for so long that it is given up as a voter
	Complete bool // has the whole history, by its own word
	Ready    bool // a replica that is caught up, complete and stable
	Coming   bool // a replica that may be ready soon
	Eligible bool // may vote, by its own word and the operators'
	Forgot   bool // has lost what it voted and stored: counts for nothing until it was demoted
	Settled  bool // has been ready for so long that it may take a living voter's place
	Owner    string
	Site     string
}

// change is one change of the configuration.
type change struct {
	Promote bool
	Peer    pcm.PeerID
}

// plan is what the leader does next. If a change fails, those after it are not
// tried; Pair says that the first is then taken back.
type plan struct {
	Changes  []change
	Pair     bool
	Transfer pcm.PeerID // leadership goes there
	Why      string     // for people: what is done, or why nothing is
	Calm     bool       // nothing is to be watched closely
}

// planVoters moves the set of voters one step towards an odd number of living,
// eligible peers, spread over owners and, among equals, over sites. It depends on
// nothing else, and never proposes a change after which those voters that answer
// would be no majority.
//
//   - Two voters are weaker than one, so growth is in pairs: replicas that are
//     caught up and stable become voters together, and if the second fails, the
//     first goes back.
//   - A dead voter is first demoted, then replaced: the demotion needs no more
//     peers than are needed anyway while it is dead, whereas promoting first
//     would need the newcomer as well. A living one is replaced the other way round.
//   - An even number is made odd: by a replica, else by demoting one.
//   - Dead voters without a replacement go in pairs: of five with two dead every
//     one of the rest is needed, of three living ones one may fail.
func planVoters(view []standing, most int) plan {
	var voters, dead, ready []standing
	coming, leads := false, false
	for _, s := range view {
		switch {
		case s.Voter:
			voters = append(voters, s)
			leads = leads || s.Leader
			if s.Dead && !s.Leader {
				dead = append(dead, s)
			}
		case s.Ready && s.Eligible && s.Answers && !s.Forgot:
			ready = append(ready, s)
		case s.Coming && s.Eligible:
			coming = true
		}
	}
	if !leads {
		return plan{Why: "this peer leads and is no voter yet"}
	}
	n := len(voters)
	try := func(p plan) (plan, bool) { return p, safe(voters, p.Changes) }
	for _, v := range voters {
		if v.Forgot && !v.Leader {
			if p, ok := try(plan{Changes: []change{{false, v.Peer}}, Why: fmt.Sprintf("%s has lost its memory and must not vote: it becomes a replica", pcm.Short(v.Peer))}); ok {
				return p
			}
		}
	}
	if len(dead) > 0 && len(ready) > 0 {
		rest := without(voters, dead[0].Peer)
		by := spread(ready, rest)[0].Peer
		if p, ok := try(plan{Changes: []change{{false, dead[0].Peer}, {true, by}}, Why: fmt.Sprintf("%s is silent: %s takes its place", pcm.Short(dead[0].Peer), pcm.Short(by))}); ok {
			return p
		}
	}
	switch {
	case n%2 == 0 && n < most && len(ready) > 0:
		by := spread(ready, voters)[0].Peer
		if p, ok := try(plan{Changes: []change{{true, by}}, Why: fmt.Sprintf("an even number votes: %s makes it odd", pcm.Short(by))}); ok {
			return p
		}
	case n%2 == 0 || n > most:
		if out := leastUseful(voters); out != "" {
			if p, ok := try(plan{Changes: []change{{false, out}}, Why: fmt.Sprintf("%d vote, at most %d may, and an even number is weaker than one less: %s becomes a replica", n, most, pcm.Short(out))}); ok {
				return p
			}
		}
	case len(dead) >= 2 && n >= 5:
		if p, ok := try(plan{Changes: []change{{false, dead[0].Peer}, {false, dead[1].Peer}}, Why: fmt.Sprintf("%s and %s are silent and nobody can take their places: without them a majority is smaller", pcm.Short(dead[0].Peer), pcm.Short(dead[1].Peer))}); ok {
			return p
		}
	case n+2 <= most && len(ready) >= 2 && len(dead) == 0:
		two := spread(ready, voters)
		if p, ok := try(plan{Pair: true, Changes: []change{{true, two[0].Peer}, {true, two[1].Peer}}, Why: fmt.Sprintf("%s and %s are ready to vote", pcm.Short(two[0].Peer), pcm.Short(two[1].Peer))}); ok {
			return p
		}
	case len(dead) == 0:
		if p, ok := better(voters, ready); ok {
			return p
		}
	}
	return plan{Why: stays(n, most, dead, ready, coming), Calm: !(coming && n < most) && len(dead) == 0}
}

// safe tells whether the voters that answer are a majority after each change, if
// they are one now: each is committed by a majority of those that vote after it.
func safe(voters []standing, changes []change) bool {
	n, alive := len(voters), 0
	counts := map[pcm.PeerID]bool{}
	for _, v := range voters {
		if (v.Answers || v.Leader) && !v.Forgot {
			counts[v.Peer] = true
			alive++
		}
	}
	for _, c := range changes {
		switch {
		case c.Promote: // only peers that answer are proposed
			n, alive = n+1, alive+1
		default:
			n--
			if counts[c.Peer] {
				alive--
			}
		}
		if n < 1 || alive <= n/2 {
			return false
		}
	}
	return true
}

// better replaces a living voter by a settled replica where that spreads the
// votes more, or where the voter may vote no more. The leader is not replaced:
// when it may not vote, it first hands leadership over.
func better(voters, ready []standing) (plan, bool) {
	for _, v := range voters {
		if !v.Leader || v.Eligible {
			continue
		}
		for _, to := range voters {
			if !to.Leader && to.Eligible && to.Answers && !to.Forgot {
				return plan{Transfer: to.Peer, Why: fmt.Sprintf("the leader may vote no more: %s takes over", pcm.Short(to.Peer))}, true
			}
		}
	}
	if len(voters) < 3 {
		return plan{}, false
	}
	least := badness(voters)
	var p plan
	for _, in := range bySpreadOrder(ready) {
		if !in.Settled {
			continue
		}
		for _, out := range bySpreadOrder(voters) {
			if out.Leader {
				continue
			}
			if b := badness(append(without(voters, out.Peer), in)); slices.Compare(b[:], least[:]) < 0 {
				least = b
				p = plan{Changes: []change{{true, in.Peer}, {false, out.Peer}}}
				if out.Eligible {
					p.Why = fmt.Sprintf("%s takes the place of %s: the votes are then spread over more accounts or sites", pcm.Short(in.Peer), pcm.Short(out.Peer))
				} else {
					p.Why = fmt.Sprintf("%s takes the place of %s, which may vote no more", pcm.Short(in.Peer), pcm.Short(out.Peer))
				}
			}
		}
	}
	return p, len(p.Changes) > 0 && safe(voters, p.Changes)
}

// badness measures a set of voters, the most weighty first: how many may not
// vote, and how they crowd at owners and at sites.
func badness(voters []standing) (b [3]int) {
	owners, sites := map[string]int{}, map[string]int{}
	for _, v := range voters {
		if !v.Eligible {
			b[0]++
		}
		owners[v.Owner]++
		sites[v.site()]++
		b[1] += 2*owners[v.Owner] - 1 // the sum of the squares
		b[2] += 2*sites[v.site()] - 1
	}
	return b
}

// site is where a peer stands; one that doesn't say stands by itself.
func (s standing) site() string {
	if s.Site == "" {
		return "peer " + string(s.Peer)
	}
	return "site " + s.Site
}

// spread orders replicas for promotion: first those whose owner has the fewest
// voters, then those whose site has, those ahead in the order counted as voters
// already; then by ID.
func spread(ready, voters []standing) []standing {
	owners, sites := map[string]int{}, map[string]int{}
	count := func(s standing) { owners[s.Owner]++; sites[s.site()]++ }
	for _, v := range voters {
		count(v)
	}
	left := bySpreadOrder(ready)
	ordered := make([]standing, 0, len(left))
	for len(left) > 0 {
		best := 0
		for i, s := range left {
			a, b := owners[s.Owner], owners[left[best].Owner]
			if a < b || a == b && sites[s.site()] < sites[left[best].site()] {
				best = i
			}
		}
		count(left[best])
		ordered = append(ordered, left[best])
		left = slices.Delete(left, best, best+1)
	}
	return ordered
}

func bySpreadOrder(list []standing) []standing {
	return slices.SortedFunc(slices.Values(list), func(a, b standing) int { return strings.Compare(string(a.Peer), string(b.Peer)) })
}

// leastUseful is the voter to demote: one that has lost its memory, else a dead
// one, one that doesn't answer, one that may not vote, else the one without which
// the votes are spread best; never the leader.
func leastUseful(voters []standing) pcm.PeerID {
	weight := func(v standing) [6]int {
		flag := func(bad bool) int {
			if bad {
				return 0
			}
			return 1
		}
		b := badness(without(voters, v.Peer))
		return [6]int{flag(v.Forgot), flag(v.Dead), flag(!v.Answers), flag(!v.Eligible), b[1], b[2]}
	}
	var out pcm.PeerID
	var least [6]int
	for _, v := range bySpreadOrder(voters) {
		if v.Leader {
			continue
		}
		if w := weight(v); out == "" || slices.Compare(w[:], least[:]) < 0 {
			out, least = v.Peer, w
		}
	}
	return out
}

func without(list []standing, id pcm.PeerID) []standing {
	return slices.DeleteFunc(slices.Clone(list), func(s standing) bool { return s.Peer == id })
}

// stays says why nothing is changed.
func stays(n, most int, dead, ready []standing, coming bool) string {
	switch {
	case len(dead) > 0:
		return fmt.Sprintf("%s is silent, and no replica is ready to take its place", pcm.Short(dead[0].Peer))
	case n >= most:
		return fmt.Sprintf("as many vote as may: %d", most)
	case len(ready) == 1:
		return fmt.Sprintf("%s is ready to vote; it waits for a second one, since an even number of voters is weaker", pcm.Short(ready[0].Peer))
	case coming:
		return "a replica is catching up"
	}
	return fmt.Sprintf("no two replicas are there to vote: %d of at most %d vote", n, most)
}

// planPromote makes a replica a voter because a person wants it. instead is the
// voter whose place it takes; "": none.
func planPromote(view []standing, most int, id, instead pcm.PeerID) (plan, error) {
	var voters, ready []standing
	var in standing
	for _, s := range view {
		switch {
		case s.Peer == id:
			in = s
		case s.Voter:
			voters = append(voters, s)
		case s.Ready && s.Eligible && s.Answers && !s.Forgot:
			ready = append(ready, s)
		}
	}
	short := pcm.Short(id)
	switch {
	case in.Peer == "":
		return plan{}, pcm.Errorf(pcm.NotFound, "peer %s is not in this cell; 'pcm cell members' lists who is", short)
	case in.Voter && instead == "":
		return plan{Why: "it votes already"}, nil
	case in.Voter:
		return plan{}, pcm.Errorf(pcm.Conflict, "peer %s votes already: to take the vote from the other one use 'pcm cell demote'", short)
	case !in.Eligible && in.Owner == "":
		return plan{}, pcm.Errorf(pcm.Refused, "peer %s can't vote yet: its passport is not known here; it comes with its first words in the cell", short)
	case !in.Eligible:
		return plan{}, pcm.Errorf(pcm.Refused, "peer %s may not vote by its own configuration (cell.voter_eligible: false)", short)
	case !in.Answers:
		return plan{}, pcm.Errorf(pcm.Unavailable, "peer %s does not answer: a voter that is away only makes the majority larger", short)
	case !in.Ready && in.Forgot:
		return plan{}, pcm.Errorf(pcm.Unavailable, "peer %s has a new folder, and takes no part in elections yet: the leader gives it a new place by itself; try again when 'pcm cell members' says that it is ready", short)
	case !in.Ready && !in.Complete:
		return plan{}, pcm.Errorf(pcm.Unavailable, "peer %s still fetches the cell's history: try again when 'pcm cell members' says that it is ready", short)
	case !in.Ready:
		return plan{}, pcm.Errorf(pcm.Unavailable, "peer %s has not kept up with the log for long enough: try again when 'pcm cell members' says that it is ready", short)
	}
	p := plan{Changes: []change{{true, id}}}
	n := len(voters)
	switch {
	case instead != "":
		i := slices.IndexFunc(voters, func(s standing) bool { return s.Peer == instead })
		if i < 0 {
			return plan{}, pcm.Errorf(pcm.Invalid, "peer %s is not a voter: there is no place of it to take", pcm.Short(instead))
		}
		p.Changes = append(p.Changes, change{false, instead})
		if !voters[i].Answers || voters[i].Forgot {
			slices.Reverse(p.Changes)
		}
	case n%2 == 0:
	case n >= most:
		return plan{}, pcm.Errorf(pcm.Refused, "%d peers vote already, as many as may: name the one whose place it takes, 'pcm cell promote %s --instead-of PEER'", n, short)
	case len(ready) == 0:
		return plan{}, pcm.Errorf(pcm.Refused, "%d voters are weaker than %d: a second replica must be ready to vote with it; or name one whose place it takes with --instead-of", n+1, n)
	default:
		p.Changes, p.Pair = append(p.Changes, change{true, spread(ready, append(slices.Clone(voters), in))[0].Peer}), true
	}
	if !safe(voters, p.Changes) {
		return plan{}, tooFew(voters)
	}
	return p, nil
}

// planDemote takes a voter's vote because a person wants it. A replica takes its
// place where one is ready; force does without.
func planDemote(view []standing, id pcm.PeerID, force bool) (plan, error) {
	var voters, ready []standing
	var out standing
	for _, s := range view {
		switch {
		case s.Peer == id:
			out = s
		case !s.Voter && s.Ready && s.Eligible && s.Answers && !s.Forgot:
			ready = append(ready, s)
		}
		if s.Voter {
			voters = append(voters, s)
		}
	}
	short, n := pcm.Short(id), len(voters)
	switch {
	case out.Peer == "":
		return plan{}, pcm.Errorf(pcm.NotFound, "peer %s is not in this cell; 'pcm cell members' lists who is", short)
	case !out.Voter:
		return plan{Why: "it does not vote"}, nil
	case n == 1:
		return plan{}, pcm.Errorf(pcm.Refused, "peer %s is the only voter: nobody would be left to decide", short)
	}
	p := plan{Changes: []change{{false, id}}}
	if n%2 == 1 {
		switch {
		case len(ready) > 0 && out.Answers && !out.Forgot:
			p.Changes = []change{{true, spread(ready, without(voters, id))[0].Peer}, {false, id}}
		case len(ready) > 0:
			p.Changes = append(p.Changes, change{true, spread(ready, without(voters, id))[0].Peer})
		case n == 3 && !force:
			return plan{}, pcm.Errorf(pcm.Refused, "no replica is ready to take the place of %s, and two voters are weaker than one: with --force a single voter remains", short)
		}
	}
	if !safe(voters, p.Changes) {
		return plan{}, tooFew(voters)
	}
	return p, nil
}

// tooFew says who has to come back before anything can change.
func tooFew(voters []standing) error {
	var silent []string
	for _, v := range voters {
		if !v.Answers && !v.Leader {
			silent = append(silent, "peer "+pcm.Short(v.Peer))
		}
	}
	return pcm.Errorf(pcm.Refused, "the cell would lose its majority by that: of %d voters these don't answer: %s", len(voters), strings.Join(silent, ", "))
}

// later is the later of two times.
func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
