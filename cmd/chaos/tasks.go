package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

// taskSettings are of a run in which whole peers trade tasks that really run.
type taskSettings struct {
	seed     uint64
	pcm      string // the program
	attempts int    // at least
	faults   int    // at least
	most     time.Duration
	keep     string
	// supervisors are killed too: then nothing holds the end of what they ran, and an
	// overlap with that is only counted.
	supervisors bool
}

// taskReport is what it came to. The tasks themselves bear witness: each writes the
// time since boot, which nobody can set, as long as it runs.
type taskReport struct {
	took      time.Duration
	jobs      int
	tasks     int
	attempts  int // that left a trace
	awarded   int
	states    map[pcm.AttemptState]int
	faults    map[string]int
	overlaps  int                    // attempts of one task that ran at the same time
	unfenced  int                    // those of them whose supervisor was killed while they ran
	sellers   map[pcm.TradeID]string // by name
	killed    map[string][]float64   // by name: when its supervisor was killed, s since boot
	paidTwice int
	verified  int // peers whose ledger is good, and the same
	records   string
	problems  problems
	witnesses int
	closest   float64 // s between an attempt's last sign and the next one's first
	haveClose bool
}

func (r *taskReport) problem(of promise, format string, args ...any) {
	r.problems.add(of, format, args...)
}

// evidence runs for about a second and writes who it is, and when.
const evidence = `
f=DIR/$PCM_JOB.$PCM_TASK_INDEX
n=5
while test $n -gt 0; do
  read up rest < /proc/uptime
  echo "$PCM_ATTEMPT $up" >> $f
  n=$((n-1)); sleep 0.2
done
echo complete`

// site is one whole peer.
type site struct {
	*nodetest.Process
	c *api.Client
}

