package node

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/node/placement"
	"github.com/jointcloud/pcm/node/rules"
)

// judging is a judge for a job of a buyer, carl, that needs no ledger.
func judging() (*judge, placement.Request) {
	st := pcm.Step{Name: "run", Count: 8, Command: []string{"train"}}
	each, _ := st.Shape()
	j := (&Node{}).judge(heldSpec{spec: pcm.Spec{Name: "job", Steps: []pcm.Step{st}}}, 0, "acc-carl", "carl")
	j.read = true
	j.who = pcm.Passport{Peer: "carl", Account: "acc-carl", Name: "carl", Labels: pcm.Labels{"region": "eu"}}
	j.job = rules.Of(rules.JobOf("job", st, each, j.held.spec))
	j.exchange = exchange(j.who, st)
	return j, placement.Request{Step: st, Each: each, Limit: st.Limit(), Buyer: "acc-carl", Driver: "acc-carl", Unit: pcm.DefaultUnit, Judge: j}
}

// selling is a site with rules, of which price is one of the tariffs.
func sellingSite(i int, list ...pcm.Rule) placement.Site {
	p := pcm.Pool{
		ID: "local", Adapter: "process", Capacity: pcm.Resources{CPU: 16000, Memory: 64 << 30}, Slots: 16,
		Price: pcm.Price{Unit: pcm.DefaultUnit, PerTask: 1001},
	}
	p.Tariffs = []pcm.Price{p.Price.Percent(80)}
	return placement.Site{
		Peer: pcm.PeerID(fmt.Sprintf("peer-%04d", i)), Account: pcm.AccountID(fmt.Sprintf("acc-%04d", i)), Pool: p,
		Free: p.Capacity, Slots: p.Slots, Rules: list, Credit: 5e6,
	}
}

func of(n int) *int { return &n }

