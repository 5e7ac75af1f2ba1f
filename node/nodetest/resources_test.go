package nodetest_test

import (
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

// TestDemands: a job that asks for what only the dearer seller states runs there,
// and its explanation says what the other lacks.
func TestDemands(t *testing.T) {
	const facts = `facts:
  process:
    software: [frob 2.1]
    bandwidth: 25 Gbit/s
    fabric: roce
    disk: 100GiB
`
	m := nodetest.New(t,
		nodetest.Spec{Name: "anna", Config: nodetest.Seller("0.001")},
		nodetest.Spec{Name: "bert", Config: facts + nodetest.Seller("0.002")},
		nodetest.Spec{Name: "carl", Config: nodetest.Buyer},
	)
	carl := m.Peer("carl")
	s := nodetest.Command(2, "echo done")
	s.Steps[0].Resources = pcm.Ask{Software: []string{"frob>=2"}, Bandwidth: "10 Gbit/s", Fabric: "roce", Disk: "1GiB"}
	j := carl.Done(carl.Send(s, "").ID)
	for _, task := range carl.JobTasks(j.ID) {
		if task.SellerName != "bert" {
			t.Errorf("task %d ran at %s", task.Index, task.SellerName)
		}
	}
	for why, change := range map[string]func(*pcm.Ask){
		"wants software frob>=2, the pool states none":      func(*pcm.Ask) {},
		"wants software frob>=3, the pool has frob 2.1":     func(a *pcm.Ask) { a.Software = []string{"frob>=3"} },
		"model=a100, memory >= 80GiB, the pool states none": func(a *pcm.Ask) { *a = pcm.Ask{Accelerator: "a100.80g"} },
		"the whole pool has 100GiB: 900GiB too little":      func(a *pcm.Ask) { a.Disk = "1000GiB" },
		"wants a network of 100Gbit/s, the pool has 25Gbi":  func(a *pcm.Ask) { a.Bandwidth = "100 Gbit/s" },
	} {
		asks := s
		asks.Steps = append([]pcm.Step(nil), s.Steps...)
		change(&asks.Steps[0].Resources)
		e, err := carl.ExplainSpec(t.Context(), api.Submission{Spec: asks})
		if err != nil {
			t.Fatal(err)
		}
		said := false
		for _, c := range e.Steps[0].Candidates {
			said = said || strings.Contains(c.Reason, why)
		}
		if !said {
			t.Errorf("nobody lacks %q: %+v", why, e.Steps[0].Candidates)
		}
	}
	m.Verify()
}
