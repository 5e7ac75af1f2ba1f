package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/configs"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/api/apitest"
)

var update = flag.Bool("update", false, "write what commands print into testdata/*.txtar anew")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"pcm": func() {
			// The fake's clock stands still; the program looks 192 s later.
			now := func() time.Time { return apitest.Now.Add(192 * time.Second) }
			a := &app{in: os.Stdin, out: os.Stdout, errOut: os.Stderr, getenv: os.Getenv, now: now}
			os.Exit(a.run(context.Background(), os.Args[1:]))
		},
	})
}

// The scripts run the command line against a fake node that is served in this
// process, over the unix socket in $PCM_DATA and over TCP at $ADDR.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			dir := filepath.Join(env.WorkDir, "data")
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			token, err := api.EnsureToken(dir)
			if err != nil {
				return err
			}
			cfg := Config{Data: dir, API: "127.0.0.1:0"}
			tcp, err := listenTCP(cfg)
			if err != nil {
				return err
			}
			listeners, addr, err := listenAPI(cfg, tcp)
			if err != nil {
				return err
			}
			n := fakeNode()
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				done <- api.NewServer(n, api.Config{Token: token, Version: "test", JobSchema: configs.JobSchema}).Serve(ctx, listeners...)
			}()
			n.OnDown = cancel
			env.Defer(func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
			env.Setenv("PCM_DATA", dir)
			env.Setenv("ADDR", addr)
			env.Setenv("TOKEN", token)
			env.Setenv("HOME", env.WorkDir)
			env.Values["node"] = n
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":     exits,
			"cancelled": cancelled,
			"ready":     ready,
			"operated":  operated,
			"forwards":  forwards,
		},
	})
}

// exits STATUS COMMAND… runs a command that must end with that status.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS COMMAND…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var status interface{ ExitCode() int }
		if ok := asExit(err, &status); !ok {
			ts.Fatalf("%v", err)
		}
		got = status.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

func asExit(err error, status *interface{ ExitCode() int }) bool {
	s, ok := err.(interface{ ExitCode() int })
	*status = s
	return ok
}

// cancelled TEXT checks that a job was cancelled with that reason.
func cancelled(ts *testscript.TestScript, _ bool, args []string) {
	n := ts.Value("node").(*apitest.Node)
	n.Lock()
	defer n.Unlock()
	if got := strings.Join(n.Cancelled, "\n"); !strings.Contains(got, args[0]) {
		ts.Fatalf("cancelled: %q", got)
	}
}

// operated TEXT checks what was done with a running task.
func operated(ts *testscript.TestScript, neg bool, args []string) {
	n := ts.Value("node").(*apitest.Node)
	n.Lock()
	defer n.Unlock()
	if got := strings.Join(n.Operations, "\n"); strings.Contains(got, args[0]) == neg {
		ts.Fatalf("operations: %q", got)
	}
}

// forwards ARG… checks that pcm port-forward with these arguments reaches the
// service of the fake, which returns what it is sent.
func forwards(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("usage: forwards ARG…")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "pcm", append([]string{"port-forward"}, args...)...)
	cmd.Env = append(os.Environ(), "PCM_DATA="+ts.Getenv("PCM_DATA"), "HOME="+ts.Getenv("HOME"))
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	ts.Check(err)
	addr, _, _ := strings.Cut(line, " ")
	for range 3 {
		conn, err := net.Dial("tcp", addr)
		ts.Check(err)
		fmt.Fprint(conn, "ping")
		got := make([]byte, 4)
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "ping" {
			ts.Fatalf("the service answered %q, %v", got, err)
		}
		conn.Close()
	}
	ts.Check(cmd.Process.Signal(os.Interrupt))
	if err := cmd.Wait(); err != nil {
		ts.Fatalf("pcm port-forward: %v", err)
	}
}

// ready waits until the node of $PCM_DATA is ready.
func ready(ts *testscript.TestScript, _ bool, _ []string) {
	c, err := api.Dial(api.Target{Data: ts.Getenv("PCM_DATA")})
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := c.Ready(ctx)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			ts.Fatalf("the node is not ready: %v", err)
		}
	}
}

