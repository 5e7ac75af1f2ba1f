package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/jointcloud/pcm"
)

const (
	buyer  = pcm.AccountID("acc-buyer")
	seller = pcm.AccountID("acc-seller")
)

// site is a pool that suits request.
func site() Site {
	whole := pcm.Resources{CPU: 4000, Memory: 8 << 30}
	return Site{
		Peer: "peer-a", Name: "anna", Account: seller, Cell: "cell", Labels: pcm.Labels{"region": "eu"}, Offer: 7,
		Pool: pcm.Pool{
			ID: "process", Adapter: "process", Capacity: whole, Slots: 8, Labels: pcm.Labels{"disk": "ssd"},
			Price: pcm.Price{Unit: "credit", PerTask: 1000, PerCPUHour: 1_000_000}, Sandbox: "bubblewrap",
		},
		Free: whole, Slots: 8,
	}
}

func request() Request {
	return Request{
		Step: pcm.Step{Name: "run", Count: 1, Command: []string{"true"}}, Each: pcm.Resources{CPU: 1000, Memory: 1 << 30},
		Limit: time.Hour, Buyer: buyer, Driver: buyer, Unit: "credit", Strategy: "cheapest",
	}
}

func known(name string) *pcm.Accelerator {
	k, _ := pcm.FindAccelerator(name)
	return &k.Accelerator
}

