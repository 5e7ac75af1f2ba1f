package node

import (
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/node/placement"
	"github.com/jointcloud/pcm/node/rules"
)

// judge asks the rules that travel in offers for one step of a job. What it takes
// from the ledger it reads once, when a site has any rules.
type judge struct {
	n      *Node
	held   heldSpec
	step   int
	buyer  pcm.AccountID
	driver pcm.PeerID

	read     bool
	job      rules.Variable
	who      pcm.Passport // name, account and labels of the driver
	account  account
	spent    map[pcm.PeerID]uint64
	asBuyer  map[bool]rules.Variable // by whether it is the seller's own account
	exchange []rules.Variable
}

// account is what the ledger knows of a buyer at all its sellers.
type account struct {
	balances map[pcm.AccountID]map[string]ledger.Balance // by seller and unit
	disputes map[pcm.AccountID]int
	reserved map[placeKey]pcm.Resources
	tasks    map[placeKey]int
}

// accountOf reads what the ledger knows of a buyer. Of trades, those count that
// counts tells of. Within View.
func (n *Node) accountOf(buyer pcm.AccountID, counts func(*ledger.Trade) bool) account {
	a := account{
		balances: map[pcm.AccountID]map[string]ledger.Balance{}, disputes: map[pcm.AccountID]int{},
		reserved: map[placeKey]pcm.Resources{}, tasks: map[placeKey]int{},
	}
	for k, b := range n.state.Balances {
		if k.Buyer != buyer {
			continue
		}
		if a.balances[k.Seller] == nil {
			a.balances[k.Seller] = map[string]ledger.Balance{}
		}
		a.balances[k.Seller][k.Unit] = b
	}
	for _, t := range n.state.Trades() {
		if t.Terms.Buyer != buyer || !counts(t) {
			continue
		}
		live := 0
		for _, at := range t.All {
			switch {
			case at.State.Live():
				live++
			case at.State == pcm.AttemptDisputed:
				a.disputes[t.SellerAccount]++
			}
		}
		k, width := placeKey{Peer: t.Terms.Seller, Pool: t.Terms.Pool}, min(live, t.Terms.Width)
		a.reserved[k] = a.reserved[k].Plus(t.Terms.Each.Times(width))
		a.tasks[k] += width
	}
	return a
}

func anyTrade(*ledger.Trade) bool { return true }

// standing is what rules see of it.
func (a account) standing(seller pcm.AccountID, unit string, credit pcm.Micro, k placeKey) rules.Standing {
	whole := func(m pcm.Micro) float64 { return float64(m) / 1e6 }
	b := a.balances[seller][unit]
	return rules.Standing{Owed: whole(b.Owed), Held: whole(b.Held), Credit: whole(credit), Tasks: a.tasks[k], Disputes: a.disputes[seller]}
}

// described is what the ledger says of a peer, as its passport has it.
func (n *Node) described(id pcm.PeerID) pcm.Passport {
	p := pcm.Passport{Peer: id}
	n.cell.View(func() {
		if m, ok := n.state.Member(id); ok {
			p.Account, p.Name, p.Labels = m.Account, m.Name, m.Labels
		}
	})
	return p
}

func (n *Node) judge(h heldSpec, step int, buyer pcm.AccountID, driver pcm.PeerID) *judge {
	return &judge{n: n, held: h, step: step, buyer: buyer, driver: driver, spent: map[pcm.PeerID]uint64{}, asBuyer: map[bool]rules.Variable{}}
}

// prepare reads what all sites have in common.
func (j *judge) prepare(each pcm.Resources) {
	if j.read {
		return
	}
	j.read = true
	j.n.cell.View(func() { j.account = j.n.accountOf(j.buyer, anyTrade) })
	j.who = j.n.described(j.driver)
	j.job = rules.Of(rules.JobOf(j.held.spec.Name, j.held.spec.Steps[j.step], each, j.held.spec))
	j.exchange = exchange(j.who, j.held.spec.Steps[j.step])
}

// exchange are the ways in which a task's data pass between its seller and a peer.
func exchange(with pcm.Passport, st pcm.Step) []rules.Variable {
	p := rules.Peer{ID: string(with.Peer), Account: string(with.Account), Name: with.Name, Labels: with.Labels, Flow: "out"}
	list := []rules.Variable{rules.Of(p)} // stdout comes back in any case
	if len(st.Inputs) > 0 || st.ModuleAt != "" || st.Module != "" {
		p.Flow = "in"
		list = append(list, rules.Of(p))
	}
	return list
}

