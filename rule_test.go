package pcm_test

import (
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

func percent(n int) *int { return &n }

func TestRuleBounds(t *testing.T) {
	good := pcm.Rule{Name: "a", Accept: "true"}
	for want, list := range map[string][]pcm.Rule{
		"":                       {good, {Name: "b", Percent: percent(0)}, {Name: "c", Pools: []string{"gpu-*"}, Limit: &pcm.Limit{Share: 50}}},
		"two rules":              {good, good},
		"not a name":             {{Name: "A b", Accept: "true"}},
		"says 0 things":          {{Name: "a", When: "true"}},
		"says 2 things":          {{Name: "a", Accept: "true", Data: "true"}},
		"1001 %":                 {{Name: "a", Percent: percent(1001)}},
		"-1 %":                   {{Name: "a", Percent: percent(-1)}},
		"limit that is none":     {{Name: "a", Limit: &pcm.Limit{}}},
		"out of range":           {{Name: "a", Limit: &pcm.Limit{Share: 101}}},
		"cpu -1":                 {{Name: "a", Limit: &pcm.Limit{CPU: -1000}}},
		"neither a name":         {{Name: "a", Accept: "true", Pools: []string{"[a"}}},
		"names 17 pools":         {{Name: "a", Accept: "true", Pools: make([]string, 17)}},
		"over the bound of 2048": {{Name: "a", Accept: strings.Repeat("x", 2048)}},
		"at most 8":              {{Name: "a"}, {Name: "b"}, {Name: "c"}, {Name: "d"}, {Name: "e"}, {Name: "f"}, {Name: "g"}, {Name: "h"}, {Name: "i"}},
	} {
		err := pcm.CheckRules(list)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if r := (pcm.Rule{Pools: []string{"a", "gpu-*"}}); !r.For("a") || !r.For("gpu-1") || r.For("b") || !good.For("b") {
		t.Error("rules are for other pools than they say")
	}
}

// An offer with rules that are over their bounds is refused as a whole; one
// without rules is, to peers of earlier releases, what it was.
func TestOfferWithRules(t *testing.T) {
	key := pcm.NewKey()
	now := time.Now()
	offer := pcm.Offer{
		Mesh: pcm.NewMeshID(key.Public()), Cell: pcm.NewCellID(), Peer: key.Peer(), Account: key.Account(), Name: "x", Number: 1,
		IssuedAt: now.UnixMilli(), NotAfter: now.Add(time.Hour).UnixMilli(),
		Pools: []pcm.Pool{{ID: "local", Adapter: "process", Price: pcm.Price{Unit: "credit", PerTask: 3}}},
	}
	plain := len(pcm.MustMarshal(offer))
	offer.Pools[0].Tariffs = []pcm.Price{offer.Pools[0].Price.Percent(50)}
	offer.Rules = []pcm.Rule{{Name: "half", Percent: percent(50)}}
	if len(pcm.MustMarshal(offer)) <= plain {
		t.Error("rules don't travel")
	}
	got, err := pcm.OpenOffer(key.Seal(pcm.DomainOffer, offer), now)
	if err != nil || len(got.Rules) != 1 || *got.Rules[0].Percent != 50 || got.Pools[0].Tariffs[0].PerTask != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	if p := got.Pools[0]; !p.Sold(p.Price) || !p.Sold(p.Tariffs[0]) || p.Sold(p.Price.Percent(49).Percent(1)) {
		t.Error("the pool is sold at other prices than it says")
	}
	for want, spoil := range map[string]func(*pcm.Offer){
		"over the bound": func(o *pcm.Offer) { o.Rules = []pcm.Rule{{Name: "a", Accept: strings.Repeat("x", 3000)}} },
		"not a name":     func(o *pcm.Offer) { o.Rules = []pcm.Rule{{Name: "\x1b[2J", Accept: "true"}} },
		"tariffs":        func(o *pcm.Offer) { o.Pools[0].Tariffs = make([]pcm.Price, 9) },
		"not in credit":  func(o *pcm.Offer) { o.Pools[0].Tariffs = []pcm.Price{{Unit: "euro"}} },
	} {
		bad := offer
		bad.Pools = []pcm.Pool{offer.Pools[0]}
		spoil(&bad)
		if _, err := pcm.OpenOffer(key.Seal(pcm.DomainOffer, bad), now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestPercent(t *testing.T) {
	p := pcm.Price{Unit: "credit", PerTask: 1, PerCPUHour: 999, PerGiBHour: 0, PerGPUHour: pcm.MaxPrice}
	want := pcm.Price{Unit: "credit", PerTask: 1, PerCPUHour: 330, PerGiBHour: 0, PerGPUHour: 330_000_000_000} // 0.33 and 329.67, rounded up
	if got := p.Percent(33); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := p.Percent(pcm.MaxPercent); got.PerGPUHour != pcm.MaxPrice || got.PerTask != 10 || got.Validate() != nil {
		t.Errorf("%+v", got)
	}
	if got := p.Percent(0); got != (pcm.Price{Unit: "credit"}) {
		t.Errorf("%+v", got)
	}
	if got := p.Percent(100); got != p {
		t.Errorf("%+v", got)
	}
}
