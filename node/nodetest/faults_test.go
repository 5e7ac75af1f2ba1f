package nodetest_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

// three is the mesh of most tests of faults: bert is the cheaper seller, anna leads.
func three(t *testing.T) (m *nodetest.Mesh, anna, bert, carl *nodetest.Peer) {
	t.Helper()
	m = nodetest.New(t,
		nodetest.Spec{Name: "anna", Config: nodetest.Bare("0.002", 0) + "labels:\n  site: anna\n"},
		nodetest.Spec{Name: "bert", Config: nodetest.Bare("0.001", 0)},
		nodetest.Spec{Name: "carl", Config: nodetest.Buyer},
	)
	return m, m.Peer("anna"), m.Peer("bert"), m.Peer("carl")
}

// stamps appends the time since boot, which nobody can set, and the place where
// the task runs, to a file, some times at each place.
const stamps = `
case "$PWD" in */bert/*) n=4000;; *) n=20;; esac
while test $n -gt 0; do
  read up rest < /proc/uptime
  echo "$up $PWD" >> FILE
  n=$((n-1)); sleep 0.05
done
echo complete`

// TestSellerKilled: the task of a seller that is killed is lost, runs elsewhere,
// never at both at once, and one result is paid.
func TestSellerKilled(t *testing.T) {
	t.Parallel()
	m, _, bert, carl := three(t)
	file := filepath.Join(m.Dir, "stamps")
	j := carl.Send(nodetest.Command(1, strings.ReplaceAll(stamps, "FILE", file)), "")
	if task := carl.AwaitRunning(j.ID); task.SellerName != "bert" {
		t.Fatalf("it runs at %s", task.SellerName)
	}
	killed := time.Now()
	bert.Kill()
	carl.AwaitJob(j.ID, "runs again", func(j api.Job) bool {
		task := carl.JobTasks(j.ID)[0]
		return task.Attempt == 2 && task.SellerName == "anna"
	})
	if took := time.Since(killed); took > 15*time.Second {
		t.Errorf("it ran again only %s after the kill", took)
	}
	j = carl.Done(j.ID)
	t.Logf("settled %.1f s after the kill", time.Since(killed).Seconds())
	task := carl.JobTasks(j.ID)[0]
	if task.Attempt != 2 || len(task.History) != 1 || !strings.Contains(task.History[0], "did not renew the lease") {
		t.Errorf("task %+v", task)
	}
	paid := 0
	for _, tr := range trades(t, carl, j.ID) {
		paid += tr.States[pcm.AttemptSettled]
		if (tr.SellerName == "bert") != (tr.States[pcm.AttemptLost] == 1) || tr.SellerName == "bert" && tr.Paid != "0" {
			t.Errorf("trade %+v", tr)
		}
	}
	if paid != 1 {
		t.Errorf("%d results are paid", paid)
	}
	apart(t, file)
	bert.Up()
	m.AwaitWhole()
	m.Verify()
}

// TestSellerFrozen: a daemon that stands still, and wakes when all is over, has no
// say any more: its supervisor ended the task in time, and nothing is paid twice.
func TestSellerFrozen(t *testing.T) {
	t.Parallel()
	m, _, bert, carl := three(t)
	file := filepath.Join(m.Dir, "stamps")
	j := carl.Send(nodetest.Command(1, strings.ReplaceAll(stamps, "FILE", file)), "")
	if task := carl.AwaitRunning(j.ID); task.SellerName != "bert" {
		t.Fatalf("it runs at %s", task.SellerName)
	}
	bert.Freeze()
	j = carl.Done(j.ID)
	bert.Thaw()
	if task := carl.JobTasks(j.ID)[0]; task.Attempt != 2 || task.SellerName != "anna" {
		t.Errorf("task %+v", task)
	}
	apart(t, file)
	// It is a good seller again.
	nodetest.Eventually(t, "bert has caught up", func(ctx context.Context) error {
		there, err := bert.Job(ctx, string(j.ID))
		if err == nil && !api.Settled(there) {
			err = fmt.Errorf("it sees %+v", there)
		}
		return err
	})
	next := carl.Done(carl.Send(nodetest.Command(1, "true"), "").ID)
	if task := carl.JobTasks(next.ID)[0]; task.SellerName != "bert" || task.Attempt != 1 {
		t.Errorf("task %+v", task)
	}
	awaitGone(t, bert)
	m.Verify()
}