// runTasks has five whole peers trade while some of them are killed, stopped and
// restarted.
func runTasks(ctx context.Context, s taskSettings) (r *taskReport, err error) {
	begun := time.Now()
	dir := s.keep
	if dir == "" {
		if dir, err = os.MkdirTemp("", "pcm-chaos-"); err != nil { // short, for the sockets' sake
			return nil, err
		}
		defer os.RemoveAll(dir)
	}
	witness := filepath.Join(dir, "witness")
	if err := os.MkdirAll(witness, 0o700); err != nil {
		return nil, err
	}
	r = &taskReport{faults: map[string]int{}, states: map[pcm.AttemptState]int{}, sellers: map[pcm.TradeID]string{}, killed: map[string][]float64{}}
	var sites []*site
	defer func() {
		for _, p := range sites {
			p.Thaw()
			p.Kill()
			err = errors.Join(err, p.Sweep())
		}
	}()
	for i, name := range []string{"anna", "bert", "carl", "dora", "emil"} {
		config := nodetest.Bare(fmt.Sprintf("0.00%d", 1+i), 8) + "credit_limit: 1000000\n"
		if i >= 3 {
			config = nodetest.Buyer
		}
		file := filepath.Join(dir, name+".yaml")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			return nil, err
		}
		p := &site{Process: &nodetest.Process{
			Binary: s.pcm, Name: name, Dir: filepath.Join(dir, name), Config: file, Log: filepath.Join(dir, name+".log"),
		}}
		p.c = p.Client()
		var args []string
		if i > 0 {
			inv, err := sites[0].c.Invite(ctx, time.Hour, false)
			if err != nil {
				return nil, err
			}
			args = []string{"--join", inv.Token}
		}
		if err := p.Start(args...); err != nil {
			return nil, err
		}
		sites = append(sites, p)
		ready, cancel := context.WithTimeout(ctx, patience)
		err := p.AwaitReady(ready)
		cancel()
		if err != nil {
			return nil, err
		}
	}
	if err := whole(ctx, sites); err != nil {
		return nil, err
	}

	load, endLoad := context.WithTimeout(ctx, s.most)
	defer endLoad()
	var mu sync.Mutex // of what follows
	var jobs []pcm.JobID
	injected := 0
	enough := func() bool {
		mu.Lock()
		defer mu.Unlock()
		traces, _ := filepath.Glob(filepath.Join(witness, "*"))
		return len(traces) >= s.attempts && injected >= s.faults
	}
	var wg sync.WaitGroup
	harm, endHarm := context.WithCancel(load)
	defer endHarm()
	wg.Go(func() {
		rng := rand.New(rand.NewPCG(s.seed, 5))
		for harm.Err() == nil {
			kind, unfenced := taskFault(harm, rng, sites, s.supervisors)
			mu.Lock()
			if unfenced != nil {
				r.killed[unfenced.Name] = append(r.killed[unfenced.Name], unfenced.at)
			}
			r.faults[kind]++
			injected++
			mu.Unlock()
		}
	})
	// Work is sent through whoever answers of those who only buy.
	const each = 25
	spec := pcm.Spec{Name: "chaos", Takeover: pcm.TakeoverAny, Steps: []pcm.Step{{
		Name: "run", Count: each, Command: []string{"sh", "-c", strings.ReplaceAll(evidence, "DIR", witness)},
	}}}
	for n := 0; load.Err() == nil && !enough(); n++ {
		open := 0
		for _, id := range jobs {
			if j, err := anyJob(load, sites, id); err != nil || !api.Settled(j) {
				open++
			}
		}
		if open >= 3 {
			wait(load, 300*time.Millisecond)
			continue
		}
		id := pcm.NewJobID()
		for try := 0; load.Err() == nil; try++ {
			p := sites[3+(n+try)%2]
			send, cancel := context.WithTimeout(load, 10*time.Second)
			_, err := p.c.Submit(send, api.Submission{ID: id, Spec: spec})
			cancel()
			if err == nil {
				jobs = append(jobs, id)
				break
			}
			wait(load, 300*time.Millisecond)
		}
	}
	if !enough() {
		r.problem(isBack, "after %s: too few faults or attempts", s.most)
	}
	endHarm()
	wg.Wait()

	// All is well again: everything comes to its end.
	for _, p := range sites {
		p.Thaw()
		if err := p.revive(ctx); err != nil {
			r.problem(isBack, "%v", err)
		}
	}
	r.jobs = len(jobs)
	for _, id := range jobs {
		err := await(ctx, patience+time.Minute, string(id)+" is settled", func() error {
			j, err := anyJob(ctx, sites, id)
			if err == nil && !api.Settled(j) {
				err = fmt.Errorf("it is %s: %+v", j.State, j.Counts)
			}
			return err
		})
		if err != nil {
			r.problem(isBack, "%v", err)
			continue
		}
		r.judge(ctx, sites, id)
	}
	r.read(witness)
	if err := r.compare(ctx, sites); err != nil {
		r.problems = append(r.problems, problemOf(err))
	}
	r.took = time.Since(begun)
	return r, r.problems.err(s.seed)
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// whole waits until the peers are one cell with five voters and know what is sold.
func whole(ctx context.Context, sites []*site) error {
	return await(ctx, patience, "the mesh is whole", func() error {
		for _, p := range sites {
			cells, err := p.c.Cells(ctx)
			if err != nil {
				return err
			}
			if len(cells.Items) == 0 || len(cells.Items[0].Members) < len(sites) || cells.Items[0].Leader == "" {
				return errors.New("members are missing")
			}
			offers, err := p.c.Offers(ctx)
			if err != nil {
				return err
			}
			if len(offers.Items) < 6 {
				return errors.New("offers are missing")
			}
		}
		return nil
	})
}

func (p *site) runs() bool {
	select {
	case <-p.Ended():
		return false
	default:
		return true
	}
}

// revive has the peer run and answer.
func (p *site) revive(ctx context.Context) error {
	if !p.runs() {
		if err := p.Start(); err != nil {
			return err
		}
	}
	ready, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return p.AwaitReady(ready)
}