// TestFilters: each filter excludes what it is for, says why with both values, and lets
// the rest through.
func TestFilters(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Request, *Site)
		filter string // "": it fits
		reason []string
	}{
		{"all fits", func(*Request, *Site) {}, "", nil},
		{"the wanted adapter", func(r *Request, _ *Site) { r.Step.Adapter = "process" }, "", nil},
		{"another adapter", func(r *Request, _ *Site) { r.Step.Adapter = "slurm" }, "adapter", []string{"slurm", "process"}},
		{"a module on process", func(r *Request, _ *Site) { r.Step.Command, r.Step.Module = nil, "x.wasm" }, "adapter", []string{"module", "wasm", "process"}},
		{"a module on wasm", func(r *Request, s *Site) {
			r.Step.Command, r.Step.Module, s.Pool.Adapter = nil, "x.wasm", "wasm"
		}, "", nil},
		{"a command on wasm", func(_ *Request, s *Site) { s.Pool.Adapter = "wasm" }, "adapter", []string{"command", "wasm"}},
		{"the pool's own class", func(r *Request, s *Site) { r.Step.Class, s.Pool.Class = "gpu.a100", "gpu.a100" }, "", nil},
		{"a class with room", func(r *Request, _ *Site) { r.Step.Class = "cpu.large" }, "", nil},
		{"a class that is too large", func(r *Request, s *Site) {
			r.Step.Class, s.Pool.Capacity = "cpu.large", pcm.Resources{CPU: 2000, Memory: 8 << 30}
		}, "class", []string{"cpu.large", "4 cpu", "2 cpu"}},
		{"a class that nobody knows", func(r *Request, _ *Site) { r.Step.Class = "gpu.huge" }, "class", []string{"gpu.huge", "not known"}},
		{"an image", func(r *Request, _ *Site) { r.Step.Image = "debian:12" }, "features", []string{"image", "nothing"}},
		{"the network", func(r *Request, s *Site) {
			r.Step.Network, s.Pool.Features = true, []pcm.Feature{pcm.FeatureCommand, pcm.FeatureExec}
		}, "features", []string{"network", "command, exec"}},
		{"an image and the network", func(r *Request, s *Site) {
			r.Step.Image, r.Step.Network, s.Pool.Features = "debian:12", true, []pcm.Feature{pcm.FeatureCommand, pcm.FeatureImage, pcm.FeatureNetwork}
		}, "", nil},
		{"a label of the peer", func(r *Request, _ *Site) { r.Step.Labels = pcm.Labels{"region": "eu"} }, "", nil},
		{"a label of the pool", func(r *Request, _ *Site) { r.Step.Labels = pcm.Labels{"disk": "ssd", "region": "eu"} }, "", nil},
		{"another value", func(r *Request, _ *Site) { r.Step.Labels = pcm.Labels{"region": "us"} }, "labels", []string{"region=us", "region=eu"}},
		{"no such label", func(r *Request, s *Site) {
			r.Step.Labels, s.Labels, s.Pool.Labels = pcm.Labels{"zone": "1"}, nil, nil
		}, "labels", []string{"zone=1", "none"}},
		{"the pool's label counts", func(r *Request, s *Site) {
			r.Step.Labels, s.Pool.Labels = pcm.Labels{"region": "eu"}, pcm.Labels{"region": "us"}
		}, "labels", []string{"region=eu", "region=us"}},
		{"an accelerator by name", func(r *Request, s *Site) {
			r.Step.Resources.Accelerator, s.Pool.Accelerator = "a100.80g", known("a100.80g")
		}, "", nil},
		{"no accelerator is stated", func(r *Request, _ *Site) { r.Step.Resources.Accelerator = "a100" }, "accelerator", []string{"a100", "states none"}},
		{"another model", func(r *Request, s *Site) {
			r.Step.Resources.Accelerator, s.Pool.Accelerator = "h100", known("a100.80g")
		}, "accelerator", []string{"h100", "nvidia a100.80g"}},
		{"another vendor", func(r *Request, s *Site) {
			r.Step.Resources.Accelerator, s.Pool.Accelerator = "vendor=huawei", known("a100.80g")
		}, "accelerator", []string{"huawei", "nvidia"}},
		{"too little of its memory", func(r *Request, s *Site) {
			r.Step.Resources.Accelerator, s.Pool.Accelerator = "a100.80g", known("a100.40g")
		}, "accelerator", []string{"80GiB", "a100.40g has 40GiB", "40GiB too little"}},
		{"too slow", func(r *Request, s *Site) {
			r.Step.Resources.Accelerator, s.Pool.Accelerator = "fp16 >= 300 TOPS", known("v100.32g")
		}, "accelerator", []string{"300 TOPS at fp16", "does 112", "188 too little"}},
		{"fast enough", func(r *Request, s *Site) {
			r.Step.Resources.Accelerator, s.Pool.Accelerator = "fp16 ≥ 300 TOPS", known("a100.40g")
		}, "", nil},
		{"a precision that is not stated", func(r *Request, s *Site) {
			r.Step.Resources.Accelerator, s.Pool.Accelerator = "fp8 >= 1", known("a100.40g")
		}, "accelerator", []string{"fp8", "doesn't state"}},
		{"a class's accelerator", func(r *Request, s *Site) {
			r.Step.Class, s.Pool.Accelerator = "gpu.a100.80g", known("v100.32g")
			s.Pool.Capacity = pcm.Resources{CPU: 64000, Memory: 256 << 30, GPU: 1}
		}, "accelerator", []string{"a100.80g", "v100.32g"}},
		{"a pool of the class needn't state it", func(r *Request, s *Site) { r.Step.Class, s.Pool.Class = "gpu.a100.80g", "gpu.a100.80g" }, "", nil},
		{"software", func(r *Request, s *Site) {
			r.Step.Resources.Software, s.Pool.Software = []string{"cuda>=12", "python"}, pcm.Software{"cuda": "12.4", "python": ""}
		}, "", nil},
		{"older software", func(r *Request, s *Site) {
			r.Step.Resources.Software, s.Pool.Software = []string{"cuda>=12"}, pcm.Software{"cuda": "11.8"}
		}, "software", []string{"cuda>=12", "cuda 11.8"}},
		{"no such software", func(r *Request, s *Site) {
			r.Step.Resources.Software, s.Pool.Software = []string{"phyton"}, pcm.Software{"python": "3.12"}
		}, "software", []string{"phyton", "python 3.12", "did you mean python?"}},
		{"no software is stated", func(r *Request, _ *Site) { r.Step.Resources.Software = []string{"cuda"} }, "software", []string{"cuda", "states none"}},
		{"a fast network", func(r *Request, s *Site) {
			r.Step.Resources.Bandwidth, r.Step.Resources.Fabric = "100 Gbit/s", "infiniband"
			s.Pool.Network = &pcm.Network{Bandwidth: 200_000, Fabric: "infiniband"}
		}, "", nil},
		{"a slow network", func(r *Request, s *Site) {
			r.Step.Resources.Bandwidth, s.Pool.Network = "100 Gbit/s", &pcm.Network{Bandwidth: 25_000}
		}, "network", []string{"100Gbit/s", "25Gbit/s", "75Gbit/s too little"}},
		{"another fabric", func(r *Request, s *Site) {
			r.Step.Resources.Fabric, s.Pool.Network = "infiniband", &pcm.Network{Fabric: "roce"}
		}, "network", []string{"infiniband", "roce"}},
		{"no network is stated", func(r *Request, _ *Site) { r.Step.Resources.Bandwidth = "1 Gbit/s" }, "network", []string{"1Gbit/s", "doesn't state"}},
		{"disk", func(r *Request, s *Site) { r.Each.Disk, s.Pool.Capacity.Disk, s.Free.Disk = 10<<30, 10<<30, 10<<30 }, "", nil},
		{"too little disk", func(r *Request, s *Site) { r.Each.Disk, s.Pool.Capacity.Disk = 10<<30, 4<<30 }, "disk", []string{"10GiB", "4GiB", "6GiB too little"}},
		{"no disk is stated", func(r *Request, _ *Site) { r.Each.Disk = 10 << 30 }, "disk", []string{"10GiB", "doesn't state"}},
		{"too much memory", func(r *Request, _ *Site) { r.Each.Memory = 16 << 30 }, "size", []string{"16GiB", "8GiB", "8 slots"}},
		{"too much cpu", func(r *Request, _ *Site) { r.Each.CPU = 4001 }, "size", []string{"4.001 cpu", "4 cpu"}},
		{"an accelerator", func(r *Request, _ *Site) { r.Each.GPU = 1 }, "size", []string{"1 gpu"}},
		{"the whole pool", func(r *Request, s *Site) { r.Each = s.Pool.Capacity }, "", nil},
		{"no slots", func(_ *Request, s *Site) { s.Pool.Slots = 0 }, "size", []string{"0 slots"}},
		{"more than one machine of many has", func(r *Request, s *Site) {
			r.Each.CPU, s.Pool.Largest = 2000, &pcm.Resources{CPU: 1000, Memory: 2 << 30}
		}, "size", []string{"2 cpu", "one of this pool has at most 1 cpu, 2GiB", "whole pool has 4 cpu, 8GiB in 8 slots"}},
		{"all of one machine of many", func(r *Request, s *Site) { s.Pool.Largest = &pcm.Resources{CPU: 1000, Memory: 1 << 30} }, "", nil},
		{"an amount that one machine does not state", func(r *Request, s *Site) {
			r.Each.Disk, s.Pool.Capacity.Disk, s.Free.Disk = 4<<30, 8<<30, 8<<30
			s.Pool.Largest = &pcm.Resources{CPU: 1000, Memory: 1 << 30}
		}, "", nil},
		{"more disk than one machine has", func(r *Request, s *Site) {
			r.Each.Disk, s.Pool.Capacity.Disk, s.Pool.Largest = 4<<30, 8<<30, &pcm.Resources{Disk: 1 << 30}
		}, "disk", []string{"4GiB", "one of this pool has at most 1GiB", "3GiB too little"}},
		{"a class that is too large for one machine", func(r *Request, s *Site) {
			r.Step.Class, s.Pool.Largest = "cpu.large", &pcm.Resources{CPU: 2000}
		}, "class", []string{"cpu.large", "4 cpu", "at most 2 cpu"}},
		{"inputs where no files go", func(r *Request, s *Site) {
			r.Step.Inputs, s.Pool.NoFiles = []pcm.Input{{}}, true
		}, "files", []string{"1 inputs and 0 outputs", "no way to bring files"}},
		{"outputs where no files go", func(r *Request, s *Site) { r.Step.Outputs, s.Pool.NoFiles = []string{"out"}, true }, "files", []string{"1 outputs"}},
		{"no files where none go", func(_ *Request, s *Site) { s.Pool.NoFiles = true }, "", nil},
		{"files", func(r *Request, _ *Site) { r.Step.Inputs, r.Step.Outputs = []pcm.Input{{}}, []string{"out"} }, "", nil},
		{"too long", func(_ *Request, s *Site) { s.Pool.MaxTime = (30 * time.Minute).Milliseconds() }, "time", []string{"1h0m0s", "30m0s"}},
		{"just long enough", func(_ *Request, s *Site) { s.Pool.MaxTime = time.Hour.Milliseconds() }, "", nil},
		{"another unit", func(r *Request, _ *Site) { r.Unit = "card-hour" }, "unit", []string{"card-hour", "credit"}},
		{"own account only", func(_ *Request, s *Site) { s.Pool.OwnOnly, s.Pool.Sandbox = true, "none" }, "own account", []string{"own account only", "none"}},
		{"own account", func(r *Request, s *Site) { s.Pool.OwnOnly, s.Account = true, buyer }, "", nil},
		{"the driver's own pool, for another", func(r *Request, _ *Site) { r.Driver = seller }, "self-dealing", []string{"driver"}},
		{"the driver's own pool, for itself", func(_ *Request, s *Site) { s.Account = buyer }, "", nil},
		{"silent", func(_ *Request, s *Site) { s.Silent = SilentFor + time.Second }, "alive", []string{"51s"}},
		{"nearly silent", func(_ *Request, s *Site) { s.Silent = SilentFor }, "", nil},
		{"to be avoided", func(_ *Request, s *Site) { s.Avoid = "lost a task 3 s ago" }, "recent", []string{"lost a task 3 s ago"}},
		{"the first filter is named", func(r *Request, s *Site) { r.Step.Adapter, r.Unit, s.Avoid = "slurm", "card-hour", "busy" }, "adapter", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, s := request(), site()
			c.change(&r, &s)
			ranked, err := Rank(r, []Site{s})
			if err != nil || len(ranked) != 1 {
				t.Fatal(ranked, err)
			}
			got := ranked[0]
			if got.Filter != c.filter || got.OK() != (c.filter == "") {
				t.Fatalf("filter %q (%s), want %q", got.Filter, got.Reason, c.filter)
			}
			if got.OK() != (got.Reason == "") || got.OK() != (got.Room > 0) {
				t.Errorf("room %d, reason %q", got.Room, got.Reason)
			}
			for _, part := range c.reason {
				if !strings.Contains(got.Reason, part) {
					t.Errorf("reason %q does not name %q", got.Reason, part)
				}
			}
		})
	}
}

