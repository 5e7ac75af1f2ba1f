package nodetest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// patience bounds what a test waits for that ought to come soon: long enough for
// a machine that does much else.
const patience = 90 * time.Second

var built struct {
	once   sync.Once
	dir    string
	binary string
	err    error
}

// Main runs the tests of a package and removes the program that they built.
func Main(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir) // in the temporary folder
	}
	os.Exit(code)
}

// Binary is the pcm program of this checkout, built once for all tests of a
// package, or that of PCM_TEST_BINARY.
func Binary(t testing.TB) string {
	t.Helper()
	if b := os.Getenv("PCM_TEST_BINARY"); b != "" {
		return b
	}
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "pcm-test-"); built.err != nil {
			return
		}
		var log bytes.Buffer
		if built.binary, built.err = Build(built.dir, &log); built.err != nil {
			built.err = fmt.Errorf("%w\n%s", built.err, log.Bytes())
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.binary
}

// Spec is what a peer of a test is like.
type Spec struct {
	Name   string
	Config string // YAML, as in a configuration file
	Same   string // name of an earlier peer whose account this one shares
}

// Configurations of peers.
const (
	// Buyer sells nothing.
	Buyer = "adapters:\n  process:\n    enabled: false\n  wasm:\n    enabled: false\n"
)

// Seller sells at a price for each task, through the process adapter and WebAssembly.
func Seller(perTask string) string { return seller(perTask, "auto", 0) }

// Bare sells through the process adapter without a sandbox, so that tests can
// look at what its tasks do, with a number of slots (0: by the machine's cores).
func Bare(perTask string, slots int) string { return seller(perTask, "none", slots) }

func seller(perTask, sandbox string, slots int) string {
	return fmt.Sprintf(`adapters:
  process:
    sandbox: %s
    allow_unsandboxed: true
    slots: %d
    price:
      per_task: %q
  wasm:
    price:
      per_task: %q
`, sandbox, slots, perTask, perTask)
}

// Mesh is some peers that know each other.
type Mesh struct {
	T     testing.TB
	Dir   string
	Peers []*Peer
}

// Peer is a peer of a test. Its helpers end the test when something fails.
type Peer struct {
	*Process
	*api.Client
	T    testing.TB
	spec Spec
}

// New starts peers that form one mesh and waits until all of them take work and
// see each other's offers; with -short it skips the test instead. At the end of the test everything is ended; if the
// test failed, the logs are shown.
func New(t testing.TB, specs ...Spec) *Mesh {
	t.Helper()
	m := Empty(t)
	for i, s := range specs {
		p := m.Add(s)
		if i == 0 {
			p.Up()
		} else {
			p.Up("--join", m.Peers[0].Token())
		}
	}
	m.AwaitWhole()
	return m
}

// Empty is a mesh that has no peers yet; with -short it skips the test instead.
func Empty(t testing.TB) *Mesh {
	t.Helper()
	if testing.Short() {
		t.Skip("it starts real peers")
	}
	return &Mesh{T: t, Dir: tempDir(t)}
}

// Sells tells whether the peer sells anything.
func (p *Peer) Sells() bool { return !strings.HasPrefix(p.spec.Config, Buyer) }

// tempDir is a folder with a short name, for the sockets' sake.
func tempDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "pcm-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("can't remove %s: %v", dir, err)
		}
	})
	return dir
}

// Add makes a peer without starting it.
func (m *Mesh) Add(s Spec) *Peer {
	m.T.Helper()
	dir := filepath.Join(m.Dir, s.Name)
	config := filepath.Join(m.Dir, s.Name+".yaml")
	text := s.Config
	if s.Same != "" {
		text += "account_key: " + filepath.Join(m.Peer(s.Same).Dir, "account.key") + "\n"
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		m.T.Fatal(err)
	}
	proc := &Process{Binary: Binary(m.T), Name: s.Name, Dir: dir, Config: config, Log: filepath.Join(m.Dir, s.Name+".log")}
	p := &Peer{Process: proc, Client: proc.Client(), T: m.T, spec: s}
	m.Peers = append(m.Peers, p)
	m.T.Cleanup(func() {
		p.Kill()
		if err := p.Sweep(); err != nil {
			m.T.Error(err)
		}
		if m.T.Failed() {
			m.T.Logf("log of %s:\n%s", p.Name, p.Tail(60))
		}
	})
	return p
}

