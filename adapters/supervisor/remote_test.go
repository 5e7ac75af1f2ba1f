package supervisor

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// cluster is a back end elsewhere: what runs there outlives supervisors.
type cluster struct {
	mu     sync.Mutex
	jobs   map[string]*clusterJob
	begins map[string]int
	swept  []adapters.Key // what the last runner was told runs there
}

type clusterJob struct {
	end  chan struct{}
	once sync.Once
}

func (c *cluster) finish(k adapters.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs[k.String()]
	j.once.Do(func() { close(j.end) })
}

func (c *cluster) begun(k adapters.Key) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.begins[k.String()]
}

// remote is a runner of the cluster. Once dead is closed it does nothing more, as
// if its supervisor had been killed.
type remote struct {
	c    *cluster
	dead chan struct{}
	fake
}

func (r *remote) Name() string { return "remote" }
func (r *remote) Remote()      {}

// Sweep keeps what it is told runs there.
func (r *remote) Sweep(keys []adapters.Key) error {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.c.swept = keys
	return nil
}

func (r *remote) Run(ctx context.Context, run *Run) Exit {
	k := run.Key.String()
	r.c.mu.Lock()
	j := r.c.jobs[k]
	if j == nil {
		j = &clusterJob{end: make(chan struct{})}
		r.c.jobs[k] = j
		r.c.begins[k]++
	}
	r.c.mu.Unlock()
	run.Report(adapters.Pending, "PD", "(Resources)")
	if run.Command[0] == "wait" {
		<-ctx.Done()
		return Exit{Outcome: pcm.OutcomeSeller, Code: 1, Native: "CA"}
	}
	if run.Command[0] == "late" { // what happens there is learnt at its end
		<-j.end
		run.Started()
		return Exit{Outcome: pcm.OutcomeOK, Wall: time.Hour}
	}
	io.WriteString(run.Stdout, "from its begin\n")
	run.Report(adapters.Running, "R", "")
	run.Used(40, 1<<20)
	if run.Command[0] == "suspend" {
		run.Report(adapters.Suspended, "S", "by the site's operator")
	}
	select {
	case <-j.end:
		return Exit{Outcome: pcm.OutcomeFailed, Code: 7, Reason: "exit code 7", Native: "F", CPUMS: 30}
	case <-ctx.Done():
		return Exit{Outcome: pcm.OutcomeSeller, Code: 137, Native: "CA"}
	case <-r.dead:
		<-ctx.Done()
		return Exit{Outcome: pcm.OutcomeSeller, Code: 137} // which is taken back: see serveRemote
	}
}