// TestEveryFilterIsTested: the table above excludes by each filter.
func TestEveryFilterIsTested(t *testing.T) {
	want := []string{"adapter", "features", "files", "class", "labels", "accelerator", "software", "network", "disk", "size", "time", "unit", "own account", "self-dealing", "alive", "recent"}
	var have []string
	for _, f := range Filters {
		have = append(have, f.Name)
	}
	if !slices.Equal(have, want) {
		t.Errorf("the filters are %q: add a new one to TestFilters, and here", have)
	}
}

func named(peer string, price pcm.Micro, free pcm.MilliCPU) Site {
	s := site()
	s.Peer, s.Name = pcm.PeerID(peer), peer
	s.Pool.Price.PerTask = price
	s.Free.CPU = free
	return s
}

func names(ranked []Candidate) string {
	var list []string
	for _, c := range ranked {
		list = append(list, c.Name)
	}
	return strings.Join(list, " ")
}

// TestStrategies: what fits comes first, best first; a full site stays a candidate.
func TestStrategies(t *testing.T) {
	dear, cheap, full := named("dear", 5000, 4000), named("cheap", 1000, 2000), named("full", 100, 0)
	other := named("other", 1, 4000)
	other.Pool.Adapter = "wasm"
	sites := []Site{dear, other, full, cheap}
	for strategy, want := range map[string]string{
		"cheapest": "full cheap dear other", // the best may be full: it is waited for only if all are
		"spread":   "dear cheap full other",
		"":         "full cheap dear other",
	} {
		r := request()
		r.Strategy = strategy
		ranked, err := Rank(r, sites)
		if err != nil {
			t.Fatal(err)
		}
		if got := names(ranked); got != want {
			t.Errorf("%q ranks %s, want %s", strategy, got, want)
		}
		for _, c := range ranked {
			if c.Name == "full" && (!c.OK() || c.Room != 0 || !strings.HasPrefix(c.Reason, "full: 0 cpu")) {
				t.Errorf("the full site is %+v", c)
			}
		}
	}
	r := request()
	r.Strategy = "luckiest"
	if _, err := Rank(r, sites); pcm.ErrorCode(err) != pcm.Invalid || !strings.Contains(err.Error(), "cheapest, spread") {
		t.Errorf("an unknown strategy: %v", err)
	}
	// Equal scores are told apart by peer and pool, whatever the order.
	ranked, err := Rank(request(), []Site{named("b", 1, 4000), named("c", 1, 4000), named("a", 1, 4000)})
	if err != nil || names(ranked) != "a b c" {
		t.Errorf("equal sites rank %s, %v", names(ranked), err)
	}
}

