package nodetest_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

func TestMain(m *testing.M) { nodetest.Main(m) }

// TestJobs runs jobs on one mesh of three peers of three accounts: two sell, one buys.
func TestJobs(t *testing.T) {
	m := nodetest.New(t,
		nodetest.Spec{Name: "anna", Config: nodetest.Seller("0.001")},
		nodetest.Spec{Name: "bert", Config: nodetest.Seller("0.002")},
		nodetest.Spec{Name: "carl", Config: nodetest.Buyer},
	)
	anna, bert, carl := m.Peer("anna"), m.Peer("bert"), m.Peer("carl")
	part := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			outer := m.T
			defer func() { m.T, anna.T, bert.T, carl.T = outer, outer, outer, outer }()
			m.T, anna.T, bert.T, carl.T = t, t, t, t
			f(t)
			m.Verify()
		})
	}

	part("each peer submits", func(t *testing.T) {
		for _, p := range m.Peers {
			j := p.Done(p.Send(nodetest.Command(1, "echo from $PCM_TASK_INDEX of $PCM_TASK_COUNT"), "").ID)
			if j.Paid == "0" {
				t.Errorf("%s paid nothing", p.Name)
			}
			if got := read(t, p.Get(j.ID), "run/0/stdout"); got != "from 0 of 1\n" {
				t.Errorf("%s got %q", p.Name, got)
			}
		}
	})

	part("an array is spread", func(t *testing.T) {
		s := nodetest.Command(50, "echo $PCM_TASK_INDEX")
		s.Strategy = "spread"
		j := carl.Done(carl.Send(s, "").ID)
		sellers := map[string]int{}
		for _, task := range carl.JobTasks(j.ID) {
			sellers[task.SellerName]++
		}
		if sellers["anna"] < 15 || sellers["bert"] < 15 {
			t.Errorf("tasks ran at %v", sellers)
		}
		dir := carl.Get(j.ID)
		for i := range 50 {
			if got, want := read(t, dir, fmt.Sprintf("run/%d/stdout", i)), fmt.Sprintln(i); got != want {
				t.Errorf("task %d wrote %q", i, got)
			}
		}
	})

	part("cheapest fills the cheapest", func(t *testing.T) {
		j := carl.Done(carl.Send(nodetest.Command(4, "true"), "").ID)
		for _, task := range carl.JobTasks(j.ID) {
			if task.SellerName != "anna" {
				t.Errorf("task %d ran at %s", task.Index, task.SellerName)
			}
		}
	})

	part("run ends as its task does", func(t *testing.T) {
		if r := carl.PCM("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7"); r.Code != 7 || r.Stdout != "out\n" || !strings.HasPrefix(r.Stderr, "err\n") {
			t.Errorf("%+v", r)
		}
		if r := carl.PCM("run", "--", "/no/such/program"); r.Code == 0 || !strings.Contains(r.Stderr, "/no/such/program") {
			t.Errorf("a program that is not there: %+v", r)
		}
		r := carl.PCM("run", "-d", "--", "true")
		if r.Code != 0 || !pcm.JobID(strings.TrimSpace(r.Stdout)).Valid() {
			t.Fatalf("%+v", r)
		}
		carl.Done(pcm.JobID(strings.TrimSpace(r.Stdout)))
	})

	part("a module runs where WebAssembly is sold", func(t *testing.T) {
		module, err := filepath.Abs("../../cmd/demo/primes.wasm")
		if err != nil {
			t.Fatal(err)
		}
		j := carl.Done(carl.Send(pcm.Spec{Steps: []pcm.Step{{Name: "run", Count: 3, Module: module}}}, "").ID)
		dir := carl.Get(j.ID)
		for i := range 3 {
			if got := read(t, dir, fmt.Sprintf("run/%d/stdout", i)); got != "9592\n" {
				t.Errorf("task %d wrote %q", i, got)
			}
		}
	})

	part("files and folders travel", func(t *testing.T) {
		base := t.TempDir()
		for name, text := range map[string]string{
			"in/a.txt": "alpha\n", "in/deep/b.txt": "beta\n", "nothing.txt": "", "big.bin": strings.Repeat("0123456789abcdef", 1<<18),
		} {
			write(t, filepath.Join(base, name), text)
		}
		if err := os.Mkdir(filepath.Join(base, "hollow"), 0o755); err != nil {
			t.Fatal(err)
		}
		s := nodetest.Command(2, `set -e
cat in/a.txt in/deep/b.txt > joined.txt
test -f nothing.txt && test ! -s nothing.txt
test -d hollow && test -z "$(ls hollow)"
cksum < renamed > tree/sum 2>/dev/null || { mkdir -p tree/empty; cksum < renamed > tree/sum; }
: > tree/none
cp renamed tree/copy`)
		s.Steps[0].Inputs = []pcm.Input{{Source: "in"}, {Source: "nothing.txt"}, {Source: "hollow"}, {Source: "big.bin", Target: "renamed"}}
		s.Steps[0].Outputs = []string{"joined.txt", "tree"}
		j := carl.Done(carl.Send(s, base).ID)
		dir := carl.Get(j.ID)
		for i := range 2 {
			out := fmt.Sprintf("run/%d/out/", i)
			if got := read(t, dir, out+"joined.txt"); got != "alpha\nbeta\n" {
				t.Errorf("joined.txt is %q", got)
			}
			if got := read(t, dir, out+"tree/none"); got != "" {
				t.Errorf("tree/none is %q", got)
			}
			if got := read(t, dir, out+"tree/copy"); len(got) != 4<<20 || got[:16] != "0123456789abcdef" {
				t.Errorf("tree/copy has %d bytes", len(got))
			}
			if info, err := os.Stat(filepath.Join(dir, out, "tree/empty")); err != nil || !info.IsDir() {
				t.Errorf("tree/empty: %v", err)
			}
		}
	})

	part("logs are live from another peer", func(t *testing.T) {
		// The task goes on only when the test has seen its first line at another peer
		// and said so, by way of a file: so the line came before the end.
		flag := filepath.Join(t.TempDir(), "go")
		outside := nodetest.Command(1, "echo first; while ! test -e "+flag+"; do sleep 0.05; done; echo second")
		outside.Steps[0].TimeLimit = "60s"
		// Sandboxed tasks don't see the test's folder: this part has a seller of its own.
		dora := m.Add(nodetest.Spec{Name: "dora", Config: nodetest.Bare("0.001", 4) + "labels:\n  site: dora\n"})
		dora.T = t
		dora.Up("--join", anna.Token())
		outside.Steps[0].Labels = pcm.Labels{"site": "dora"}
		j := carl.Send(outside, "")
		carl.AwaitRunning(j.ID)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		cmd := carl.Command(ctx, "job", "logs", "-f", string(j.ID))
		var complaint bytes.Buffer
		cmd.Stderr = &complaint
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(pipe)
		if line, err := lines.ReadString('\n'); line != "first\n" {
			t.Fatalf("the first line is %q, %v", line, err)
		}
		if now, err := carl.Job(ctx, string(j.ID)); err != nil || api.Ended(now) {
			t.Fatalf("the line came when the job was %+v, %v", now, err)
		}
		write(t, flag, "")
		rest, err := io.ReadAll(lines)
		if err != nil || string(rest) != "second\n" {
			t.Errorf("then came %q, %v", rest, err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, complaint.Bytes())
		}
		carl.Done(j.ID)
		if r := bert.PCM("job", "logs", string(j.ID)); r.Code != 3 || strings.Contains(r.Stdout, "first") {
			t.Errorf("a peer that the job does not concern reads its log: %+v", r)
		}
		// The peer goes again: members that are gone for good are not voters for ever.
		if r := dora.PCM("leave"); r.Code != 0 {
			t.Errorf("leave: %+v", r)
		}
		<-dora.Ended()
		m.Peers = slices.DeleteFunc(m.Peers, func(p *nodetest.Peer) bool { return p == dora })
	})

	part("a failed task is tried again, with reasons", func(t *testing.T) {
		s := nodetest.Command(1, "echo trying >&2; exit 7")
		s.Steps[0].Retries = 2
		j := carl.AwaitJob(carl.Send(s, "").ID, "settled", api.Settled)
		task := carl.JobTasks(j.ID)[0]
		if j.State != pcm.JobFailed || task.Attempt != 3 || task.ExitCode == nil || *task.ExitCode != 7 || len(task.History) != 2 {
			t.Fatalf("job %+v\ntask %+v", j, task)
		}
		for _, h := range task.History {
			if !strings.Contains(h, "exit code 7") {
				t.Errorf("history says %q", h)
			}
		}
		if trades := trades(t, carl, j.ID); len(trades) != 3 {
			t.Errorf("%d trades", len(trades))
		}
		if got := read(t, carl.Get(j.ID), "run/0/stderr"); got != "trying\n" {
			t.Errorf("stderr is %q", got)
		}
	})

	part("steps wait for those that they need", func(t *testing.T) {
		s := pcm.Spec{Name: "chain", Steps: []pcm.Step{
			{Name: "good", Command: []string{"true"}},
			{Name: "bad", Command: []string{"false"}, Needs: []string{"good"}},
			{Name: "never", Command: []string{"true"}, Needs: []string{"bad"}},
		}}
		j := carl.AwaitJob(carl.Send(s, "").ID, "settled", api.Settled)
		tasks := carl.JobTasks(j.ID)
		if tasks[0].State != pcm.TaskDone || tasks[1].State != pcm.TaskFailed || tasks[2].State != pcm.TaskCancelled || j.State == pcm.JobDone {
			t.Errorf("job %+v, tasks %+v", j, tasks)
		}
		if !strings.Contains(j.Reason, "bad") {
			t.Errorf("reason %q does not name the step", j.Reason)
		}
	})

	part("cancel a running job", func(t *testing.T) {
		j := carl.Send(nodetest.Command(2, "sleep 600"), "")
		carl.AwaitRunning(j.ID)
		if _, err := bert.Cancel(t.Context(), string(j.ID), "no longer of use"); pcm.ErrorCode(err) != pcm.Forbidden {
			t.Errorf("a peer of another account cancels: %v", err)
		}
		if _, err := carl.Cancel(t.Context(), string(j.ID), "no longer of use"); err != nil {
			t.Fatal(err)
		}
		j = carl.AwaitJob(j.ID, "settled", api.Settled)
		if j.State != pcm.JobCancelled || j.Reason != "no longer of use" || j.Counts.Cancelled != 2 || j.Held != "0" {
			t.Errorf("job %+v", j)
		}
	})

	part("a time limit ends a task", func(t *testing.T) {
		s := nodetest.Command(1, "echo on; exec sleep 600")
		s.Steps[0].TimeLimit = "1s"
		j := carl.AwaitJob(carl.Send(s, "").ID, "settled", api.Settled)
		task := carl.JobTasks(j.ID)[0]
		if j.State != pcm.JobFailed || task.State != pcm.TaskFailed || !strings.Contains(task.Reason, "1s") {
			t.Errorf("job %+v\ntask %+v", j, task)
		}
		if got := read(t, carl.Get(j.ID), "run/0/stdout"); got != "on\n" {
			t.Errorf("stdout is %q", got)
		}
	})

	part("a deadline ends a job", func(t *testing.T) {
		s := nodetest.Command(1, "sleep 600")
		s.Deadline = "2s"
		j := carl.AwaitJob(carl.Send(s, "").ID, "settled", api.Settled)
		if j.State != pcm.JobCancelled || !strings.Contains(j.Reason, "deadline") {
			t.Errorf("job %+v", j)
		}
	})

	part("a budget that is too small", func(t *testing.T) {
		s := nodetest.Command(1, "true")
		s.Budget = "0.000001"
		j := carl.Send(s, "")
		j = carl.AwaitJob(j.ID, "waits with a reason", func(j api.Job) bool { return strings.Contains(j.Waiting, "budget") })
		if _, err := carl.Cancel(t.Context(), string(j.ID), ""); err != nil {
			t.Fatal(err)
		}
		if j = carl.AwaitJob(j.ID, "settled", api.Settled); j.State != pcm.JobCancelled || j.Paid != "0" {
			t.Errorf("job %+v", j)
		}
	})

	part("nobody has what it asks for", func(t *testing.T) {
		s := nodetest.Command(1, "true")
		s.Steps[0].Resources.Memory = "4TiB"
		e, err := carl.ExplainSpec(t.Context(), api.Submission{Spec: s})
		if err != nil {
			t.Fatal(err)
		}
		excluded := map[string]bool{}
		for _, c := range e.Steps[0].Candidates {
			excluded[c.Name+" "+c.Filter] = true
			if c.OK || c.Reason == "" {
				t.Errorf("candidate %+v", c)
			}
		}
		if !excluded["anna size"] || !excluded["bert size"] || !excluded["anna adapter"] {
			t.Errorf("excluded: %v", excluded)
		}
		j := carl.Send(s, "")
		j = carl.AwaitJob(j.ID, "waits with a reason", func(j api.Job) bool { return strings.Contains(j.Waiting, "a task needs 0.1 cpu, 4TiB") })
		if r := carl.PCM("job", "explain", string(j.ID)); !strings.Contains(r.Stdout, "size: a task needs") {
			t.Errorf("explain: %+v", r)
		}
		if r := carl.PCM("job", "stop", string(j.ID)); r.Code != 0 {
			t.Errorf("stop: %+v", r)
		}
		carl.AwaitJob(j.ID, "settled", api.Settled)
	})
}