// buyerOf is what rules see of who buys.
func buyerOf(buyer pcm.AccountID, driver pcm.Passport, own bool) rules.Buyer {
	return rules.Buyer{Account: string(buyer), Peer: string(driver.Peer), Name: driver.Name, Labels: driver.Labels, Own: own}
}

// Judge implements placement.Judge.
func (j *judge) Judge(r placement.Request, s placement.Site) placement.Ruling {
	if j.spent[s.Peer] > rules.MaxSpent {
		return placement.Ruling{Refused: "its rules take too much to evaluate"}
	}
	j.prepare(r.Each)
	own := s.Account == j.buyer
	if j.asBuyer[own] == nil {
		j.asBuyer[own] = rules.Of(buyerOf(j.buyer, j.who, own))
	}
	k := placeKey{Peer: s.Peer, Pool: s.Pool.ID}
	standing := j.account.standing(s.Account, s.Pool.Price.Unit, s.Credit, k)
	standing.Tasks += s.Tasks
	v := j.n.book.Judge(s.Rules, false, &rules.Question{
		Job: j.job, Buyer: j.asBuyer[own], Standing: rules.Of(standing), Pool: rules.Of(rules.PoolOf(s.Pool, s.Labels)), Peers: j.exchange,
		ID: s.Pool.ID, Each: r.Each, Whole: s.Pool.Capacity, Slots: s.Pool.Slots,
		Reserved: j.account.reserved[k].Plus(s.Reserved), Tasks: standing.Tasks,
	})
	j.spent[s.Peer] += v.Cost
	if v.Refused != "" {
		return placement.Ruling{Refused: v.Refused}
	}
	price := s.Pool.Price
	if v.Percent != 100 {
		if price = price.Percent(v.Percent); !s.Pool.Sold(price) {
			return placement.Ruling{Refused: "its rules ask for a price that it has not declared yet"}
		}
	}
	return placement.Ruling{Price: price, Room: v.Room, Limit: v.Limit}
}

// inquiry is what this peer's own rules are asked about.
type inquiry struct {
	held    heldSpec
	step    int
	buyer   pcm.AccountID
	with    pcm.Passport // the driver, or who wants data
	unit    string
	account account // of the buyer
}

// verdict is what rules of this peer's own say of tasks in one of its pools.
func (n *Node) verdict(set rules.Set, in inquiry, id pcm.PoolID) (rules.Verdict, error) {
	free := rules.Verdict{Percent: 100, Room: pcm.MaxBatch}
	if len(set.Public)+len(set.Private) == 0 {
		return free, nil
	}
	st := in.held.spec.Steps[in.step]
	each, err := st.Shape()
	if err != nil {
		return free, err
	}
	k := placeKey{Peer: n.self, Pool: id}
	var pool pcm.Pool
	var me ledger.Member
	n.cell.View(func() {
		if p, ok := n.state.Pool(k); ok {
			pool = p.Pool
		}
		if m, ok := n.state.Member(n.self); ok {
			me = *m
		}
	})
	now := time.Now()
	zone, _ := now.Zone()
	q := &rules.Question{
		Job: rules.Of(rules.JobOf(in.held.spec.Name, st, each, in.held.spec)), Buyer: rules.Of(buyerOf(in.buyer, in.with, in.buyer == n.account)),
		Standing: rules.Of(in.account.standing(n.account, in.unit, me.Credit, k)), Pool: rules.Of(rules.PoolOf(pool, me.Labels)), Peers: exchange(in.with, st),
		Time: rules.Of(rules.Time{
			Hour: now.Hour(), Minute: now.Minute(), Weekday: strings.ToLower(now.Weekday().String()[:3]), Date: now.Format(time.DateOnly), Zone: zone,
		}),
		ID: id, Each: each, Whole: pool.Capacity, Slots: pool.Slots, Reserved: in.account.reserved[k], Tasks: in.account.tasks[k],
	}
	v := n.book.Judge(set.Public, false, q)
	if v.Refused == "" {
		if private := n.book.Judge(set.Private, true, q); private.Refused != "" {
			v.Refused, v.Rule, v.Fault = private.Refused, private.Rule, private.Fault
		}
	}
	if v.Fault != nil {
		n.log.Warn("a rule can't be evaluated, so it refuses", "rule", v.Rule, "pool", id, "buyer", pcm.Short(in.buyer), "error", v.Fault)
	}
	return v, nil
}