func TestCost(t *testing.T) {
	ranked, err := Rank(request(), []Site{site()})
	if err != nil {
		t.Fatal(err)
	}
	// One core for one hour at 1 credit, and 0.001 for the task.
	if got := ranked[0].Cost; got != 1_001_000 {
		t.Errorf("it costs %s", got)
	}
}

func TestWhy(t *testing.T) {
	rank := func(change func(*Request), sites ...Site) []Candidate {
		t.Helper()
		r := request()
		change(&r)
		ranked, err := Rank(r, sites)
		if err != nil {
			t.Fatal(err)
		}
		return ranked
	}
	same := func(*Request) {}
	five := []Site{named("a", 1, 0), named("b", 1, 0), named("c", 1, 0), named("d", 1, 0), named("e", 1, 0)}
	for _, c := range []struct {
		ranked []Candidate
		want   string
	}{
		{nil, "nobody offers anything"},
		{rank(same, five[:2]...), "every site that fits is full (2 of 2 sites fit)"},
		{rank(func(r *Request) { r.Unit = "gold" }, five[:1]...), "no site fits: a/process: the job pays in gold"},
		{rank(func(r *Request) { r.Unit = "gold" }, five...), "; and 2 more"},
	} {
		if got := Why(c.ranked); !strings.Contains(got, c.want) {
			t.Errorf("%q does not say %q", got, c.want)
		}
	}
}