// TestFull: what finds no room waits, says why, and runs when there is room; a
// waiting job can be cancelled; credit has a limit.
func TestFull(t *testing.T) {
	t.Parallel()
	m := nodetest.New(t,
		nodetest.Spec{Name: "anna", Config: nodetest.Bare("1", 1) + "credit_limit: '1'\n"},
		nodetest.Spec{Name: "carl", Config: nodetest.Buyer},
	)
	anna, carl := m.Peer("anna"), m.Peer("carl")
	flag := filepath.Join(m.Dir, "go")
	script := "while ! test -e " + flag + "; do sleep 0.05; done"
	first := anna.Send(nodetest.Command(1, script), "") // the seller's own: it owes nobody
	anna.AwaitRunning(first.ID)
	second := anna.Send(nodetest.Command(1, "true"), "")
	third := anna.Send(nodetest.Command(3, "true"), "")
	anna.AwaitJob(second.ID, "waits with a reason", func(j api.Job) bool { return strings.Contains(j.Waiting, "full") })
	if _, err := anna.Cancel(t.Context(), string(third.ID), "changed my mind"); err != nil {
		t.Fatal(err)
	}
	if j := anna.AwaitJob(third.ID, "settled", api.Settled); j.State != pcm.JobCancelled || j.Counts.Cancelled != 3 || j.Paid != "0" {
		t.Errorf("job %+v", j)
	}
	write(t, flag, "")
	anna.Done(first.ID)
	anna.Done(second.ID)

	refused := carl.Send(nodetest.Command(1, "true"), "")
	carl.AwaitJob(refused.ID, "waits with a reason", func(j api.Job) bool { return strings.Contains(j.Waiting, "credit") })
	if _, err := carl.Cancel(t.Context(), string(refused.ID), ""); err != nil {
		t.Fatal(err)
	}
	carl.AwaitJob(refused.ID, "settled", api.Settled)
	m.Verify()
}

func trades(t *testing.T, p *nodetest.Peer, job pcm.JobID) []api.Trade {
	t.Helper()
	l, err := p.Trades(t.Context(), api.Query{Job: job})
	if err != nil {
		t.Fatal(err)
	}
	return l.Items
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Error(err)
	}
	return string(data)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