// apart checks that the task whose stamps stand in a file did not run at two places at once.
func apart(t *testing.T, file string) {
	t.Helper()
	last := map[bool]float64{} // by whether it was at bert
	first := map[bool]float64{}
	for line := range strings.Lines(read(t, filepath.Dir(file), filepath.Base(file))) {
		up, where, _ := strings.Cut(strings.TrimSpace(line), " ")
		at, err := strconv.ParseFloat(up, 64)
		if err != nil {
			t.Fatal(err)
		}
		atBert := strings.Contains(where, "/bert/")
		if first[atBert] == 0 {
			first[atBert] = at
		}
		last[atBert] = at
	}
	if last[true] == 0 || first[false] == 0 || last[true] >= first[false] {
		t.Errorf("it ran at bert until %.2f s, at anna from %.2f s since boot", last[true], first[false])
	}
	t.Logf("bert's supervisor ended it %.2f s before it began at anna", first[false]-last[true])
}

// TestSellerRestarts: a task outlives its seller's daemon, and a new daemon takes it on.
func TestSellerRestarts(t *testing.T) {
	t.Parallel()
	m, _, bert, carl := three(t)
	flag := filepath.Join(m.Dir, "go")
	// It runs longer than the lease that the killed daemon had: so the new one renews it.
	j := carl.Send(nodetest.Command(1, "echo begun; sleep 14; while ! test -e "+flag+"; do sleep 0.05; done; echo ended"), "")
	if task := carl.AwaitRunning(j.ID); task.SellerName != "bert" {
		t.Fatalf("it runs at %s", task.SellerName)
	}
	bert.Kill()
	bert.Up()
	write(t, flag, "")
	j = carl.Done(j.ID)
	if task := carl.JobTasks(j.ID)[0]; task.Attempt != 1 || task.SellerName != "bert" {
		t.Errorf("task %+v", task)
	}
	if got := read(t, carl.Get(j.ID), "run/0/stdout"); got != "begun\nended\n" {
		t.Errorf("stdout is %q", got)
	}
	m.Verify()
}

// TestDown: a peer that goes down in order hands leadership over and leaves its
// tasks running; when it is back, it takes them on.
func TestDown(t *testing.T) {
	t.Parallel()
	m, anna, _, _ := three(t)
	if m.Leader() != anna {
		t.Fatal("the founder does not lead")
	}
	file, flag := filepath.Join(m.Dir, "beats"), filepath.Join(m.Dir, "go")
	s := nodetest.Command(1, "while ! test -e "+flag+"; do echo beat >> "+file+"; sleep 0.05; done; echo ended")
	s.Steps[0].Labels = pcm.Labels{"site": "anna"}
	j := anna.Send(s, "")
	anna.AwaitRunning(j.ID)
	beats := func() int {
		data, err := os.ReadFile(file)
		if err != nil {
			return 0
		}
		return strings.Count(string(data), "\n")
	}
	began := time.Now()
	if r := anna.PCM("down"); r.Code != 0 {
		t.Fatalf("down: %+v", r)
	}
	<-anna.Ended()
	if took := time.Since(began); took > 10*time.Second || anna.ExitCode() != 0 {
		t.Errorf("it ended after %s with status %d", took, anna.ExitCode())
	}
	seen := beats()
	nodetest.Eventually(t, "the task goes on without its daemon", func(context.Context) error {
		if n := beats(); n < seen+5 {
			return fmt.Errorf("%d beats, %d at the end of the daemon", n, seen)
		}
		return nil
	})
	if m.Leader() == anna {
		t.Error("it leads still")
	}
	anna.Up()
	write(t, flag, "")
	j = anna.Done(j.ID)
	if task := anna.JobTasks(j.ID)[0]; task.Attempt != 1 {
		t.Errorf("task %+v", task)
	}
	m.AwaitWhole()
	m.Verify()
}