// drawn makes a random ranking of sites with room and without.
func drawn(t *rapid.T, strategy string) ([]Site, []Candidate, Request) {
	r := request()
	r.Strategy = strategy
	r.Each = pcm.Resources{CPU: 100, Memory: 1 << 20}
	var sites []Site
	for i := range rapid.IntRange(0, 12).Draw(t, "sites") {
		s := named(fmt.Sprintf("peer-%02d", i), pcm.Micro(rapid.IntRange(0, 5).Draw(t, "price")), 0)
		s.Pool.Slots = rapid.IntRange(1, 300).Draw(t, "slots")
		s.Slots = rapid.IntRange(0, s.Pool.Slots).Draw(t, "free slots")
		s.Pool.Capacity.CPU = 100_000
		s.Free.CPU = pcm.MilliCPU(rapid.IntRange(0, 100_000).Draw(t, "free cpu"))
		if rapid.IntRange(0, 5).Draw(t, "excluded") == 0 {
			s.Avoid = "drawn"
		}
		sites = append(sites, s)
	}
	ranked, err := Rank(r, sites)
	if err != nil {
		t.Fatal(err)
	}
	return sites, ranked, r
}

// TestDeal holds what placing relies on, for any sites and any number of tasks.
func TestDeal(t *testing.T) {
	for _, st := range Strategies {
		t.Run(st.Name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				sites, ranked, r := drawn(t, st.Name)
				n := rapid.IntRange(0, 5000).Draw(t, "tasks")
				bound := rapid.IntRange(0, 400).Draw(t, "bound")
				most := func(Candidate) int { return bound }
				if bound == 0 {
					most, bound = nil, pcm.MaxBatch
				}
				portions := st.Deal(n, ranked, most)

				sum, room := 0, 0
				seen := map[pcm.PeerID]bool{}
				for _, c := range ranked {
					room += c.Room
				}
				for _, p := range portions {
					sum += p.Tasks
					if !p.OK() || p.Room == 0 {
						t.Fatalf("%s gets %d tasks and has no room: %s", p.Name, p.Tasks, p.Reason)
					}
					if p.Tasks < 1 || p.Width < 1 || p.Width > p.Room || p.Width > p.Tasks {
						t.Fatalf("%s with room for %d gets %d tasks, %d at once", p.Name, p.Room, p.Tasks, p.Width)
					}
					if p.Tasks > pcm.MaxBatch || p.Tasks > bound {
						t.Fatalf("%s gets %d tasks, at most %d and %d are allowed", p.Name, p.Tasks, pcm.MaxBatch, bound)
					}
					if !r.Each.Times(p.Width).Within(p.Free) || p.Width > p.Slots {
						t.Fatalf("%s has %s and %d slots free and gets %d tasks at once", p.Name, p.Free, p.Slots, p.Width)
					}
					if seen[p.Peer] {
						t.Fatalf("%s gets two portions", p.Name)
					}
					seen[p.Peer] = true
				}
				if sum > n {
					t.Fatalf("%d tasks are dealt of %d", sum, n)
				}
				if n > 0 && room > 0 && sum == 0 {
					t.Fatal("nothing is dealt, though there is room")
				}
				if most == nil && n <= room && !st.Even && sum != n {
					t.Fatalf("%d of %d tasks are dealt, though there is room for %d", sum, n, room)
				}

				// The order in which sites are known does not matter.
				shuffled := slices.Clone(sites)
				rand.New(rand.NewPCG(1, rapid.Uint64().Draw(t, "seed"))).Shuffle(len(shuffled), func(i, j int) {
					shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
				})
				again, err := Rank(r, shuffled)
				if err != nil {
					t.Fatal(err)
				}
				if got := st.Deal(n, again, most); fmt.Sprint(got) != fmt.Sprint(portions) {
					t.Fatalf("in another order of sites it is\n%v, was\n%v", got, portions)
				}
			})
		})
	}
}