// serveRemote serves with a runner of the cluster. kill ends that as a crash
// would: what runs in the cluster has no end in the folder.
func serveRemote(t *testing.T, dir string, c *cluster) (d *daemon, kill func()) {
	t.Helper()
	r := &remote{c: c, dead: make(chan struct{})}
	d = serve(t, dir, func(cfg *Config) { cfg.Runners = append(cfg.Runners, r) })
	d.a = d.client.Attempts("remote")
	return d, func() {
		close(r.dead)
		d.client.Close()
		// What is recorded while the server goes down, is taken back: a crash records nothing.
		names, err := filepath.Glob(filepath.Join(dir, "tasks", "*"))
		if err != nil {
			t.Fatal(err)
		}
		names = slices.DeleteFunc(names, func(name string) bool { return folder(name).ended() })
		d.end()
		for _, name := range names {
			if err := os.Remove(folder(name).statusFile()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestRemoteIsTakenUpAgain(t *testing.T) {
	dir, c := shortDir(t), &cluster{jobs: map[string]*clusterJob{}, begins: map[string]int{}}
	d, kill := serveRemote(t, dir, c)
	long, limited, gpu := newTask("run"), newTask("run"), newTask("run")
	limited.Limit = 1500 * time.Millisecond
	gpu.Resources.GPU = 2
	for _, task := range []adapters.Task{long, limited, gpu} {
		if err := d.a.Start(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		d.wait(task.Key, adapters.Running)
	}
	d.await(func() bool { return d.status(long.Key).Usage.CPUMS == 40 })
	first := d.status(long.Key)
	if first.Native != "R" || first.Reason != "" || first.Usage.MaxMemory != 1<<20 {
		t.Errorf("while it runs: %+v", first)
	}
	kill()

	d, kill = serveRemote(t, dir, c)
	for _, task := range []adapters.Task{long, limited, gpu} { // who keeps a trade to its width counts them first
		if !slices.Contains(c.swept, task.Key) || len(c.swept) != 3 {
			t.Errorf("the runner was told that %v runs, not %s", c.swept, task.Key)
		}
	}
	leases := map[adapters.Key]adapters.BootTime{}
	for _, task := range []adapters.Task{long, limited, gpu} {
		if err := d.a.Start(t.Context(), task); err != nil { // again: nothing
			t.Fatal(err)
		}
		leases[task.Key] = adapters.Now().Add(time.Hour)
	}
	if err := d.a.Extend(t.Context(), leases); err != nil {
		t.Fatal(err)
	}
	st := d.wait(long.Key, adapters.Running)
	if !st.Started.Equal(first.Started) || st.Usage.WallMS < first.Usage.WallMS {
		t.Errorf("it began at %s and ran for %s; now at %s, for %s", first.Started, first.Usage.Wall(), st.Started, st.Usage.Wall())
	}
	// Its time limit counts from its first begin, not from when it was taken up.
	began := time.Now()
	if st := d.wait(limited.Key, adapters.Ended); st.Outcome != pcm.OutcomeTimeLimit || st.Usage.Wall() < limited.Limit || st.Usage.Wall() > limited.Limit+time.Since(began) {
		t.Errorf("at its limit: %+v", st)
	}
	c.finish(long.Key)
	c.finish(gpu.Key)
	st = d.wait(long.Key, adapters.Ended)
	if st.Outcome != pcm.OutcomeFailed || st.ExitCode != 7 || st.Native != "F" || st.Usage.CPUMS != 40 {
		t.Errorf("at its end: %+v", st)
	}
	if st := d.wait(gpu.Key, adapters.Ended); st.Usage.WallMS == 0 || st.Usage.GPUMS != 2*st.Usage.WallMS {
		t.Errorf("use of two accelerators: %+v", st.Usage)
	}
	r, err := d.a.Logs(t.Context(), long.Key, adapters.Stdout, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := io.ReadAll(r); string(out) != "from its begin\n" || err != nil {
		t.Errorf("its output, read twice: %q, %v", out, err)
	}
	for _, task := range []adapters.Task{long, limited, gpu} {
		if n := c.begun(task.Key); n != 1 {
			t.Errorf("%s was begun %d times", task.Key, n)
		}
	}
	// What has ended stays so.
	kill()
	d, _ = serveRemote(t, dir, c)
	if st := d.status(long.Key); st.State != adapters.Ended || st.ExitCode != 7 {
		t.Errorf("after another restart: %+v", st)
	}
}

// Taken up again, but nobody renews its lease: it ends.
func TestRemoteIsFencedAfterALoss(t *testing.T) {
	dir, c := shortDir(t), &cluster{jobs: map[string]*clusterJob{}, begins: map[string]int{}}
	d, kill := serveRemote(t, dir, c)
	task := newTask("run")
	if err := d.a.Start(t.Context(), task); err != nil {
		t.Fatal(err)
	}
	d.wait(task.Key, adapters.Running)
	kill()
	began := adapters.Now()
	d, _ = serveRemote(t, dir, c)
	st := d.wait(task.Key, adapters.Ended)
	if took := time.Duration(adapters.Now() - began); st.Outcome != pcm.OutcomeSeller || !strings.HasPrefix(st.Reason, "lease ended") || took < reattach {
		t.Errorf("after %s: %+v", took, st)
	}
}

// A begin that is learnt late costs its seller nothing, and nobody can be billed
// for more time than there was.
func TestWallOfTheBackEnd(t *testing.T) {
	c := &cluster{jobs: map[string]*clusterJob{}, begins: map[string]int{}}
	d, _ := serveRemote(t, shortDir(t), c)
	began := time.Now()
	late, limited := newTask("late"), newTask("run")
	limited.Limit = 50 * time.Millisecond // in which the other runs, too
	for _, task := range []adapters.Task{late, limited} {
		if err := d.a.Start(t.Context(), task); err != nil {
			t.Fatal(err)
		}
		d.wait(late.Key, adapters.Pending)
	}
	d.wait(limited.Key, adapters.Ended)
	c.finish(late.Key)
	st := d.wait(late.Key, adapters.Ended)
	if most := time.Since(began).Milliseconds(); st.Usage.WallMS < 50 || st.Usage.WallMS > most {
		t.Errorf("it ran for %d ms, not for 50 to %d", st.Usage.WallMS, most)
	}
}

func TestReportedStates(t *testing.T) {
	c := &cluster{jobs: map[string]*clusterJob{}, begins: map[string]int{}}
	d, _ := serveRemote(t, shortDir(t), c)
	watch, err := d.a.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	waits, suspended := newTask("wait"), newTask("suspend")
	for _, task := range []adapters.Task{waits, suspended} {
		if err := d.a.Start(t.Context(), task); err != nil {
			t.Fatal(err)
		}
	}
	st := d.wait(waits.Key, adapters.Pending)
	if st.Native != "PD" || st.Reason != "(Resources)" || !st.Started.IsZero() || st.Usage.WallMS != 0 {
		t.Errorf("waiting: %+v", st)
	}
	st = d.wait(suspended.Key, adapters.Suspended)
	if st.Native != "S" || st.Reason != "by the site's operator" || st.Started.IsZero() {
		t.Errorf("suspended: %+v", st)
	}
	if err := d.a.Stop(t.Context(), waits.Key, 0, "enough"); err != nil {
		t.Fatal(err)
	}
	c.finish(suspended.Key)
	got := map[adapters.Key][]string{}
	for ended := 0; ended < 2; {
		st, ok := <-watch
		if !ok {
			t.Fatal("the watch ended")
		}
		if st.State != adapters.Pending || len(got[st.Key]) == 0 { // the first may be told before the back end's word is known
			got[st.Key] = append(got[st.Key], strings.TrimSpace(string(st.State)+" "+st.Native))
		}
		if st.State == adapters.Pending {
			got[st.Key][0] = "pending"
		}
		if st.State == adapters.Ended {
			ended++
		}
	}
	want := map[adapters.Key]string{waits.Key: "[pending ended CA]", suspended.Key: "[pending running R suspended S ended F]"}
	for k, w := range want {
		if states := fmt.Sprint(got[k]); states != w {
			t.Errorf("%s went through %s, not %s", k, states, w)
		}
	}
	if st := d.status(waits.Key); st.Outcome != pcm.OutcomeStopped || st.Usage.WallMS != 0 || st.Native != "CA" {
		t.Errorf("stopped while it waited: %+v", st)
	}
}