// TestSubmitterKilled: what takeover allows is driven on by others, and the
// outputs are there when the submitter is back; the rest waits for it.
func TestSubmitterKilled(t *testing.T) {
	t.Parallel()
	m, anna, _, carl := three(t)
	base := t.TempDir()
	write(t, filepath.Join(base, "in.txt"), "input\n")
	job := func(takeover pcm.Takeover) pcm.Spec {
		s := nodetest.Command(3, "sleep 1; cat in.txt > out.txt; echo $PCM_TASK_INDEX >> out.txt")
		s.Takeover = takeover
		s.Steps[0].Inputs = []pcm.Input{{Source: "in.txt"}}
		s.Steps[0].Outputs = []string{"out.txt"}
		return s
	}
	outputs := func(p *nodetest.Peer, id pcm.JobID) {
		t.Helper()
		dir := p.Get(id)
		for i := range 3 {
			if got, want := read(t, dir, fmt.Sprintf("run/%d/out/out.txt", i)), fmt.Sprintf("input\n%d\n", i); got != want {
				t.Errorf("task %d of %s left %q", i, id, got)
			}
		}
	}
	any, own := carl.Send(job(pcm.TakeoverAny), base), carl.Send(job(pcm.TakeoverAccount), base)
	me := carl.PeerID()
	carl.Kill()
	done := anna.Done(any.ID)
	if done.Driver == me || done.DriverTerm < 2 {
		t.Errorf("the job was driven by %s, term %d", done.Driver, done.DriverTerm)
	}
	// Whoever drives for another account does not sell to it.
	for _, tr := range trades(t, anna, any.ID) {
		if tr.Seller == done.Driver && tr.Attempt > 1 {
			t.Errorf("the driver bought from itself: %+v", tr)
		}
	}
	if j, err := anna.Job(t.Context(), string(own.ID)); err != nil || api.Ended(j) || j.Driver != me {
		t.Errorf("a job that only its account may drive is %+v, %v", j, err)
	}
	carl.Up()
	outputs(carl, any.ID)
	carl.Done(own.ID)
	outputs(carl, own.ID)

	// Another peer of the account takes over.
	dora := m.Add(nodetest.Spec{Name: "dora", Config: nodetest.Buyer, Same: "carl"})
	dora.Up("--join", anna.Token())
	m.AwaitWhole()
	own = carl.Send(job(pcm.TakeoverAccount), base)
	carl.Kill()
	done = dora.Done(own.ID)
	if done.Driver != dora.PeerID() {
		t.Errorf("the job was driven by %s", done.Driver)
	}
	outputs(dora, own.ID)
	carl.Up()
	outputs(carl, own.ID)
	m.Verify()
}

// TestLeaderKilled: the leader, which sells too, is killed amid an array; each
// task completes and is paid exactly once.
func TestLeaderKilled(t *testing.T) {
	t.Parallel()
	m, anna, _, carl := three(t)
	const tasks = 200
	s := nodetest.Command(tasks, "sleep 0.5; echo $PCM_TASK_INDEX")
	s.Strategy = "spread"
	j := carl.Send(s, "")
	carl.AwaitJob(j.ID, "is well under way", func(j api.Job) bool { return j.Counts.Done >= 20 })
	if m.Leader() != anna {
		t.Fatal("the founder does not lead")
	}
	anna.Kill()
	carl.AwaitJob(j.ID, "done", func(j api.Job) bool { return j.Counts.Done == tasks })
	// A result that was committed, and whose outputs died with the leader, is in
	// dispute, and its task ran again; all the others are paid or lost.
	nodetest.Eventually(t, "all is settled that can be", func(ctx context.Context) error {
		l, err := carl.Trades(ctx, api.Query{Job: j.ID})
		if err != nil {
			return err
		}
		sum := map[pcm.AttemptState]int{}
		for _, tr := range l.Items {
			open := tr.Tasks
			for state, n := range tr.States {
				sum[state] += n
				switch state {
				case pcm.AttemptSettled, pcm.AttemptLost, pcm.AttemptRejected, pcm.AttemptDisputed:
					open -= n
				}
			}
			if open != 0 {
				return fmt.Errorf("trade %+v", tr)
			}
		}
		if sum[pcm.AttemptSettled] != tasks {
			return fmt.Errorf("%v", sum)
		}
		t.Logf("attempts: %v", sum)
		return nil
	})
	dir := carl.Get(j.ID)
	for i := range tasks {
		if got := read(t, dir, fmt.Sprintf("run/%d/stdout", i)); got != fmt.Sprintln(i) {
			t.Errorf("task %d wrote %q", i, got)
		}
	}
	anna.Up()
	m.AwaitWhole()
	m.Verify()
}

