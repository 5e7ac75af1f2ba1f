package rest

import (
	"slices"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

func TestCompare(t *testing.T) {
	pool := func(id string, slots int, cpu pcm.MilliCPU, memory pcm.Bytes, change func(*pcm.Pool)) pcm.Pool {
		each := pcm.Resources{CPU: cpu, Memory: memory}
		p := pcm.Pool{ID: pcm.PoolID(id), Slots: slots, Capacity: each.Times(slots), Labels: pcm.Labels{}}
		if slots > 1 {
			p.Largest = &each
		}
		if change != nil {
			change(&p)
		}
		return p
	}
	a := []pcm.Pool{pool("small", 8, 1000, 2<<30, nil), pool("big", 1, 16000, 64<<30, func(p *pcm.Pool) { p.Class, p.Labels["region"] = "cpu.large", "north" })}
	b := []pcm.Pool{pool("s1", 3, 1000, 2<<30, func(p *pcm.Pool) { p.Labels["region"] = "south" }), pool("s2", 4, 1000, 2<<30, nil), pool("card", 2, 4000, 32<<30, func(p *pcm.Pool) {
		p.Capacity.GPU, p.Largest.GPU, p.Accelerator = 2, 1, &pcm.Accelerator{Vendor: "nvidia", Model: "a100"}
	})}
	want := []description.Difference{
		{Of: "size", Name: "1 cpu, 2GiB", A: "small ×8", B: "s1 ×3, s2 ×4"},
		{Of: "size", Name: "16 cpu, 64GiB", A: "big ×1"},
		{Of: "size", Name: "4 cpu, 32GiB, 1 gpu, nvidia a100", B: "card ×2"},
		{Of: "at most", Name: "cpu", A: "16", B: "4"},
		{Of: "at most", Name: "memory", A: "64GiB", B: "32GiB"},
		{Of: "at most", Name: "gpu", A: "0", B: "1"},
		{Of: "class", Name: "cpu.large", A: "big"},
		{Of: "label", Name: "region", A: "north", B: "south"},
	}
	if got := Compare(a, b); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	if got := Compare(a, a); len(got) != 0 {
		t.Errorf("a back end differs from itself: %+v", got)
	}
	if got := Compare(nil, nil); len(got) != 0 {
		t.Errorf("nothing differs from nothing: %+v", got)
	}
}
