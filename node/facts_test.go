package node

import (
	"reflect"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
)

// TestFactsOfPools: what the owner says completes what was discovered, and goes before it.
func TestFactsOfPools(t *testing.T) {
	a100, _ := pcm.FindAccelerator("a100.80g")
	found := pcm.Pool{ID: "gpu", Software: pcm.Software{"python": "3.11", "gcc": "12"}, Capacity: pcm.Resources{CPU: 1000, GPU: 4}}
	p := found
	Facts{}.add(&p)
	if !reflect.DeepEqual(p, found) {
		t.Errorf("nothing said makes it %+v", p)
	}
	Facts{
		Class: "gpu.a100.80g", Accelerator: &a100.Accelerator, Software: pcm.Software{"python": "3.12", "cuda": "12.4"},
		Network: &pcm.Network{Fabric: "roce"}, Disk: 1 << 40,
	}.add(&p)
	want := pcm.Pool{
		ID: "gpu", Class: "gpu.a100.80g", Accelerator: &a100.Accelerator, Software: pcm.Software{"python": "3.12", "gcc": "12", "cuda": "12.4"},
		Network: &pcm.Network{Fabric: "roce"}, Capacity: pcm.Resources{CPU: 1000, GPU: 4, Disk: 1 << 40},
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("it is\n%+v, want\n%+v", p, want)
	}
	if found.Software["python"] != "3.11" {
		t.Error("what the back end told was written over")
	}
}

// TestSellerChecksDemands: a seller refuses what its pool is not, whatever the driver thought.
func TestSellerChecksDemands(t *testing.T) {
	v100, _ := pcm.FindAccelerator("v100.32g")
	pool := pcm.Pool{ID: "gpu", Accelerator: &v100.Accelerator, Software: pcm.Software{"cuda": "11.8"}}
	for _, c := range []struct {
		step  pcm.Step
		class string // of the pool
		why   string // "": it is run
	}{
		{pcm.Step{Resources: pcm.Ask{GPU: 1}}, "", ""},
		{pcm.Step{Resources: pcm.Ask{Accelerator: "v100", Software: []string{"cuda>=11"}}}, "", ""},
		{pcm.Step{Resources: pcm.Ask{Accelerator: "a100.80g"}}, "", "pool gpu: wants accelerator a100.80g, the pool has nvidia v100.32g"},
		{pcm.Step{Resources: pcm.Ask{Software: []string{"cuda>=12"}}}, "", "cuda 11.8"},
		{pcm.Step{Resources: pcm.Ask{Fabric: "infiniband"}}, "", "infiniband"},
		{pcm.Step{Network: true}, "", "doesn't offer network"},
		{pcm.Step{Service: &pcm.Service{Port: 80}}, "", "doesn't offer service"},
		{pcm.Step{Image: "debian:12"}, "", "doesn't offer image"},
		{pcm.Step{Class: "gpu.a100.80g"}, "", "a100.80g"},
		{pcm.Step{Class: "gpu.a100.80g"}, "gpu.a100.80g", ""}, // that is what it was sold as
		{pcm.Step{Class: "gpu.a100.80g", Resources: pcm.Ask{Accelerator: "a100.80g"}}, "gpu.a100.80g", "v100.32g"},
	} {
		p := pool
		p.Class = c.class
		err := lacks(c.step, p)
		if c.why == "" && err != nil || c.why != "" && (pcm.ErrorCode(err) != pcm.Refused || !strings.Contains(err.Error(), c.why)) {
			t.Errorf("%+v of a pool of class %q: %v, want %q", c.step, c.class, err, c.why)
		}
	}
}