// anyJob asks whoever answers.
func anyJob(ctx context.Context, sites []*site, id pcm.JobID) (j api.Job, err error) {
	for i := len(sites) - 1; i >= 0; i-- {
		ask, cancel := context.WithTimeout(ctx, 3*time.Second)
		j, err = sites[i].c.Job(ask, string(id))
		cancel()
		if err == nil {
			return j, nil
		}
	}
	return j, err
}

// unfenced is a site whose supervisor was killed, and when, in s since boot.
type unfenced struct {
	*site
	at float64
}

// taskFault makes one fault and undoes it. At most one of five peers is away, so
// that the cell goes on. It tells whose supervisor it killed, if it did.
func taskFault(ctx context.Context, rng *rand.Rand, sites []*site, supervisors bool) (name string, killed *unfenced) {
	p := sites[rng.IntN(len(sites))]
	away := time.Duration(100+rng.IntN(1500)) * time.Millisecond
	long := rng.IntN(8) == 0
	if long { // over the lease: its attempts are lost
		away = 13 * time.Second
	}
	name = "seller"
	if p == sites[3] || p == sites[4] {
		name = "buyer"
	}
	kind := rng.IntN(10)
	switch {
	case kind < 4:
		p.Kill()
		wait(ctx, away)
		name += " killed"
	case kind < 8:
		p.Freeze()
		wait(ctx, away)
		p.Thaw()
		name += " stopped"
	case kind < 9 && supervisors && p.Supervisor() > 0:
		killed = &unfenced{p, upFor()}
		syscall.Kill(p.Supervisor(), syscall.SIGKILL) // one that has just ended needs none
		name, long = "supervisor killed", false
	default:
		p.Stop()
		wait(ctx, away)
		name += " restarted"
	}
	if long {
		name += ", beyond the lease"
	}
	p.revive(context.WithoutCancel(ctx)) // whoever isn't ready in time is found at the end
	wait(ctx, 200*time.Millisecond)
	return name, killed
}

// upFor is the time since boot in seconds, as tasks read it.
func upFor() float64 {
	data, err := os.ReadFile("/proc/uptime")
	if err != nil {
		panic(err) // there is nothing to hold tasks against
	}
	text, _, _ := strings.Cut(string(data), " ")
	up, err := strconv.ParseFloat(text, 64)
	if err != nil {
		panic(err)
	}
	return up
}

// judge holds a settled job's trades against each other: one result is paid for each task.
func (r *taskReport) judge(ctx context.Context, sites []*site, id pcm.JobID) {
	j, err := anyJob(ctx, sites, id)
	if err != nil {
		r.problem(isBack, "%v", err)
		return
	}
	r.tasks += j.Counts.Total
	if j.State != pcm.JobDone || j.Counts.Done != j.Counts.Total || j.Held != "0" {
		r.problem(isBack, "%s is %s with %+v, and %s held: %s", id, j.State, j.Counts, j.Held, j.Reason)
	}
	list, err := sites[4].c.Trades(ctx, api.Query{Job: id})
	if err != nil {
		r.problem(isBack, "%v", err)
		return
	}
	paid := 0
	for _, t := range list.Items {
		r.awarded += t.Tasks
		r.sellers[t.ID] = t.SellerName
		for state, n := range t.States {
			r.states[state] += n
		}
		paid += t.States[pcm.AttemptSettled]
	}
	if twice := paid - j.Counts.Total; twice > 0 {
		r.paidTwice += twice
		r.problem(isOnce, "%s has %d tasks, and %d attempts are paid", id, j.Counts.Total, paid)
	}
	if paid < j.Counts.Total {
		r.problem(isOwed, "%s has %d tasks, and %d attempts are paid", id, j.Counts.Total, paid)
	}
}