const (
	alpha = pcm.PeerID("12D3KooWAlpha11111111111111111111111111111111111111")
	beta  = pcm.PeerID("12D3KooWBeta222222222222222222222222222222222222222")
)

// fakeNode has one of everything, and runs what is submitted to it: echo prints,
// fail fails with code 3, hang never ends, again loses its first attempt.
func fakeNode() *apitest.Node {
	n := apitest.New()
	at := apitest.Now
	slots, code := 3, 0
	price := api.Price{Unit: "credit", PerTask: "0.001", PerCPUHour: "1", PerGiBHour: "0.1", PerGPUHour: "10"}
	pool := pcm.Pool{
		ID: "local-process", Adapter: "process", Capacity: pcm.Resources{CPU: 2000, Memory: 4 << 30}, Slots: 4, Sandbox: "bubblewrap",
		Price: pcm.Price{Unit: "credit", PerTask: 1000, PerCPUHour: 1_000_000, PerGiBHour: 100_000, PerGPUHour: 10_000_000},
	}
	n.StatusView.Peers, n.StatusView.Pools = 2, []pcm.Pool{pool}
	n.StatusView.Disk = api.Disk{Free: 10 << 30, Reserved: 512 << 20, Artifacts: 1 << 20, Quota: 10 << 30}
	n.StatusView.Passport = at.Add(30 * 24 * time.Hour)
	n.StatusView.Warnings = []string{"the clock of beta is 3 s off"}
	n.PeerList = []api.Peer{
		{ID: alpha, Name: "alpha", Account: "acc-alphaalphaalpha", Self: true, Role: "leader"},
		{ID: beta, Name: "beta", Account: "acc-betabetabeta", Connected: true, Role: "replica", LatencyMS: 1.25, SeenAt: at, Transport: "quic", Addrs: []string{"/ip4/127.0.0.1/udp/7419/quic-v1"}},
	}
	a100, _ := pcm.FindAccelerator("a100.80g")
	pool.Accelerator, pool.Capacity.GPU, pool.Class = &a100.Accelerator, 2, "gpu.a100.80g"
	pool.Software, pool.Network = pcm.Software{"cuda": "12.4"}, &pcm.Network{Bandwidth: 100_000, Fabric: "infiniband"}
	pool.Features = []pcm.Feature{pcm.FeatureCommand, pcm.FeatureExec}
	n.OfferList = []api.Offer{{ID: string(beta) + "/local-process", Peer: beta, Name: "beta", Account: "acc-betabetabeta", Cell: "cell-aaaaaaaaaaaaaaaa",
		Number: 7, Pool: pool, FreeSlots: &slots, Price: price, Source: alpha, AgeMS: 61_000, NotAfter: at.Add(time.Hour)}}
	n.CellList = []api.Cell{{ID: "cell-aaaaaaaaaaaaaaaa", Name: "alpha", Leader: alpha, Term: 2, Index: 40, Applied: 40, Records: 12, Root: "c0ffee", LogTime: at,
		Members: []api.CellMember{{ID: alpha, Name: "alpha", Role: "leader", Alive: true}, {ID: beta, Name: "beta", Role: "replica"}}, Size: 2, MaxMembers: 2, Open: true},
		{ID: "cell-bbbbbbbbbbbbbbbb", Name: "east", Away: true, Leader: "12D3KooWFourthPeer000000044444444", Term: 5, Size: 7, MaxMembers: 256, Open: true,
			Source: beta, AgeMS: 65_000, NotAfter: at.Add(time.Hour), Members: []api.CellMember{{ID: "12D3KooWFourthPeer000000044444444", Role: "leader"}, {ID: beta, Name: "beta", Role: "voter"}, {ID: alpha, Name: "alpha", Role: "voter"}}}}
	n.HealthView = api.CellHealth{
		ID: "cell-aaaaaaaaaaaaaaaa", Name: "alpha", Leader: alpha, MaxVoters: 3, Plan: "beta is ready to vote; it waits for a second one, since an even number of voters is weaker",
		Members: []api.PeerHealth{
			{ID: alpha, Name: "alpha", Role: "leader", Answers: true, Applied: 40, Last: 40, Complete: true, Eligible: true, Account: "acc-alphaalphaalpha", Site: "hall-1"},
			{ID: beta, Name: "beta", Role: "replica", Answers: true, Applied: 40, Last: 40, Complete: true, Ready: true, CaughtMS: 95_000, Eligible: true, Account: "acc-betabetabeta"},
		},
	}
	n.SavedFile = []byte("saved")
	n.RecoveryView = api.CellRecovery{
		ID: "cell-aaaaaaaaaaaaaaaa", Name: "alpha", Peer: alpha, Possible: true, Index: 40, Keep: []string{}, Lost: []string{"beta"}, Warnings: []string{"what only beta knew is lost"},
		Survivors: []api.Survivor{
			{ID: alpha, Name: "alpha", Role: "voter", Answers: true, Last: 40, Term: 2, Applied: 40, Complete: true}, {ID: beta, Name: "beta", Role: "voter"},
		},
	}
	done := pcm.JobID("job-aaaaaaaaaaaaaaaa")
	n.AddJob(api.Job{
		ID: done, Name: "wordcount", State: pcm.JobDone, Account: "acc-alphaalphaalpha", Submitter: alpha, Driver: alpha, DriverTerm: 1, Takeover: "account",
		SubmittedAt: at, EndedAt: at.Add(1500 * time.Millisecond), Settled: true, Unit: "credit", Budget: "5", Held: "0", Paid: "0.0025",
		Counts: api.TaskCounts{Total: 2, Done: 2},
	}, api.Task{ID: string(done) + "/count/0", Job: done, Step: "count", Index: 0, State: pcm.TaskDone, Attempt: 1, Seller: beta, SellerName: "beta",
		Trade: "trd-cccccccccccccccc", Outcome: pcm.OutcomeOK, ExitCode: &code, Usage: &pcm.Usage{WallMS: 120, CPUMS: 80, MaxMemory: 3 << 20}},
		api.Task{ID: string(done) + "/count/1", Job: done, Step: "count", Index: 1, State: pcm.TaskDone, Attempt: 2, Seller: alpha, SellerName: "alpha",
			Trade: "trd-dddddddddddddddd", Outcome: pcm.OutcomeOK, ExitCode: &code, History: []string{"1 on beta: lost: silent for 12 s"}})
	for i, words := range []string{"10 words\n", "20 words\n"} {
		n.Output[fmt.Sprintf("%s/0/%d/stdout", done, i)] = []byte(words)
		n.Output[fmt.Sprintf("%s/0/%d/stderr", done, i)] = []byte("reading\n")
		n.Output[fmt.Sprintf("%s/0/%d/out/deep/result.txt", done, i)] = []byte(words)
	}
	n.TradeList = []api.Trade{{ID: "trd-cccccccccccccccc", Cell: "cell-aaaaaaaaaaaaaaaa", Job: done, Tasks: 2, Attempt: 1, Buyer: "acc-alphaalphaalpha", Seller: beta, SellerName: "beta",
		SellerAccount: "acc-betabetabeta", Pool: "local-process", Adapter: "process", Price: price, States: map[pcm.AttemptState]int{"settled": 1, "lost": 1},
		State: "closed", Unit: "credit", Held: "0", Paid: "0.0025", At: at}}
	n.BalanceList = []api.Balance{{ID: "a/b/credit", Cell: "cell-aaaaaaaaaaaaaaaa", Buyer: "acc-alphaalphaalpha", Seller: "acc-betabetabeta", Unit: "credit", Owed: "0.0025", Held: "0", Limit: "1000"}}
	n.RecordList = []api.RecordView{{ID: "0", Number: 0, Index: 3, Time: at, By: alpha, Kinds: []string{"enroll"}, Hash: "0123456789abcdef"}, {ID: "1", Number: 1, Index: 4, Time: at, Kinds: []string{"lost"}, Hash: "fedcba9876543210"}}
	n.VerdictView = api.Verdict{ID: "cell-aaaaaaaaaaaaaaaa", Cell: "cell-aaaaaaaaaaaaaaaa", OK: true, Records: 12, Signatures: 11, Root: "c0ffee", Checks: []string{"signatures", "invariants"}, TookMS: 5}
	n.Explained = api.Explanation{Steps: []api.StepExplain{{Step: "run", Shape: pcm.Resources{CPU: 100, Memory: 64 << 20}, Strategy: "cheapest", Summary: "1 of 2 pools fits",
		Candidates: []api.CandidateView{{Peer: beta, Name: "beta", Pool: "local-process", OK: true, Room: 3, Score: 0.5, Cost: "0.1"}, {Peer: alpha, Name: "alpha", Pool: "local-wasm", Filter: "adapter", Reason: "it runs modules, the step is a command"}}}}}
	live := pcm.JobID("job-livelivelivelive")
	n.AddJob(api.Job{
		ID: live, Name: "web", State: pcm.JobOpen, Account: "acc-alphaalphaalpha", Submitter: alpha, Driver: alpha, DriverTerm: 1, Takeover: "account",
		SubmittedAt: at, Unit: "credit", Held: "1", Paid: "0", Counts: api.TaskCounts{Total: 2, Placed: 1, Waiting: 1},
		Services: []api.ServiceView{{Step: "web", Port: 8080, Scale: 2, Most: 2, Placed: 1}},
	}, api.Task{ID: string(live) + "/web/0", Job: live, Step: "web", Index: 0, State: pcm.TaskPlaced, Attempt: 1, Seller: beta, SellerName: "beta", Trade: "trd-livelivelivelive"},
		api.Task{ID: string(live) + "/web/1", Job: live, Step: "web", Index: 1, State: pcm.TaskWaiting, Reason: "no room"})
	n.Output[string(live)+"/0/0/out/log.txt"] = []byte("a line\n")
	n.Output[string(live)+"/0/0/out/deep/a/b.txt"] = []byte("b\n")
	n.AutoRun = runFake
	sellFake(n, price)
	dealFake(n)
	return n
}

