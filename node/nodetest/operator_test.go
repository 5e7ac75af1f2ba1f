package nodetest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

// must runs a command line that has to succeed.
func must(t *testing.T, p *nodetest.Peer, args ...string) string {
	t.Helper()
	r := p.PCM(args...)
	if r.Code != 0 {
		t.Fatalf("pcm %s: %+v", strings.Join(args, " "), r)
	}
	return r.Stdout
}

// at checks that a job's one task was done, by whom, and why not before.
func at(t *testing.T, p *nodetest.Peer, id pcm.JobID, seller, history string) {
	t.Helper()
	task := p.JobTasks(id)[0]
	if task.SellerName != seller || !strings.Contains(strings.Join(task.History, "; "), history) {
		t.Errorf("it ran at %s after %q, want %s after %q", task.SellerName, task.History, seller, history)
	}
}

// TestOperator: what the operator of a seller, bert, who is the cheapest, does takes effect at
// once, on new work only, outlives a restart and is written down.
func TestOperator(t *testing.T) {
	t.Parallel()
	m, anna, bert, carl := three(t)
	pool := func(p *nodetest.Peer, name string) api.OwnPool {
		t.Helper()
		v, err := p.Client.Pool(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	flag := filepath.Join(m.Dir, "go")
	waits := "while ! test -e " + flag + "; do sleep 0.05; done"

	// Cordon: what runs goes on, what comes goes elsewhere.
	runs := carl.Send(own(nodetest.Command(1, waits)), "")
	if task := carl.AwaitRunning(runs.ID); task.SellerName != "bert" {
		t.Fatalf("it runs at %s", task.SellerName)
	}
	must(t, bert, "pool", "cordon", "process", "--reason", "new disk")
	if p := pool(bert, "process"); p.State != api.PoolCordoned || p.Reason != "new disk" || p.Running != 1 || p.ReservedSlots != 1 {
		t.Errorf("pool %+v", p)
	}
	other := carl.Done(carl.Send(own(nodetest.Command(1, "true")), "").ID)
	at(t, carl, other.ID, "anna", "")

	// The settings outlive a kill; so does what runs.
	bert.Kill()
	bert.Up()
	if p := pool(bert, "process"); p.State != api.PoolCordoned || p.Reason != "new disk" {
		t.Errorf("after a restart: %+v", p)
	}
	write(t, flag, "")
	carl.Done(runs.ID)
	first(t, carl, runs.ID)

	// Price, for new trades only.
	must(t, bert, "pool", "uncordon", "process")
	must(t, bert, "pool", "price", "process", "per_task=0.0005,per_cpu_hour=0", "per_gib_hour=0")
	cheap := carl.Done(carl.Send(own(nodetest.Command(1, "true")), "").ID)
	at(t, carl, cheap.ID, "bert", "")
	if cheap.Paid != "0.0005" {
		t.Errorf("at the new price, %s was paid", cheap.Paid)
	}
	must(t, bert, "pool", "price", "process", "default")
	if p := pool(bert, "process"); p.PriceSet || p.Price.PerTask != "0.001" {
		t.Errorf("price %+v", p.Price)
	}

	// Cap: four at once, and two of them fit.
	must(t, bert, "pool", "cap", "process", "slots=2,cpu=1")
	offers, err := carl.Offers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(offers.Items, func(o api.Offer) bool { return o.Name == "bert" && o.Pool.ID == "process" }); i < 0 || pool(bert, "process").Cap.Slots != 2 {
		t.Errorf("offers %+v", offers.Items)
	}
	capped := carl.Send(own(nodetest.Command(4, "while ! test -e "+flag+"2; do sleep 0.05; done")), "")
	nodetest.Eventually(t, "all four run", func(ctx context.Context) error {
		n := 0
		for _, p := range []*nodetest.Peer{anna, bert} {
			l, err := p.Attempts(ctx)
			if err != nil {
				return err
			}
			n += len(l.Items)
		}
		if n != 4 {
			return fmt.Errorf("%d do", n)
		}
		return nil
	})
	if p := pool(bert, "process"); p.Running != 2 {
		t.Errorf("with a cap of two slots, %d run", p.Running)
	}
	write(t, flag+"2", "")
	carl.Done(capped.ID)
	must(t, bert, "pool", "cap", "process", "none")

	// Kill: the task is run elsewhere, and its buyer is told why.
	long := carl.Send(own(nodetest.Command(1, `case "$PWD" in */bert/*) sleep 300;; esac`)), "")
	carl.AwaitRunning(long.ID)
	attempts, err := bert.Attempts(t.Context())
	if err != nil || len(attempts.Items) != 1 || attempts.Items[0].State != "running" || attempts.Items[0].Program != "sh" || attempts.Items[0].LeaseMS <= 0 {
		t.Fatalf("attempts %+v, %v", attempts.Items, err)
	}
	must(t, bert, "task", "kill", string(attempts.Items[0].Trade)+"/0", "--reason", "the fan is loud")
	carl.Done(long.ID)
	at(t, carl, long.ID, "anna", "killed by the seller's operator: the fan is loud")

	// Drain: what doesn't end in time is stopped, and run elsewhere. The site is
	// avoided for a moment after the kill.
	var drained api.Job
	nodetest.Eventually(t, "bert is asked again", func(ctx context.Context) error {
		drained = carl.Send(own(nodetest.Command(1, `case "$PWD" in */bert/*) sleep 300;; esac`)), "")
		carl.AwaitJob(drained.ID, "it has a place", func(j api.Job) bool { return j.Counts.Placed+j.Counts.Done > 0 })
		if task := carl.JobTasks(drained.ID)[0]; task.SellerName != "bert" {
			return fmt.Errorf("it is at %s", task.SellerName)
		}
		return nil
	})
	carl.AwaitRunning(drained.ID)
	if out := must(t, bert, "pool", "drain", "process", "--timeout", "1s", "--wait", "--reason", "move"); !strings.Contains(out, "drained") {
		t.Errorf("drain says %q", out)
	}
	carl.Done(drained.ID)
	at(t, carl, drained.ID, "anna", "its pool process is drained: move")
	must(t, bert, "pool", "uncordon", "process")

	// Deny: refused with the reason, run elsewhere, and not asked again.
	st, err := carl.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	must(t, bert, "account", "deny", string(st.Account), "--note", "unpaid")
	denied := carl.Done(carl.Send(own(nodetest.Command(1, "true")), "").ID)
	at(t, carl, denied.ID, "anna", "may not buy here")
	again := carl.Done(carl.Send(own(nodetest.Command(1, "true")), "").ID)
	if task := carl.JobTasks(again.ID)[0]; task.Attempt != 1 || task.SellerName != "anna" {
		t.Errorf("it was asked again: %+v", task)
	}
	must(t, bert, "account", "remove", string(st.Account))
	must(t, anna, "account", "allow", "bert")
	rules, err := anna.AccountRules(t.Context())
	if err != nil || len(rules.Items) != 1 || rules.Items[0].Name != "bert" {
		t.Errorf("rules %+v, %v", rules.Items, err)
	}

	if r := bert.PCM("pool", "cordon", "proces"); r.Code != 3 || !strings.Contains(r.Stderr, `did you mean "process"`) {
		t.Errorf("a mistyped pool: %+v", r)
	}

	// The doctor compares clocks with the others, and finds one thing wrong: without
	// a sandbox, bert sells to all the same.
	if r := bert.PCM("doctor", "--config", bert.Config); r.Code != 1 || !strings.Contains(r.Stdout, "of the clocks of 2 connected peers") ||
		!strings.Contains(r.Stdout, "3 of 3 voters") || !strings.Contains(r.Stdout, "allow_unsandboxed") || !strings.Contains(r.Stdout, " 1 failure.") {
		t.Errorf("doctor says %+v", r)
	}

	// All of it is written down.
	var log api.List[api.AuditEntry]
	if err := json.Unmarshal([]byte(must(t, bert, "audit", "-o", "json")), &log); err != nil {
		t.Fatal(err)
	}
	count, adopted := map[string]int{}, map[pcm.TradeID]bool{} // what was adopted may end before its spec is here again
	for _, e := range log.Items {
		adopted[e.Trade] = adopted[e.Trade] || e.Event == "adopted"
	}
	for _, e := range log.Items {
		count[e.Event]++
		if e.Who != "" && !strings.HasPrefix(e.Who, "uid ") {
			t.Errorf("who: %+v", e)
		}
		if e.Event == "ended" && (e.Task == nil || e.Buyer != st.Account || e.Outcome == "" || !adopted[e.Trade] && (e.Program != "sh" || !e.Command.Valid())) {
			t.Errorf("entry %+v", e)
		}
	}
	for _, event := range []string{"awarded", "adopted", "started", "ended", "killed", "refused", "kill", "cordon", "uncordon", "price", "cap", "drain", "deny", "unrule"} {
		if count[event] == 0 {
			t.Errorf("the audit log has no %s: %v", event, count)
		}
	}
	one, err := bert.AuditLog(t.Context(), api.AuditQuery{Since: time.Now().Add(-time.Hour), Event: "refused", Account: string(st.Account)}, 0)
	if err != nil || len(one.Items) != 1 || !strings.Contains(one.Items[0].Reason, "may not buy here") {
		t.Errorf("refused: %+v, %v", one.Items, err)
	}
	awaitGone(t, bert)
	m.Verify()
}