// read takes the tasks' own evidence: attempts of one task don't overlap, but where nothing
// was left that could end the earlier one.
func (r *taskReport) read(witness string) {
	files, _ := filepath.Glob(filepath.Join(witness, "*"))
	for _, path := range files {
		type life struct {
			key         string
			first, last float64
		}
		lives := map[string]*life{}
		f, err := os.Open(path)
		if err != nil {
			r.problem(isBack, "%v", err)
			continue
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			key, at, ok := strings.Cut(lines.Text(), " ")
			up, err := strconv.ParseFloat(at, 64)
			if !ok || err != nil {
				continue // the line of a task that was killed while it wrote
			}
			r.witnesses++
			if lives[key] == nil {
				lives[key] = &life{key, up, up}
			}
			lives[key].last = up
		}
		f.Close()
		r.attempts += len(lives)
		var all []*life
		for _, l := range lives {
			all = append(all, l)
		}
		slices.SortFunc(all, func(a, b *life) int { return int(1000 * (a.first - b.first)) })
		for i := 1; i < len(all); i++ {
			gap := all[i].first - all[i-1].last
			if !r.haveClose || gap < r.closest {
				r.closest, r.haveClose = gap, true
			}
			if gap < 0 {
				r.overlaps++
				early := all[i-1]
				if r.wasUnfenced(early.key, early.first, early.last) {
					r.unfenced++
					continue
				}
				r.problem(isTimely, "%s: an attempt ran until %.2f s since boot, the next one from %.2f s", filepath.Base(path), early.last, all[i].first)
			}
		}
	}
}

// wasUnfenced tells whether an attempt's supervisor was killed while it ran.
func (r *taskReport) wasUnfenced(key string, first, last float64) bool {
	trade, _, _ := strings.Cut(key, ".")
	return slices.ContainsFunc(r.killed[r.sellers[pcm.TradeID(trade)]], func(at float64) bool { return first-beforeSign <= at && at <= last })
}

// beforeSign is how long a task may run before its first sign of life, in s.
const beforeSign = 1

// compare has every peer check its ledger; all must have the same one.
func (r *taskReport) compare(ctx context.Context, sites []*site) error {
	return await(ctx, patience, "all ledgers are the same", func() error {
		roots := map[string]int{}
		for _, p := range sites {
			v, err := p.c.Verify(ctx)
			if err != nil {
				return err
			}
			if !v.OK {
				return final{problem{isSound, fmt.Sprintf("%s finds its ledger bad: %s", p.Name, v.Problem)}}
			}
			r.records = fmt.Sprintf("%d records, root %s", v.Records, v.Root)
			roots[r.records]++
		}
		if len(roots) != 1 {
			return problem{isSame, fmt.Sprintf("ledgers differ: %v", roots)}
		}
		r.verified = len(sites)
		return nil
	})
}

func (r *taskReport) print(w io.Writer) {
	fmt.Fprintf(w, "tasks that really run: %.0f s\n", r.took.Seconds())
	all := 0
	for _, kind := range sortedKeys(r.faults) {
		fmt.Fprintf(w, "  %s: %d\n", kind, r.faults[kind])
		all += r.faults[kind]
	}
	fmt.Fprintf(w, "faults: %d\njobs: %d with %d tasks; %d attempts awarded:", all, r.jobs, r.tasks, r.awarded)
	for _, state := range sortedKeys(r.states) {
		fmt.Fprintf(w, " %d %s", r.states[state], state)
	}
	fmt.Fprintf(w, "\nevidence: %d signs of life of %d attempts\n", r.witnesses, r.attempts)
	if r.haveClose {
		fmt.Fprintf(w, "an attempt's last sign of life, and the first of the next one: at least %.2f s apart\n", r.closest)
	}
	fmt.Fprintf(w, "two attempts of a task at once: %d, of which %d had lost their supervisor\npaid twice: %d\nledgers: %s, the same at %d peers\n", r.overlaps, r.unfenced, r.paidTwice, r.records, r.verified)
}