// TestSpreadIsEven: where all sites are alike and have room, shares differ by one at most.
func TestSpreadIsEven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := rapid.IntRange(1, 10).Draw(t, "sites")
		room := rapid.IntRange(1, 200).Draw(t, "room")
		n := rapid.IntRange(1, k*room).Draw(t, "tasks")
		var sites []Site
		for i := range k {
			s := named(fmt.Sprintf("peer-%02d", i), 1, 0)
			s.Pool.Slots, s.Slots = room, room
			s.Pool.Capacity.CPU, s.Free.CPU = 1_000_000, 1_000_000
			s.Pool.Capacity.Memory, s.Free.Memory = 1<<50, 1<<50
			sites = append(sites, s)
		}
		r := request()
		r.Strategy = "spread"
		ranked, err := Rank(r, sites)
		if err != nil {
			t.Fatal(err)
		}
		st, err := FindStrategy("spread")
		if err != nil {
			t.Fatal(err)
		}
		sum, least, most := 0, n, 0
		portions := st.Deal(n, ranked, nil)
		for _, p := range portions {
			sum, least, most = sum+p.Tasks, min(least, p.Tasks), max(most, p.Tasks)
		}
		if len(portions) < k {
			least = 0
		}
		if sum != n || most-least > 1 {
			t.Fatalf("%d tasks on %d sites: %d dealt, shares from %d to %d", n, k, sum, least, most)
		}
	})
}