// Peer finds a peer by name.
func (m *Mesh) Peer(name string) *Peer {
	m.T.Helper()
	i := slices.IndexFunc(m.Peers, func(p *Peer) bool { return p.Name == name })
	if i < 0 {
		m.T.Fatalf("no peer is called %s", name)
	}
	return m.Peers[i]
}

// Eventually waits until a condition holds.
func Eventually(t testing.TB, what string, condition func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := Await(ctx, condition); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// AwaitWhole waits until all peers are members of one cell, with as many voters as
// there can be, and know what the others sell.
func (m *Mesh) AwaitWhole() {
	m.T.Helper()
	voters := 1
	if len(m.Peers) >= 3 {
		voters = 3
	}
	if len(m.Peers) >= 5 {
		voters = 5
	}
	Eventually(m.T, "the mesh is whole", func(ctx context.Context) error {
		for _, p := range m.Peers {
			c, err := p.cell(ctx)
			if err != nil {
				return err
			}
			n := 0
			for _, member := range c.Members {
				if member.Role == "voter" || member.Role == "leader" {
					n++
				}
			}
			if c.Leader == "" || n < voters || len(c.Members) < len(m.Peers) {
				return fmt.Errorf("%s sees %d members, %d of them voters, leader %q", p.Name, len(c.Members), n, c.Leader)
			}
			offers, err := p.Offers(ctx)
			if err != nil {
				return err
			}
			for _, other := range m.Peers {
				sold := slices.ContainsFunc(offers.Items, func(o api.Offer) bool { return o.Name == other.Name && o.Free != nil })
				if !sold && !strings.HasPrefix(other.spec.Config, Buyer) {
					return fmt.Errorf("%s does not see that %s sells", p.Name, other.Name)
				}
			}
		}
		return nil
	})
}

func (p *Peer) cell(ctx context.Context) (api.Cell, error) {
	cells, err := p.Cells(ctx)
	if err != nil {
		return api.Cell{}, err
	}
	if len(cells.Items) == 0 {
		return api.Cell{}, fmt.Errorf("%s knows no cell", p.Name)
	}
	return cells.Items[0], nil
}

// Leader is the peer that leads the cell now.
func (m *Mesh) Leader() *Peer {
	m.T.Helper()
	var leader *Peer
	Eventually(m.T, "the cell has a leader", func(ctx context.Context) error {
		for _, p := range m.Peers {
			if st, err := p.Status(ctx); err == nil && st.Role == "leader" {
				leader = p
				return nil
			}
		}
		return fmt.Errorf("no peer leads")
	})
	return leader
}

// Verify has every running peer check its ledger: all must find it good, and all
// must have the same.
func (m *Mesh) Verify() {
	m.T.Helper()
	Eventually(m.T, "all peers have the same good ledger", func(ctx context.Context) error {
		roots := map[string][]string{}
		for _, p := range m.Peers {
			if !p.Running() {
				continue
			}
			v, err := p.Client.Verify(ctx)
			if err != nil {
				return err
			}
			if !v.OK {
				return Final(fmt.Errorf("%s finds its ledger bad: %s", p.Name, v.Problem))
			}
			key := fmt.Sprintf("%d records, root %s", v.Records, v.Root)
			roots[key] = append(roots[key], p.Name)
		}
		if len(roots) != 1 {
			return fmt.Errorf("ledgers differ: %v", roots)
		}
		return nil
	})
}

// Up starts the peer and waits until it takes work.
func (p *Peer) Up(args ...string) {
	p.T.Helper()
	if err := p.Start(args...); err != nil {
		p.T.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(p.T.Context(), patience)
	defer cancel()
	if err := p.AwaitReady(ctx); err != nil {
		p.T.Fatal(err)
	}
}

// Running tells whether the daemon runs.
func (p *Peer) Running() bool {
	ended := p.Ended()
	if ended == nil {
		return false
	}
	select {
	case <-ended:
		return false
	default:
		return true
	}
}

// Token invites one peer.
func (p *Peer) Token() string {
	p.T.Helper()
	inv, err := p.Invite(p.T.Context(), time.Hour, false)
	if err != nil {
		p.T.Fatal(err)
	}
	return inv.Token
}

// PeerID is the peer's name in the mesh.
func (p *Peer) PeerID() pcm.PeerID {
	p.T.Helper()
	st, err := p.Status(p.T.Context())
	if err != nil {
		p.T.Fatal(err)
	}
	return st.ID
}

// PCM runs the command line against this peer.
func (p *Peer) PCM(args ...string) Result {
	p.T.Helper()
	ctx, cancel := context.WithTimeout(p.T.Context(), patience)
	defer cancel()
	r, err := p.CLI(ctx, args...)
	if err != nil {
		p.T.Fatalf("pcm %s: %v", strings.Join(args, " "), err)
	}
	return r
}

// Send submits a job; its relative paths start from base.
func (p *Peer) Send(s pcm.Spec, base string) api.Job {
	p.T.Helper()
	j, err := p.Submit(p.T.Context(), api.Submission{ID: pcm.NewJobID(), Spec: s, Base: base})
	if err != nil {
		p.T.Fatalf("submit: %v", err)
	}
	return j
}

// AwaitJob waits until a job is as wanted.
func (p *Peer) AwaitJob(id pcm.JobID, what string, is func(api.Job) bool) api.Job {
	p.T.Helper()
	var j api.Job
	Eventually(p.T, fmt.Sprintf("%s: %s", id, what), func(ctx context.Context) (err error) {
		if j, err = p.Job(ctx, string(id)); err != nil {
			return err
		}
		if !is(j) {
			if api.Settled(j) {
				return Final(fmt.Errorf("it ended: %+v", j))
			}
			return fmt.Errorf("it is %+v", j)
		}
		return nil
	})
	return j
}

// Done waits until a job is settled, and checks that all of it went well.
func (p *Peer) Done(id pcm.JobID) api.Job {
	p.T.Helper()
	defer func() {
		if p.T.Failed() {
			p.showTrades(id)
		}
	}()
	j := p.AwaitJob(id, "done and settled", api.Settled)
	if j.State != pcm.JobDone || j.Counts.Done != j.Counts.Total || j.Held != "0" {
		p.T.Fatalf("%s is %s (%s): %+v", id, j.State, j.Reason, j)
	}
	return j
}

// showTrades logs a job's trades, after a failure.
func (p *Peer) showTrades(id pcm.JobID) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	l, err := p.Trades(ctx, api.Query{Job: id})
	p.T.Logf("trades of %s as %s sees them: %v", id, p.Name, err)
	for _, tr := range l.Items {
		p.T.Logf("  %s at %s, try %d, %s: %v, held %s, paid %s", tr.ID, tr.SellerName, tr.Attempt, tr.State, tr.States, tr.Held, tr.Paid)
	}
}

// JobTasks lists a job's tasks.
func (p *Peer) JobTasks(id pcm.JobID) []api.Task {
	p.T.Helper()
	l, err := p.Tasks(p.T.Context(), string(id), api.Query{})
	if err != nil {
		p.T.Fatal(err)
	}
	return l.Items
}

// AwaitRunning waits until a job's first task is placed and has begun to run,
// and returns it.
func (p *Peer) AwaitRunning(id pcm.JobID) api.Task {
	p.T.Helper()
	var task api.Task
	Eventually(p.T, string(id)+" runs", func(ctx context.Context) error {
		l, err := p.Tasks(ctx, string(id), api.Query{})
		if err != nil {
			return err
		}
		task = l.Items[0]
		trades, err := p.Trades(ctx, api.Query{Job: id})
		if err != nil {
			return err
		}
		for _, tr := range trades.Items {
			if tr.States[pcm.AttemptStarted] > 0 {
				return nil
			}
		}
		return fmt.Errorf("its task is %+v, its trades are %+v", task, trades.Items)
	})
	return task
}

// Get fetches a job's results with the command line, into a fresh folder.
func (p *Peer) Get(id pcm.JobID) string {
	p.T.Helper()
	dir, err := os.MkdirTemp("", "pcm-got-")
	if err != nil {
		p.T.Fatal(err)
	}
	p.T.Cleanup(func() { os.RemoveAll(dir) }) // in the temporary folder
	if r := p.PCM("job", "get", string(id), dir); r.Code != 0 {
		p.T.Fatalf("job get: %+v", r)
	}
	return dir
}

// Command is a job of one step that runs a shell's script.
func Command(count int, script string) pcm.Spec {
	return pcm.Spec{
		Name: "test", Takeover: pcm.TakeoverAny,
		Steps: []pcm.Step{{Name: "run", Count: count, Command: []string{"sh", "-c", script}}},
	}
}