// TestMembership: a fresh node that runs moves into a mesh, one with a history
// does not; a member leaves when nothing depends on it.
func TestMembership(t *testing.T) {
	t.Parallel()
	m := nodetest.New(t, nodetest.Spec{Name: "anna", Config: nodetest.Bare("0.001", 4)})
	anna := m.Peer("anna")
	bert := m.Add(nodetest.Spec{Name: "bert", Config: nodetest.Seller("0.002")})
	bert.Up()
	before, err := bert.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r := bert.PCM("join", anna.Token()); r.Code != 0 {
		t.Fatalf("join: %+v", r)
	}
	nodetest.Eventually(t, "bert has moved", func(ctx context.Context) error {
		st, err := bert.Status(ctx)
		if err != nil {
			return err
		}
		if st.Mesh == before.Mesh || !st.Ready {
			return fmt.Errorf("it is %+v", st)
		}
		return nil
	})
	m.AwaitWhole()
	s := nodetest.Command(1, "echo moved")
	j := bert.Done(bert.Send(s, "").ID)
	if got := read(t, bert.Get(j.ID), "run/0/stdout"); got != "moved\n" {
		t.Errorf("stdout is %q", got)
	}
	m.Verify()

	// One that has worked in its own mesh stays there.
	carl := m.Add(nodetest.Spec{Name: "carl", Config: nodetest.Seller("0.003")})
	carl.Up()
	carl.Done(carl.Send(nodetest.Command(1, "true"), "").ID)
	if r := carl.PCM("join", anna.Token()); r.Code != 3 || !strings.Contains(r.Stderr, "leave") {
		t.Errorf("join with a history: %+v", r)
	}

	// A seller does not leave its tasks.
	flag := filepath.Join(m.Dir, "go")
	j = bert.Send(nodetest.Command(1, "while ! test -e "+flag+"; do sleep 0.05; done"), "")
	if task := bert.AwaitRunning(j.ID); task.SellerName != "anna" {
		t.Fatalf("it runs at %s", task.SellerName)
	}
	for _, p := range []*nodetest.Peer{anna, bert} {
		if r := p.PCM("leave"); r.Code != 3 || !strings.Contains(r.Stderr, "wait for them") {
			t.Errorf("%s leaves: %+v", p.Name, r)
		}
	}
	write(t, flag, "")
	bert.Done(j.ID)
	m.Peers = slices.DeleteFunc(m.Peers, func(p *nodetest.Peer) bool { return p == carl })
	m.Verify()
	if r := bert.PCM("leave"); r.Code != 0 {
		t.Fatalf("leave: %+v", r)
	}
	<-bert.Ended()
	nodetest.Eventually(t, "the cell has one member", func(ctx context.Context) error {
		cells, err := anna.Cells(ctx)
		if err != nil {
			return err
		}
		if n := len(cells.Items[0].Members); n != 1 {
			return fmt.Errorf("it has %d", n)
		}
		return nil
	})
	// It is nobody's then, and founds a mesh of its own when it starts again.
	bert.Up()
	after, err := bert.Status(t.Context())
	if err != nil || after.ID != before.ID || after.Mesh == before.Mesh || after.CellName != "bert" {
		t.Errorf("afterwards it is %+v, %v", after, err)
	}
	anna.Done(anna.Send(nodetest.Command(1, "true"), "").ID)
}