// dealFake gives the fake offers between accounts, and settings.
func dealFake(n *apitest.Node) {
	n.AgreementList = []api.Agreement{
		{ID: "net-aaaaaaaaaaaaaaaa", Kind: api.AgreeNetting, State: api.AgreementOffered, From: "acc-alphaalphaalpha", To: "acc-betabetabeta", Unit: "credit",
			Lines: []api.AgreementLine{{Cell: "cell-aaaaaaaaaaaaaaaa", From: "0.3", To: "0.2"}}, Payer: "acc-alphaalphaalpha", Rest: "0.1", At: apitest.Now, Until: apitest.Now.Add(time.Hour), Text: "handed to peer beta", Line: "pcm-netting-AAAA"},
		{ID: "res-bbbbbbbbbbbbbbbb", Kind: api.AgreeResolution, State: api.AgreementAsked, From: "acc-betabetabeta", To: "acc-alphaalphaalpha", Unit: "credit",
			Trade: "trd-cccccccccccccccc", Tasks: "0-1", Amount: "0.05", At: apitest.Now, Note: "half was good", Line: "pcm-resolution-BBBB"},
	}
	voters := []api.CellVoter{{Account: "acc-alphaalphaalpha", Name: "alpha"}, {Account: "acc-betabetabeta", Name: "beta"}}
	n.SettingList = []api.CellSetting{
		{ID: "keep", Value: "all", Default: "all", Form: "all, or a number of days like 90d", Needs: 2, Voters: voters, Wanted: []api.CellVote{{Account: "acc-betabetabeta", Value: "90d"}}},
		{ID: "max_voters", Value: "5", Version: 2, Default: "3", Form: "1, 3 or 5", Needs: 2, Voters: voters},
	}
}

