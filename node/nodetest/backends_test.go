package nodetest_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

// These tests are about what becomes of trades when real back ends fail, or the
// peer that sells them does: nothing is lost, no result is accepted or paid twice,
// and what ran twice is counted and said.

// site is a mesh in which only bert sells, through one real back end.
type site struct {
	*testing.T
	m                *nodetest.Mesh
	anna, bert, carl *nodetest.Peer
	adapter          string
	witness          *witness
	seen             int // attempts that ran, of the jobs that were audited
}

// slow skips a test, with -short, before it has started a server.
func slow(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("it starts real servers and peers")
	}
}

// newSite starts the mesh. section is what bert's adapters section holds.
func newSite(t *testing.T, adapter, section string) *site {
	t.Helper()
	m := nodetest.New(t,
		nodetest.Spec{Name: "anna", Config: nodetest.Buyer},
		nodetest.Spec{Name: "bert", Config: "adapters:\n  wasm: {enabled: false}\n  process: {enabled: false}\n" + section},
		nodetest.Spec{Name: "carl", Config: nodetest.Buyer},
	)
	s := &site{T: t, m: m, anna: m.Peer("anna"), bert: m.Peer("bert"), carl: m.Peer("carl"), adapter: adapter, witness: newWitness(t)}
	s.offered(true)
	return s
}

// What bert asks for: by the task alone, so that what is paid counts them.
const (
	perTask = 0.001
	price   = `{per_task: "0.001", per_cpu_hour: "0", per_gib_hour: "0"}`
)

// long bounds what takes several leases or restarts; machines may be slow.
const long = 6 * time.Minute

// within waits until a condition holds, longer than Eventually does.
func (s *site) within(what string, f func(context.Context) error) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), long)
	defer cancel()
	if err := nodetest.Await(ctx, f); err != nil {
		s.Fatalf("%s: %v", what, err)
	}
}

// begunEnded is what each task of these tests prints: when it began and when it
// ended, in seconds since boot, which no restart and nobody's clock changes.
var begunEnded = regexp.MustCompile(`^begun [0-9.]+\nended [0-9.]+\n$`)

// lasting is an array of tasks that last some seconds: the first attempt of each
// so long, all later ones so long.
func lasting(count, first, later int) pcm.Spec {
	return own(nodetest.Command(count, fmt.Sprintf(`read up rest </proc/uptime; echo "begun $up"
case $PCM_ATTEMPT in *.1) sleep %d;; *) sleep %d;; esac
read up rest </proc/uptime; echo "ended $up"`, first, later)))
}

// offered waits until bert's back end is in the offers, or out of them.
func (s *site) offered(want bool) {
	s.Helper()
	bert := s.bert.PeerID()
	s.within(fmt.Sprintf("the %s back end is offered: %t", s.adapter, want), func(ctx context.Context) error {
		offers, err := s.anna.Offers(ctx)
		is := slices.ContainsFunc(offers.Items, func(o api.Offer) bool { return o.Peer == bert && o.Pool.Adapter == s.adapter })
		if err == nil && is != want {
			err = fmt.Errorf("it is offered: %t", is)
		}
		return err
	})
}

// begun waits until so many attempts of a job have been seen to run.
func (s *site) begun(id pcm.JobID, n int) {
	s.Helper()
	s.within(fmt.Sprintf("%d tasks run", n), func(ctx context.Context) error {
		seen := s.runs(id)
		if len(seen) < n {
			return fmt.Errorf("%d do", len(seen))
		}
		return nil
	})
}

// runs are the attempts of a job that were seen to run so far.
func (s *site) runs(id pcm.JobID) map[adapters.Key]span {
	of := map[pcm.TradeID]bool{}
	for _, tr := range trades(s.T, s.carl, id) {
		of[tr.ID] = true
	}
	return s.witness.of(of)
}

