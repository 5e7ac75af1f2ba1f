package nodetest_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

const bertsRules = `rules:
  - name: no-public
    public: true
    accept: job.name != "public"
    reason: "${job.name} is not for here"
  - name: no-private
    accept: job.name != "private"
    reason: "${job.name} is not wanted by ${time.zone == '' ? 'nobody' : 'bert'}"
  - name: stays
    public: true
    when: job.name == "data"
    data: peer.name == "anna"
    reason: "no data go to ${peer.name}"
  - name: half
    when: job.name == "cheap"
    price: 50%
  - name: few
    when: job.name == "many"
    limit: {tasks: 2}
`

// named is a job of that name.
func named(name string, s pcm.Spec) pcm.Spec {
	s.Name = name
	return own(s)
}

// hindrance is what an explanation says hinders bert's process pool.
func hindrance(t *testing.T, e api.Explanation) api.CandidateView {
	t.Helper()
	for _, c := range e.Steps[0].Candidates {
		if c.Name == "bert" && c.Pool == "process" {
			return c
		}
	}
	t.Fatalf("bert's pool is not among %+v", e.Steps[0].Candidates)
	return api.CandidateView{}
}

// refused are the reasons in a seller's audit log for which it refused a job's tasks.
func refused(t *testing.T, p *nodetest.Peer, id pcm.JobID) (reasons []string) {
	t.Helper()
	l, err := p.Client.AuditLog(t.Context(), api.AuditQuery{Since: time.Now().Add(-time.Hour), Event: "refused"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range l.Items {
		if e.Job == id {
			reasons = append(reasons, e.Reason)
		}
	}
	return reasons
}

// TestRules: bert is the cheapest, and sells on conditions. Buyers know the public
// ones, and are told why the private ones refuse.
func TestRules(t *testing.T) {
	t.Parallel()
	m := nodetest.New(t,
		nodetest.Spec{Name: "anna", Config: nodetest.Bare("0.002", 8)},
		nodetest.Spec{Name: "bert", Config: nodetest.Bare("0.001", 8) + bertsRules},
		nodetest.Spec{Name: "carl", Config: nodetest.Buyer},
	)
	anna, bert, carl := m.Peer("anna"), m.Peer("bert"), m.Peer("carl")
	explain := func(s pcm.Spec) api.CandidateView {
		t.Helper()
		e, err := carl.ExplainSpec(t.Context(), api.Submission{Spec: s})
		if err != nil {
			t.Fatal(err)
		}
		return hindrance(t, e)
	}
	for _, p := range []*nodetest.Peer{anna, bert} {
		must(t, p, "pool", "price", "process", "per_cpu_hour=0,per_gib_hour=0")
	}

	// A public rule: bert is never asked.
	spec := named("public", nodetest.Command(1, "true"))
	if c := explain(spec); c.OK || c.Filter != "rules" || c.Reason != "rule no-public: public is not for here" {
		t.Errorf("a public rule: %+v", c)
	}
	j := carl.Done(carl.Send(spec, "").ID)
	if task := carl.JobTasks(j.ID)[0]; task.SellerName != "anna" || task.Attempt != 1 || len(refused(t, bert, j.ID)) != 0 {
		t.Errorf("a public rule: it was tried %d times, at last by %s", task.Attempt, task.SellerName)
	}

	// A private one refuses, and its reason is told; its words are not.
	spec = named("private", nodetest.Command(1, "true"))
	const why = "rule no-private: private is not wanted by bert"
	if c := explain(spec); c.OK || c.Filter != "seller" || c.Reason != "not sold: "+why {
		t.Errorf("a private rule: %+v", c)
	}
	j = carl.Done(carl.Send(spec, "").ID)
	at(t, carl, j.ID, "anna", why)
	if told := refused(t, bert, j.ID); len(told) != 1 || told[0] != "not sold: "+why {
		t.Errorf("the audit log has %q", told)
	}
	offers, err := carl.Offers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range offers.Items {
		if text := fmt.Sprint(o.Rules); strings.Contains(text, "private") || o.Name == "bert" && !strings.Contains(text, "no-public") {
			t.Errorf("the offer of %s has the rules %s", o.Name, text)
		}
	}

	// Data go where the rules let them go.
	spec = named("data", nodetest.Command(1, "true"))
	if c := explain(spec); c.OK || c.Reason != "rule stays: no data go to carl" {
		t.Errorf("a rule about data: %+v", c)
	}

	// What is paid is the price by the rules.
	spec = named("cheap", nodetest.Command(1, "true"))
	if c := explain(spec); !c.OK || c.Cost != "0.0005" {
		t.Errorf("a price by rule: %+v", c)
	}
	j = carl.Done(carl.Send(spec, "").ID)
	if at(t, carl, j.ID, "bert", ""); j.Paid != "0.0005" {
		t.Errorf("a price by rule: %s was paid", j.Paid)
	}

	// A limit: two tasks run at bert's, the others elsewhere.
	flag := filepath.Join(m.Dir, "go")
	j = carl.Send(named("many", nodetest.Command(4, "while ! test -e "+flag+"; do sleep 0.05; done")), "")
	nodetest.Eventually(t, "all tasks run, two of them at each", func(ctx context.Context) error {
		for _, p := range []*nodetest.Peer{anna, bert} {
			l, err := p.Attempts(ctx)
			if err != nil {
				return err
			}
			if len(l.Items) != 2 {
				return fmt.Errorf("%d run at %s", len(l.Items), p.Name)
			}
		}
		return nil
	})
	if c := explain(named("many", nodetest.Command(1, "true"))); !c.OK || c.Room != 0 || !strings.Contains(c.Reason, "rule few: at most 2 tasks") {
		t.Errorf("a limit that is reached: %+v", c)
	}
	write(t, flag, "")
	carl.Done(j.ID)
	if told := refused(t, bert, j.ID); len(told) != 0 {
		t.Errorf("tasks over the limit were refused: %q", told)
	}

	if out := must(t, bert, "rules", "show"); !strings.Contains(out, "no-private") || !strings.Contains(out, "limit 2 tasks") {
		t.Errorf("the rules in force:\n%s", out)
	}

	// Rules are read anew; faulty ones are not.
	text, err := os.ReadFile(bert.Config)
	if err != nil {
		t.Fatal(err)
	}
	write(t, bert.Config, strings.Replace(string(text), `job.name != "public"`, `job.nmae != "public"`, 1))
	if r := bert.PCM("rules", "reload"); r.Code != 2 || !strings.Contains(r.Stderr, "did you mean name?") || !strings.Contains(r.Stderr, "stay as they were") {
		t.Errorf("a fault in the rules: %+v", r)
	}
	write(t, bert.Config, strings.Replace(string(text), `job.name != "public"`, `job.name != "other"`, 1))
	if out := must(t, bert, "rules", "reload"); !strings.Contains(out, `job.name != "other"`) {
		t.Errorf("reload shows\n%s", out)
	}
	nodetest.Eventually(t, "carl knows the new rules", func(context.Context) error {
		if c := explain(named("public", nodetest.Command(1, "true"))); !c.OK {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})

	// Who is denied is told so before it asks, and asks again when it is not.
	must(t, bert, "account", "deny", "carl")
	spec = named("any", nodetest.Command(1, "true"))
	if c := explain(spec); c.OK || c.Filter != "seller" || !strings.Contains(c.Reason, "may not buy here") {
		t.Errorf("a denial: %+v", c)
	}
	at(t, carl, carl.Done(carl.Send(spec, "").ID).ID, "anna", "may not buy here")
	must(t, bert, "account", "remove", "carl")
	nodetest.Eventually(t, "carl buys at bert's again", func(ctx context.Context) error {
		j := carl.Done(carl.Send(spec, "").ID)
		if s := carl.JobTasks(j.ID)[0].SellerName; s != "bert" {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			return fmt.Errorf("it ran at %s", s)
		}
		return nil
	})
}

// TestDataStays: bert gives no data to dora, though she is of the buyer's account.
func TestDataStays(t *testing.T) {
	t.Parallel()
	m := nodetest.New(t,
		nodetest.Spec{Name: "bert", Config: nodetest.Bare("0", 4) + `rules:
  - name: stays
    data: peer.name != "dora"
    reason: nothing goes to ${peer.name}
`},
		nodetest.Spec{Name: "carl", Config: nodetest.Buyer},
		nodetest.Spec{Name: "dora", Config: nodetest.Buyer, Same: "carl"},
	)
	carl, dora := m.Peer("carl"), m.Peer("dora")
	flag := filepath.Join(m.Dir, "go")
	j := carl.Send(own(nodetest.Command(1, "echo hello; while ! test -e "+flag+"; do sleep 0.05; done")), "")
	carl.AwaitRunning(j.ID)
	nodetest.Eventually(t, "carl reads the output", func(context.Context) error {
		if r := carl.PCM("job", "logs", string(j.ID), "--follow=false"); r.Code != 0 || !strings.Contains(r.Stdout, "hello") {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	const why = "rule stays: nothing goes to dora"
	if r := dora.PCM("job", "logs", string(j.ID), "--follow=false"); r.Code == 0 || !strings.Contains(r.Stderr, why) || strings.Contains(r.Stdout, "hello") {
		t.Errorf("dora reads the output: %+v", r)
	}
	if r := dora.PCM("exec", string(j.ID), "--", "true"); r.Code == 0 || !strings.Contains(r.Stderr, why) {
		t.Errorf("dora works with the task: %+v", r)
	}
	// Nor can she have tasks run there herself.
	e, err := dora.ExplainSpec(t.Context(), api.Submission{Spec: nodetest.Command(1, "true")})
	if err != nil {
		t.Fatal(err)
	}
	if c := hindrance(t, e); c.OK || c.Reason != "not sold: "+why {
		t.Errorf("dora is told %+v", c)
	}
	write(t, flag, "")
	carl.Done(j.ID)
}

// TestLimitHolds: two peers of one account buy at once, neither knowing of the
// other's tasks yet; together they never run more than the limit.
func TestLimitHolds(t *testing.T) {
	t.Parallel()
	m := nodetest.New(t,
		nodetest.Spec{Name: "bert", Config: nodetest.Bare("0", 8) + "rules: [{name: two, limit: {tasks: 2}}]\n"},
		nodetest.Spec{Name: "carl", Config: nodetest.Buyer},
		nodetest.Spec{Name: "dora", Config: nodetest.Buyer, Same: "carl"},
	)
	bert := m.Peer("bert")
	log := filepath.Join(m.Dir, "log")
	// Each task has a file, and notes how many of those are of processes that live.
	script := "mkdir -p " + log + "; : > " + log + "/$$; n=0; for f in " + log + "/*; do if test -d /proc/${f##*/}; then n=$((n+1)); fi; done; echo $n >> " + log + ".count; sleep 0.3; rm " + log + "/$$"
	jobs := map[*nodetest.Peer]pcm.JobID{}
	for _, p := range []*nodetest.Peer{m.Peer("carl"), m.Peer("dora")} {
		jobs[p] = p.Send(own(nodetest.Command(5, script)), "").ID
	}
	for p, id := range jobs {
		p.Done(id)
	}
	raw, err := os.ReadFile(log + ".count")
	if err != nil {
		t.Fatal(err)
	}
	counts := strings.Fields(string(raw))
	if len(counts) < 10 {
		t.Errorf("%d tasks ran", len(counts))
	}
	for _, n := range counts {
		if n != "1" && n != "2" {
			t.Errorf("%s ran at once", n)
		}
	}
	for p, id := range jobs {
		for _, why := range refused(t, bert, id) {
			if !strings.Contains(why, "rule two: at most 2 tasks") {
				t.Errorf("%s was refused: %s", p.Name, why)
			}
		}
	}
}