// sellFake gives the fake what an operator looks at.
func sellFake(n *apitest.Node, price api.Price) {
	at, buyer, zero, code := apitest.Now, pcm.AccountID("acc-betabetabeta"), 0, 3
	n.PoolList = []api.OwnPool{
		{ID: "local-process", Adapter: "process", Capacity: pcm.Resources{CPU: 2000, Memory: 4 << 30}, Slots: 4, Reserved: pcm.Resources{CPU: 100, Memory: 64 << 20},
			ReservedSlots: 1, Running: 1, Price: price, State: api.PoolOffered, Seen: at.Add(-3 * time.Second), Sandbox: "bubblewrap", Features: []pcm.Feature{pcm.FeatureCommand}},
		{ID: "batch", Adapter: "slurm", Capacity: pcm.Resources{CPU: 64000, Memory: 256 << 30}, Slots: 1000, Price: price,
			State: api.PoolUnobservable, Reason: "slurmctld doesn't answer", Since: at},
	}
	n.AttemptList = []api.Attempt{{ID: "trd-eeeeeeeeeeeeeeee/0", Trade: "trd-eeeeeeeeeeeeeeee", Try: 1, Job: "job-eeeeeeeeeeeeeeee", Step: "train", Buyer: buyer, Driver: beta,
		Pool: "local-process", Adapter: "process", Program: "python3", Resources: pcm.Resources{CPU: 100, Memory: 64 << 20}, LimitMS: 3600_000,
		State: "pending", Native: "PENDING", Reason: "Priority", Awarded: at, Usage: pcm.Usage{CPUMS: 1500, MaxMemory: 3 << 20}, LeaseMS: 9000}}
	n.SaleRules = []api.SaleRule{
		{Rule: pcm.Rule{Name: "small", Pools: []string{"gpu-*"}, Accept: "job.gpu < 2", Reason: "too many"}, Public: true},
		{Rule: pcm.Rule{Name: "half", Limit: &pcm.Limit{Share: 50, Tasks: 3}}, Public: true},
		{Rule: pcm.Rule{Name: "nights", When: "!buyer.own", Accept: "time.hour > 20"}},
	}
	n.RuleList = []api.AccountRule{{ID: string(buyer), Kind: "account", Rule: "deny", Note: "unpaid", Since: at}}
	n.CheckupView = api.NewCheckup(string(alpha), []api.Finding{{Check: "cell", Status: api.CheckWarn, Text: "2 of 3 voters can be reached from here", Hint: "look at beta"}})
	n.AuditList = []api.AuditEntry{
		{ID: "2", At: at, Event: "cordon", Who: "uid 0", Pool: "local-process", Reason: "new disk"},
		{ID: "1", At: at.Add(-time.Minute), Event: "ended", Buyer: buyer, Peer: beta, Job: "job-eeeeeeeeeeeeeeee", Step: "train", Trade: "trd-eeeeeeeeeeeeeeee", Task: &zero, Attempt: 1,
			Pool: "local-process", Program: "python3", Outcome: pcm.OutcomeFailed, ExitCode: &code, Usage: &pcm.Usage{WallMS: 2000, CPUMS: 1500}},
		{ID: "0", At: at.Add(-48 * time.Hour), Event: "awarded", Buyer: "acc-old", Trade: "trd-ffffffffffffffff", Tasks: "0-3"},
	}
}

func runFake(s api.Submission, n *apitest.Node) {
	state := pcm.JobDone
	at := 0
	for si, st := range s.Spec.Steps {
		for i := range st.Count {
			words := append(st.Command, "module")
			ok, code := pcm.TaskDone, 0
			switch words[0] {
			case "hang":
				n.Write(s.ID, si, i, "stdout", "hanging\n")
				return
			case "fail":
				n.Write(s.ID, si, i, "stderr", "boom\n")
				ok, code, state = pcm.TaskFailed, 3, pcm.JobFailed
			case "echo":
				n.Write(s.ID, si, i, "stdout", strings.Join(st.Command[1:], " ")+"\n")
			}
			n.Task(s.ID, at, func(t *api.Task) {
				t.State, t.Attempt, t.ExitCode, t.Seller, t.SellerName = ok, 1, &code, beta, "beta"
				t.Outcome = pcm.OutcomeOK
				if code != 0 {
					t.Outcome = pcm.OutcomeFailed
				}
			})
			at++
		}
	}
	n.End(s.ID, state, "")
}