// audit waits until a job is done and checks that each task has one result, that
// one attempt of it is paid, and that the ledger is good. It tells how often a task
// ran at two places at once, and shows what the buyer is told.
func (s *site) audit(id pcm.JobID) (twice int, told string) {
	s.Helper()
	var job api.Job
	s.within("the job is settled", func(ctx context.Context) (err error) {
		if job, err = s.carl.Job(ctx, string(id)); err == nil && !api.Settled(job) {
			err = fmt.Errorf("it is %+v", job)
		}
		return err
	})
	told = s.carl.PCM("job", "describe", string(id)).Stdout
	if job.State != pcm.JobDone || job.Counts.Done != job.Counts.Total || job.Held != "0" {
		s.Fatalf("%s is %s (%s):\n%s", id, job.State, job.Reason, told)
	}
	states, paid := map[pcm.AttemptState]int{}, 0.0
	for _, tr := range trades(s.T, s.carl, id) {
		for state, n := range tr.States {
			states[state] += n
		}
		amount, err := strconv.ParseFloat(tr.Paid, 64)
		if err != nil {
			s.Fatal(err)
		}
		paid += amount
	}
	total := job.Counts.Total
	failed := states[pcm.AttemptLost] + states[pcm.AttemptRejected] // of these nothing is accepted nor paid
	all := 0
	for _, n := range states {
		all += n
	}
	if states[pcm.AttemptSettled] != total || all != total+failed || math.Abs(paid-perTask*float64(total)) > 1e-9 {
		s.Errorf("%d tasks: attempts end as %v, %g is paid:\n%s", total, states, paid, told)
	}
	results := s.carl.Get(id)
	for i := range total {
		if got := read(s.T, results, fmt.Sprintf("run/%d/stdout", i)); !begunEnded.MatchString(got) {
			s.Errorf("task %d printed %q", i, got)
		}
	}
	s.m.Verify()
	runs := s.runs(id)
	s.seen += len(runs)
	if len(runs) < total || len(runs) > all {
		s.Errorf("%d attempts were seen to run, of %d", len(runs), all)
	}
	for _, o := range overlaps(runs) {
		twice++
		s.Logf("OVERLAP: %s", o)
	}
	s.Logf("attempts of %s: %v, overlaps: %d\n%s", id, states, twice, told)
	return twice, told
}

// attempts is how many were made of a job's first task.
func (s *site) attempts(id pcm.JobID) int {
	s.Helper()
	return s.carl.JobTasks(id)[0].Attempt
}

// alone fails if anything ran twice at once.
func (s *site) alone(id pcm.JobID) {
	s.Helper()
	if n, told := s.audit(id); n > 0 {
		s.Errorf("%d times a task ran twice at once:\n%s", n, told)
	}
}

// killedAtStart: bert's daemon is killed when a task has begun and before that is
// on record. The task is found again, not begun anew.
func (s *site) killedAtStart() {
	s.Helper()
	for try := 1; ; try++ {
		j := s.carl.Send(lasting(2, 4, 2), "")
		s.begun(j.ID, 1)
		s.bert.Kill()
		recorded := 0
		for _, tr := range trades(s.T, s.anna, j.ID) {
			recorded += tr.States[pcm.AttemptStarted] + tr.States[pcm.AttemptFinished]
		}
		s.bert.Up()
		s.alone(j.ID)
		if recorded == 0 {
			s.Logf("try %d: killed with a task begun and none on record", try)
			return
		}
		if try == 5 {
			s.Fatal("each time the start was on record before the daemon could be killed")
		}
	}
}

// bothKilled: bert's daemon and supervisor are killed together while tasks run.
func (s *site) bothKilled() {
	s.Helper()
	j := s.carl.Send(lasting(2, 12, 2), "")
	s.begun(j.ID, 2)
	supervisor := s.bert.Supervisor()
	if supervisor == 0 {
		s.Fatal("bert has no supervisor")
	}
	syscall.Kill(supervisor, syscall.SIGKILL)
	s.bert.Kill()
	s.bert.Up()
	n, told := s.audit(j.ID)
	// Who is back too late for the lease finds the attempt lost, and the next one on
	// its way, before it can end what ran alone meanwhile.
	if n > 0 && !strings.Contains(told, "did not renew the lease") {
		s.Errorf("%d times a task ran twice at once, and nobody said why:\n%s", n, told)
	}
}