// ruled asks this peer's rules about what was awarded to it.
func (s *seller) ruled(t pcm.Terms, h heldSpec) error {
	n := s.n
	set := n.ownRules()
	in := inquiry{held: h, step: t.Step, buyer: t.Buyer, with: n.described(t.Driver), unit: t.Price.Unit}
	read := func() {
		var at int64
		if tr, ok := n.state.Trade(t.Trade()); ok {
			at = tr.AwardedAt
		}
		// Of two trades that together are over a limit the earlier one runs.
		in.account = n.accountOf(t.Buyer, func(o *ledger.Trade) bool { return o.AwardedAt < at || o.AwardedAt == at && o.ID < t.Trade() })
	}
	if len(set.Public)+len(set.Private) > 0 {
		n.cell.View(read)
	}
	v, err := n.verdict(set, in, t.Pool)
	switch {
	case err != nil:
		return err
	case v.Refused != "":
		return pcm.Errorf(pcm.Refused, "%s%s", ruleMark, v.Refused)
	case v.Room < min(t.Width, t.Tasks.Len()):
		return pcm.Errorf(pcm.Refused, "%s: %d tasks more can run at once now, %d were asked for", v.Limit, v.Room, t.Width)
	}
	var row *ledger.Pool
	n.cell.View(func() {
		if p, ok := n.state.Pool(placeKey{Peer: n.self, Pool: t.Pool}); ok {
			copied := *p
			row = &copied
		}
	})
	usual, known := n.offer.priced(row, t.Offer, t.Pool)
	if known && !covers(t.Price, usual.Percent(v.Percent)) {
		return pcm.Errorf(pcm.Refused, "the rules of peer %s ask this buyer for %d %% of the price of pool %s, the award names less", pcm.Short(n.self), v.Percent, t.Pool)
	}
	return nil
}

// covers tells whether no part of a price is below what is asked for. One that is
// above is the buyer's own choice.
func covers(price, asked pcm.Price) bool {
	return price.PerTask >= asked.PerTask && price.PerCPUHour >= asked.PerCPUHour && price.PerGiBHour >= asked.PerGiBHour && price.PerGPUHour >= asked.PerGPUHour
}

// mayGive refuses to give results, output and files of a trade's tasks to a peer to
// which the rules let no data go.
func (s *seller) mayGive(id pcm.TradeID, to pcm.PeerID) error {
	n := s.n
	set := n.ownRules()
	noData := func(r pcm.Rule) bool { return r.Data == "" }
	set.Public, set.Private = slices.DeleteFunc(slices.Clone(set.Public), noData), slices.DeleteFunc(slices.Clone(set.Private), noData)
	if to == n.self || len(set.Public)+len(set.Private) == 0 {
		return nil
	}
	var t pcm.Terms
	n.cell.View(func() {
		if tr, ok := n.state.Trade(id); ok {
			t = tr.Terms
		}
	})
	s.mu.Lock()
	x := s.trades[id]
	known := x != nil && x.prepared
	s.mu.Unlock()
	var h heldSpec
	if known {
		h, t = x.held, x.terms
	} else {
		h, known = n.specs.get(t.Job)
	}
	if !known || t.Step >= len(h.spec.Steps) {
		return pcm.Errorf(pcm.Unavailable, "the job of %s is not known here, so the rules of peer %s can't be asked where its data may go", id, pcm.Short(n.self))
	}
	in := inquiry{held: h, step: t.Step, buyer: t.Buyer, with: n.described(to), unit: t.Price.Unit}
	n.cell.View(func() { in.account = n.accountOf(t.Buyer, anyTrade) })
	v, err := n.verdict(set, in, t.Pool)
	if err != nil {
		return err
	}
	if v.Refused != "" {
		return pcm.Errorf(pcm.Forbidden, "data of %s may not go to peer %s: %s", id, pcm.Short(to), v.Refused)
	}
	return nil
}

// ruleMark begins the reason of a veto by a rule: buyers that see it ask again later
// than after other vetoes.
const ruleMark = "not sold: "

// ruledFor is how long a driver stays away from a pool whose seller's rules refuse a step.
const ruledFor = time.Minute