func TestRankByRules(t *testing.T) {
	for _, tt := range []struct {
		name string
		rule pcm.Rule
		site func(*placement.Site)
		want string // filter and reason, or price and room
	}{
		{"accepts", pcm.Rule{Name: "r", Accept: `buyer.labels.region == "eu" && job.program == "train"`}, nil, "0.001001, 16"},
		{"refuses", pcm.Rule{Name: "r", Accept: `buyer.own`, Reason: "not for ${buyer.name}"}, nil, "rules: rule r: not for carl"},
		{"its own buyer", pcm.Rule{Name: "r", Accept: `buyer.own`}, func(s *placement.Site) { s.Account = "acc-carl" }, "0.001001, 16"},
		{"price, rounded up", pcm.Rule{Name: "r", Percent: of(80)}, nil, "0.000801, 16"},
		{"a price that is not declared", pcm.Rule{Name: "r", Percent: of(79)}, nil, "rules: its rules ask for a price that it has not declared yet"},
		{"limit", pcm.Rule{Name: "r", Limit: &pcm.Limit{Tasks: 3}}, nil, "0.001001, 3"},
		{"limit, in part used", pcm.Rule{Name: "r", Limit: &pcm.Limit{Tasks: 5}}, func(s *placement.Site) { s.Tasks = 1 }, "0.001001, 2"},
		{"limit, used up", pcm.Rule{Name: "r", Limit: &pcm.Limit{Tasks: 2}}, nil, "full: rule r: at most 2 tasks of pool local for one account at once"},
		{"limit that is wider than what is free", pcm.Rule{Name: "r", Limit: &pcm.Limit{Tasks: 50}}, func(s *placement.Site) { s.Slots = 0 }, "full: 16 cpu, 64GiB and 0 slots are free of 16 cpu, 64GiB and 16"},
		{"standing", pcm.Rule{Name: "r", Accept: "standing.owed + standing.held < 2 && standing.credit == 5 && standing.disputes == 1", Reason: "${standing}"}, nil, "0.001001, 16"},
		{"data", pcm.Rule{Name: "r", Data: `peer.flow == "out" && peer.name != "carl"`}, nil, "rules: rule r"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j, r := judging()
			s := sellingSite(1, tt.rule)
			if tt.site != nil {
				tt.site(&s)
			}
			if strings.HasPrefix(tt.name, "limit,") {
				k := placeKey{Peer: s.Peer, Pool: s.Pool.ID}
				j.account.tasks, j.account.reserved = map[placeKey]int{k: 2}, map[placeKey]pcm.Resources{k: r.Each.Times(2)}
			}
			j.account.disputes = map[pcm.AccountID]int{s.Account: 1}
			j.account.balances = map[pcm.AccountID]map[string]ledger.Balance{s.Account: {pcm.DefaultUnit: {Owed: 1e6, Held: 5e5}}}
			ranked, err := placement.Rank(r, []placement.Site{s})
			if err != nil {
				t.Fatal(err)
			}
			c := ranked[0]
			got := fmt.Sprintf("%s, %d", c.Pool.Price.PerTask, c.Room)
			switch {
			case !c.OK():
				got = c.Filter + ": " + c.Reason
			case c.Room == 0:
				got = c.Reason
			}
			if got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// Who isn't entitled to a tariff doesn't get it, be it for one part of the price only.
func TestTariffsAreForTheEntitled(t *testing.T) {
	usual := pcm.Price{Unit: pcm.DefaultUnit, PerTask: 100, PerCPUHour: 100, PerGiBHour: 100, PerGPUHour: 100}
	if !covers(usual, usual) || !covers(usual, usual.Percent(80)) {
		t.Error("the usual price is refused")
	}
	if covers(usual.Percent(80), usual) || covers(usual, usual.Percent(101)) {
		t.Error("a lower price is taken")
	}
	for _, lower := range []func(*pcm.Price) *pcm.Micro{
		func(p *pcm.Price) *pcm.Micro { return &p.PerTask }, func(p *pcm.Price) *pcm.Micro { return &p.PerCPUHour },
		func(p *pcm.Price) *pcm.Micro { return &p.PerGiBHour }, func(p *pcm.Price) *pcm.Micro { return &p.PerGPUHour },
	} {
		p := usual
		*lower(&p)--
		if covers(p, usual) {
			t.Errorf("%+v is taken", p)
		}
	}
	var s selling
	for i := range uint64(2 * maxPriced) {
		s.notePrices(i, []pcm.Pool{{ID: "local", Price: usual.Percent(int(i))}})
	}
	if p, known := s.priced(nil, 2*maxPriced-1, "local"); !known || p != usual.Percent(2*maxPriced-1) || len(s.prices) != maxPriced {
		t.Errorf("%+v, %v: of %d offers", p, known, len(s.prices))
	}
	if _, known := s.priced(nil, 0, "local"); known {
		t.Error("prices are remembered for ever")
	}

	// After a restart nobody gets a tariff for that the seller has forgotten its prices.
	s = selling{}
	row := ledger.Pool{Pool: pcm.Pool{ID: "local", Price: usual}, Offer: 7}
	if p, known := s.priced(&row, 7, "local"); !known || p != usual {
		t.Errorf("%+v, %v: of what the ledger has", p, known)
	}
	s.noteBefore([]ledger.Pool{row})
	row.Offer, row.Pool.Price = 8, usual.Percent(50)
	if p, known := s.priced(&row, 7, "local"); !known || p != usual {
		t.Errorf("%+v, %v: of what the ledger had before", p, known)
	}
}

// One seller's rules can't take long, however many pools it offers.
func TestRulesOfOneSellerAreBounded(t *testing.T) {
	j, r := judging()
	ten := "[0,1,2,3,4,5,6,7,8,9]"
	dear := pcm.Rule{Name: "dear", Accept: ten + ".all(a, " + ten + ".all(b, " + ten + ".all(c, a + b + c >= 0)))"}
	var sites []placement.Site
	for i := range 64 {
		s := sellingSite(1, dear, dear, dear, dear)
		s.Pool.ID = pcm.PoolID(fmt.Sprint("pool-", i))
		sites = append(sites, s)
	}
	sites = append(sites, sellingSite(2, pcm.Rule{Name: "r", Accept: "true"}))
	ranked, err := placement.Rank(r, sites)
	if err != nil {
		t.Fatal(err)
	}
	if !ranked[0].OK() || ranked[0].Peer != "peer-0002" {
		t.Errorf("the other seller: %+v", ranked[0])
	}
	tooMuch := 0
	for _, c := range ranked {
		if strings.Contains(c.Reason, "too much to evaluate") {
			tooMuch++
		}
	}
	if spent := j.spent["peer-0001"]; spent > rules.MaxSpent+4*rules.MaxCost || tooMuch == 0 {
		t.Errorf("cost %d, %d pools were not asked for", spent, tooMuch)
	}
}

// BenchmarkRankWithRules ranks a thousand offers, each with rules of its own.
func BenchmarkRankWithRules(b *testing.B) {
	for _, with := range []bool{false, true} {
		b.Run(fmt.Sprintf("rules=%v", with), func(b *testing.B) {
			j, r := judging()
			var sites []placement.Site
			for i := range 1000 {
				s := sellingSite(i)
				if with {
					s.Rules = []pcm.Rule{
						{Name: "region", Accept: fmt.Sprintf(`has(buyer.labels.region) && buyer.labels.region in ["eu", "r%d"]`, i)},
						{Name: "partner", When: `buyer.account == "acc-carl"`, Percent: of(80)},
						{Name: "fair", When: "!buyer.own", Limit: &pcm.Limit{Share: 50}},
					}
				}
				sites = append(sites, s)
			}
			if _, err := placement.Rank(r, sites); err != nil { // compiles them, once
				b.Fatal(err)
			}
			for b.Loop() {
				clear(j.spent)
				ranked, err := placement.Rank(r, sites)
				if err != nil || !ranked[999].OK() {
					b.Fatal(ranked[999].Reason, err)
				}
			}
		})
	}
}