// bothAway: bert's daemon and supervisor are killed and stay away beyond the lease.
// What ran on alone is ended when they are back, and its task done once more.
func (s *site) bothAway() {
	s.Helper()
	j := s.carl.Send(lasting(2, 240, 2), "")
	s.begun(j.ID, 2)
	syscall.Kill(s.bert.Supervisor(), syscall.SIGKILL)
	s.bert.Kill()
	s.within("the attempts are lost", func(ctx context.Context) error {
		l, err := s.anna.Trades(ctx, api.Query{Job: j.ID})
		if err == nil && (len(l.Items) != 1 || l.Items[0].States[pcm.AttemptLost] != 2) {
			err = fmt.Errorf("trades %+v", l.Items)
		}
		return err
	})
	s.bert.Up()
	if n, told := s.audit(j.ID); !strings.Contains(told, "did not renew the lease") {
		s.Errorf("%d overlaps; the buyer is told:\n%s", n, told)
	}
	s.within("what was lost has ended", func(context.Context) error {
		for k, ran := range s.runs(j.ID) {
			if ago := adapters.Now() - ran.last; time.Duration(ago) < 2*time.Second {
				return fmt.Errorf("%s was seen %s ago", k, time.Duration(ago))
			}
		}
		return nil
	})
	for k, ran := range s.runs(j.ID) {
		if long := time.Duration(ran.last - ran.first); long > 200*time.Second {
			s.Errorf("%s ran to its end, for %s", k, long)
		}
	}
}

// stands: the back end stands still for half a minute. What runs is not failed,
// what ends meanwhile is learnt after, what is submitted meanwhile waits.
func (s *site) stands(hang func() (resume func())) {
	s.Helper()
	runs := s.carl.Send(lasting(2, 50, 2), "")
	ends := s.carl.Send(lasting(2, 10, 2), "")
	s.begun(runs.ID, 2)
	s.begun(ends.ID, 2)
	resume := hang()
	defer resume()
	half := time.After(30 * time.Second)
	s.offered(false)
	waits := s.carl.Send(lasting(1, 1, 1), "")
	nodetest.Eventually(s, "bert says why", func(ctx context.Context) error {
		st, err := s.bert.Status(ctx)
		if err == nil && !strings.Contains(strings.Join(st.Warnings, "\n"), "adapter "+s.adapter+" can't be observed since") {
			err = fmt.Errorf("it warns of %q", st.Warnings)
		}
		return err
	})
	<-half
	resume()
	s.offered(true)
	for _, id := range []pcm.JobID{runs.ID, ends.ID, waits.ID} {
		s.alone(id)
		for _, task := range s.carl.JobTasks(id) {
			if task.Attempt != 1 {
				s.Errorf("a back end that stood still for 30 s cost an attempt: %+v", task)
			}
		}
	}
}

// witness watches from outside which attempts have processes on this machine,
// whatever runs them: each carries its key in its environment.
type witness struct {
	mu   sync.Mutex
	seen map[adapters.Key]span
}

// span is from when to when an attempt was seen to run, by the boot clock.
type span struct{ first, last adapters.BootTime }

func newWitness(t *testing.T) *witness {
	w := &witness{seen: map[adapters.Key]span{}}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(25 * time.Millisecond)
		defer tick.Stop()
		for {
			w.look()
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
	return w
}

func (w *witness) look() {
	names, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		panic(err) // of a bad pattern only
	}
	for _, name := range names {
		data, _ := os.ReadFile(name) // it may have ended
		_, rest, ok := strings.Cut("\x00"+string(data), "\x00PCM_ATTEMPT=")
		if !ok {
			continue
		}
		text, _, _ := strings.Cut(rest, "\x00")
		k, err := adapters.ParseKey(text)
		if err != nil {
			continue
		}
		now := adapters.Now()
		w.mu.Lock()
		sp, ok := w.seen[k]
		if !ok {
			sp.first = now
		}
		sp.last = now
		w.seen[k] = sp
		w.mu.Unlock()
	}
}

// of gives what was seen of some trades.
func (w *witness) of(trades map[pcm.TradeID]bool) map[adapters.Key]span {
	w.mu.Lock()
	defer w.mu.Unlock()
	found := map[adapters.Key]span{}
	for k, sp := range w.seen {
		if trades[k.Trade] {
			found[k] = sp
		}
	}
	return found
}

// overlaps says which attempts of the same task ran at the same time.
func overlaps(runs map[adapters.Key]span) (list []string) {
	for a, ran := range runs {
		for b, other := range runs {
			if a.Index == b.Index && a.Attempt < b.Attempt && other.first <= ran.last {
				both := min(ran.last, other.last) - other.first
				list = append(list, fmt.Sprintf("task %d: attempt %d still ran when attempt %d began; both ran for %.2f s",
					a.Index, a.Attempt, b.Attempt, time.Duration(both).Seconds()))
			}
		}
	}
	return list
}

// startedOnce checks that the back end has, by its own book, started no attempt of
// the audited jobs twice.
func (s *site) startedOnce(started int) {
	s.Helper()
	if started > s.seen {
		s.Errorf("it has started %d, of %d attempts", started, s.seen)
	}
}
