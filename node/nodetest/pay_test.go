package nodetest_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

// Who wants to look at results before paying says so in the job. Until then its buyer disputes
// or pays by hand, whether the seller is in the own cell or another one, also after a crash.
func TestPayAfter(t *testing.T) {
	for name, specs := range map[string][]nodetest.Spec{
		"home": {{Name: "buyer", Config: nodetest.Buyer}, {Name: "seller", Config: nodetest.Bare("0.5", 2)}},
		"away": {{Name: "buyer", Config: nodetest.Buyer}, {Name: "shop", Config: nodetest.Bare("0.5", 2)}},
	} {
		t.Run(name, func(t *testing.T) {
			var m *nodetest.Mesh
			if name == "home" {
				m = nodetest.New(t, specs...)
			} else {
				m = overseas(t, specs...)
			}
			buyer := m.Peer("buyer")
			trades := func(id pcm.JobID, state pcm.AttemptState, count int) []api.Trade {
				t.Helper()
				var list []api.Trade
				nodetest.Eventually(t, fmt.Sprintf("%d tasks of %s are %s", count, id, state), func(ctx context.Context) error {
					l, err := buyer.Trades(ctx, api.Query{Job: id})
					n := 0
					for _, tr := range l.Items {
						n += tr.States[state]
					}
					if list = l.Items; err == nil && n != count {
						err = fmt.Errorf("%d are: %+v", n, list)
					}
					return err
				})
				return list
			}

			long := nodetest.Command(2, "echo $PCM_TASK_INDEX")
			long.PayAfter = "24h"
			id := sendLater(buyer, long)
			j := buyer.AwaitJob(id, "done", api.Ended)
			if j.Settled || j.Paid == "0" || j.PayAt.Sub(j.EndedAt).Hours() != 24 {
				t.Errorf("it is %+v", j)
			}
			trades(id, pcm.AttemptFinished, 2)
			if r := buyer.PCM("job", "describe", string(id)); !strings.Contains(r.Stdout, "pcm trade dispute") {
				t.Errorf("describe does not say what can be done: %s", r.Stdout)
			}

			// Neither a crash of its driver nor what is paid at once in the meantime makes it pay.
			buyer.Kill()
			buyer.Up()
			paid := buyer.Send(nodetest.Command(1, "true"), "")
			buyer.Done(paid.ID)
			trades(id, pcm.AttemptFinished, 2)

			tasks := buyer.JobTasks(id)
			first, second := string(tasks[0].Trade), string(tasks[1].Trade) // most of the time one trade has both
			if r := buyer.PCM("trade", "dispute", first, "--tasks", "0", "--reason", "it says 0"); r.Code != 0 {
				t.Errorf("dispute: %+v", r)
			}
			trades(id, pcm.AttemptDisputed, 1)
			if r := buyer.PCM("trade", "pay", second, "--tasks", "1"); r.Code != 0 {
				t.Errorf("pay: %+v", r)
			}
			trades(id, pcm.AttemptSettled, 1)
			trades(id, pcm.AttemptDisputed, 1)
			if r := buyer.PCM("trade", "pay", first); r.Code != 0 {
				t.Errorf("pay for what was in dispute: %+v", r)
			}
			buyer.Done(id)

			// What nobody disputes is paid by itself, and what is paid can't be disputed.
			short := nodetest.Command(2, "echo $PCM_TASK_INDEX")
			short.PayAfter = "10ms"
			id = buyer.Send(short, "").ID
			buyer.Done(id)
			list := trades(id, pcm.AttemptSettled, 2)
			if r := buyer.PCM("trade", "dispute", string(list[0].ID), "--reason", "too late"); r.Code == 0 || !strings.Contains(r.Stderr, "pay_after") {
				t.Errorf("dispute of what is paid: %+v", r)
			}
			sound(t, m.Peers...)
		})
	}
}

// What was disputed while it was unpaid stays unpaid when the time to pay has come.
func TestPayAfterLeavesDisputes(t *testing.T) {
	m := nodetest.New(t, nodetest.Spec{Name: "buyer", Config: nodetest.Buyer}, nodetest.Spec{Name: "seller", Config: nodetest.Bare("0.5", 2)})
	buyer := m.Peer("buyer")
	for _, window := range []pcm.Duration{"3s", "15s", "75s"} { // a slow machine needs a long one
		s := nodetest.Command(2, "echo $PCM_TASK_INDEX")
		s.PayAfter = window
		id := sendLater(buyer, s)
		buyer.AwaitJob(id, "done", api.Ended)
		l, err := buyer.Trades(t.Context(), api.Query{Job: id})
		if err != nil || len(l.Items) != 1 {
			t.Fatalf("%+v: %v", l, err)
		}
		trade := string(l.Items[0].ID)
		if _, err := buyer.ActOnTrade(t.Context(), trade, "dispute", api.TasksRequest{Tasks: "0", Reason: "no"}); pcm.ErrorCode(err) == pcm.Conflict {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		nodetest.Eventually(t, "the other task is paid", func(ctx context.Context) error {
			tr, err := buyer.Trade(ctx, trade)
			switch {
			case err != nil:
			case tr.States[pcm.AttemptDisputed] != 1:
				return nodetest.Final(fmt.Errorf("what was in dispute was paid: %+v", tr))
			case tr.States[pcm.AttemptSettled] != 1:
				err = fmt.Errorf("it is %+v", tr)
			}
			return err
		})
		return
	}
	t.Fatal("no dispute came in time")
}

// sendLater submits a job that needs the rules of this release, to which a new cell comes at once.
func sendLater(p *nodetest.Peer, s pcm.Spec) (id pcm.JobID) {
	p.T.Helper()
	nodetest.Eventually(p.T, "its cell has the rules for it", func(ctx context.Context) error {
		j, err := p.Submit(ctx, api.Submission{ID: pcm.NewJobID(), Spec: s})
		if id = j.ID; pcm.ErrorCode(err) != pcm.Unavailable && err != nil {
			return nodetest.Final(err)
		}
		return err
	})
	return id
}
