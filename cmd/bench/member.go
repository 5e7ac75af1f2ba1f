package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/metrics"
	corepeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/ledger"
)

// plan is what the processes of one cell under measurement have in common: they
// are peers without a mesh around them, whose passports the root key has signed.
type plan struct {
	Dir     string // of all of them
	Mesh    pcm.MeshID
	Cell    pcm.CellID
	Root    []byte   // seed
	Members [][]byte // seeds; the first founds the cell
	Caller  []byte   // seed of the peer that proposes, which is not in the cell
	Signers [][]byte // seeds of the peers whose commands it proposes
	Checks  int      // signatures that are checked of each command: 0, 1 or 2
	Store   string   // of Raft's log; "": the default
	Debug   bool     // processes log all
	Profile string   // a file for each process's CPU profile begins with it; "": none
}

func seeds(n int) [][]byte {
	list := make([][]byte, n)
	for i := range list {
		list[i] = pcm.NewKey().Seed()
	}
	return list
}

func keyOf(seed []byte) pcm.Key {
	k, err := pcm.KeyFromSeed(seed)
	if err != nil {
		panic(err) // the plan is ours
	}
	return k
}

func (p plan) genesis() ledger.Genesis {
	return ledger.Genesis{Mesh: p.Mesh, Root: keyOf(p.Root).Public(), Cell: p.Cell, Name: "bench"}
}

// verify is the check of signatures that the plan asks for; nil: the usual one.
func (p plan) verify() func([]pcm.Signed) []bool {
	if p.Checks == 1 {
		return nil
	}
	return func(batch []pcm.Signed) []bool {
		ok := make([]bool, len(batch))
		for i := range ok {
			ok[i] = true
		}
		for range p.Checks { // of two signers, as the cost goes
			for i, good := range pcm.VerifyBatch(pcm.DomainCommand, batch) {
				ok[i] = ok[i] && good
			}
		}
		return ok
	}
}

// enrol is the command that makes a peer known to the cell.
func (p plan) enrol(key pcm.Key, logTime int64) (pcm.Signed, error) {
	root := keyOf(p.Root)
	passport, err := pcm.IssuePassport(root, root.Public(), pcm.Signed{}, pcm.Passport{
		Mesh: p.Mesh, Peer: key.Peer(), Account: key.Account(), Name: "bench", AccountBy: pcm.SignJoin(key, p.Mesh, key.Peer()),
	}, time.Now())
	return p.sign(key, key.Peer(), logTime, pcm.Op{Enroll: &pcm.Enroll{Passport: passport}}), err
}

func (p plan) sign(key pcm.Key, self pcm.PeerID, logTime int64, ops ...pcm.Op) pcm.Signed {
	return key.Seal(pcm.DomainCommand, pcm.Command{
		Version: pcm.CommandVersion, ID: pcm.NewCommandID(), Mesh: p.Mesh, Cell: p.Cell, Peer: self,
		NotAfter: logTime + pcm.CommandWindow - 5_000, Ops: ops,
	})
}

// work is a command of about 400 bytes, signature and all, that takes effect: a
// job is submitted and withdrawn, and goes from the hot state to the documents.
func (p plan) work(key pcm.Key, self pcm.PeerID, logTime int64) pcm.Signed {
	return p.sign(key, self, logTime, submitAndCancel(pcm.NewJobID())...)
}

func submitAndCancel(job pcm.JobID) []pcm.Op {
	return []pcm.Op{
		{Submit: &pcm.Submit{Job: job, Name: "bench", Spec: pcm.DigestOf([]byte(job)), Steps: []pcm.Shape{{Count: 1}}, Unit: "credit", Takeover: pcm.TakeoverNone}},
		{Cancel: &pcm.Cancel{Job: job, Reason: "measured"}},
	}
}

// order is what the bench asks of one of its processes, a line of JSON each.
type order struct {
	Do    string   `json:"do"`              // see member.serve
	Peers []string `json:"peers,omitempty"` // meet: addresses of the others
	Load  loading  `json:"load,omitzero"`
	N     int      `json:"n,omitempty"`
}

// answer is what a process says to an order.
type answer struct {
	Addr   string `json:"addr,omitempty"`
	Status state  `json:"status,omitzero"`
	Report report `json:"report,omitzero"`
	Err    string `json:"err,omitempty"`
}

// state is a cell as one of its members sees it.
type state struct {
	Leader   pcm.PeerID `json:"leader"`
	Voters   int        `json:"voters"`
	Applied  uint64     `json:"applied"`
	Records  uint64     `json:"records"`
	Whole    bool       `json:"whole,omitempty"`    // all records are there
	Restored int64      `json:"restored,omitempty"` // snapshots taken over, that of the start included
	Hot      int        `json:"hot,omitempty"`      // bytes of a snapshot
	Allocs   uint64     `json:"allocs,omitempty"`   // objects, since the start
	Apply    int64      `json:"apply,omitempty"`    // ns of CPU that the ledger has taken to apply, since the start
	Seen     int        `json:"seen,omitempty"`     // commands of the bench in the records
	Sent     int64      `json:"sent,omitempty"`     // bytes in streams
}

// report is the outcome of a load.
type report struct {
	Acknowledged int     `json:"acknowledged"`
	Failed       int     `json:"failed"`
	Seconds      float64 `json:"seconds"`
	P50MS        float64 `json:"p50_ms"`
	P99MS        float64 `json:"p99_ms"`
	GapMS        float64 `json:"gap_ms"` // longest time without an acknowledgement
	Bytes        int     `json:"bytes"`  // of a command
}

// member is one process of a cell, or its caller.
type member struct {
	plan plan
	key  pcm.Key
	name string
	host host.Host

	traffic *metrics.BandwidthCounter

	at int // its place among the members; -1: the caller

	state  *timed
	cell   *consensus.Cell
	client *consensus.Away
	cells  []*consensus.Cell // of a crowd

	flooding *flood       // nil: not yet
	signed   []pcm.Signed // for the next load
}

// timed is a ledger that tells what it takes.
type timed struct {
	*ledger.State
	took     atomic.Int64 // ns of CPU in Apply: what others do on the same cores doesn't count
	restored atomic.Int64 // snapshots
}

// Restore implements consensus.Machine.
func (t *timed) Restore(state []byte) error {
	t.restored.Add(1)
	return t.State.Restore(state)
}

// Apply implements consensus.Machine.
func (t *timed) Apply(index uint64, e pcm.Entry) pcm.Effects {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begun := threadTime()
	defer func() { t.took.Add(threadTime() - begun) }()
	return t.State.Apply(index, e)
}

// threadTime is the CPU time of this thread, ns.
func threadTime() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		panic(err) // every Linux has that clock
	}
	return ts.Nano()
}

// runMember serves orders until standard input ends.
func runMember(path string, at int) (err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	m := &member{at: at, name: "caller", traffic: metrics.NewBandwidthCounter()}
	if err := json.Unmarshal(data, &m.plan); err != nil {
		return err
	}
	m.key = keyOf(m.plan.Caller)
	if at >= 0 {
		m.key, m.name = keyOf(m.plan.Members[at]), fmt.Sprint("member", at)
	}
	m.host, err = libp2p.New(libp2p.Identity(m.key.LibP2P()), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay(), libp2p.BandwidthReporter(m.traffic))
	if err != nil {
		return err
	}
	defer m.host.Close()
	defer m.close()
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(answer{Addr: m.host.Addrs()[0].String() + "/p2p/" + m.host.ID().String()}); err != nil {
		return err
	}
	in := json.NewDecoder(bufio.NewReader(os.Stdin))
	for {
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		a, err := m.serve(o)
		if err != nil {
			a.Err = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

func (m *member) close() {
	if m.client != nil {
		m.client.Close()
	}
	if m.cell != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		m.cell.Close(ctx)
	}
	for _, c := range m.cells {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // nobody has to lead on
		c.Close(ctx)
	}
	if m.plan.Profile != "" {
		pprof.StopCPUProfile()
	}
}

func (m *member) serve(o order) (a answer, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	switch o.Do {
	case "meet":
		for _, s := range o.Peers {
			info, err := corepeer.AddrInfoFromString(s)
			if err != nil {
				return a, err
			}
			m.host.Peerstore().ClearAddrs(info.ID)
			m.host.Peerstore().AddAddrs(info.ID, info.Addrs, peerstore.PermanentAddrTTL)
		}
		return a, nil
	case "open":
		return a, m.open()
	case "grow":
		return a, m.grow(ctx, m.cell)
	case "status":
		st := m.cell.Status()
		a.Status = state{Leader: st.Leader, Applied: st.Applied, Records: st.Records, Whole: st.Complete, Restored: m.state.restored.Load()}
		for _, p := range st.Members {
			if p.Role == consensus.RoleVoter || p.Role == consensus.RoleLeader {
				a.Status.Voters++
			}
		}
		return a, m.cell.Err()
	case "hot":
		var data []byte
		m.cell.View(func() { data, err = m.state.Snapshot() })
		a.Status = state{Hot: len(data)}
		return a, err
	case "allocs":
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		a.Status.Allocs, a.Status.Apply = ms.Mallocs, m.state.took.Load()
		return a, nil
	case "sent":
		a.Status.Sent = m.traffic.GetBandwidthTotals().TotalOut
		return a, nil
	case "count":
		a.Status.Seen, err = m.count()
		return a, err
	case "fill":
		a.Report, err = m.fill(o.N)
		return a, err
	case "flood":
		m.flooding = m.flood()
		return a, nil
	case "ebb":
		m.flooding.stop()
		<-m.flooding.done
		a.Report = m.flooding.r
		return a, m.flooding.err
	case "crowd":
		return a, m.crowd(ctx, o.N)
	case "resting":
		for _, c := range m.cells {
			if c.Status().Resting {
				a.Report.Acknowledged++
			}
		}
		return a, nil
	case "touch":
		a.Report, err = m.touch(ctx, o.N)
		return a, err
	case "enrol":
		return a, m.enrol(ctx)
	case "sign":
		m.signed, err = m.commands(ctx, o.N)
		return a, err
	case "load":
		a.Report, err = m.load(o.Load)
		return a, err
	case "heap":
		return a, m.heap(".heap")
	case "profile":
		if m.plan.Profile == "" {
			return a, nil
		}
		f, err := os.Create(m.plan.Profile + m.name + ".prof")
		if err != nil {
			return a, err
		}
		return a, pprof.StartCPUProfile(f)
	case "profiled": // what is on the heap by now is written beside
		pprof.StopCPUProfile()
		return a, m.heap(".heap.prof")
	}
	return a, fmt.Errorf("order %q is not known", o.Do)
}

// grow takes the other members into a cell that this one founded.
func (m *member) grow(ctx context.Context, c *consensus.Cell) error {
	for _, seed := range m.plan.Members[1:] {
		if err := c.AddReplica(ctx, keyOf(seed).Peer()); err != nil {
			return err
		}
	}
	return nil
}

// heap writes what is on the heap to a file beside the profile, if there is to be one.
func (m *member) heap(ending string) error {
	if m.plan.Profile == "" {
		return nil
	}
	f, err := os.Create(m.plan.Profile + m.name + ending)
	if err != nil {
		return err
	}
	runtime.GC() // else it is what there was at the last one
	return errors.Join(pprof.WriteHeapProfile(f), f.Close())
}

func (m *member) open() (err error) {
	file, err := os.OpenFile(filepath.Join(m.plan.Dir, m.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	level := slog.LevelWarn
	if m.plan.Debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(file, &slog.HandlerOptions{Level: level})) // as long as the process
	if m.at < 0 {
		m.client, err = consensus.NewAway(consensus.AwayConfig{
			Cell: m.plan.Cell, Self: m.key.Peer(), Host: m.host, Logger: log,
			Peers: func() (list []pcm.PeerID) {
				for _, seed := range m.plan.Members {
					list = append(list, keyOf(seed).Peer())
				}
				return list
			},
		})
		return err
	}
	m.state = &timed{State: ledger.New(m.plan.genesis())}
	m.cell, err = consensus.Open(consensus.Config{
		Dir: filepath.Join(m.plan.Dir, m.name), Mesh: m.plan.Mesh, Cell: m.plan.Cell, Self: m.key.Peer(), Host: m.host,
		Machine: m.state, Bootstrap: m.at == 0, Logger: log, MaxVoters: cmp.Or(len(m.plan.Members), 1),
		Verify: m.plan.verify(), LogStore: m.plan.Store,
		Check: ledger.Check,
	})
	return err
}

func (m *member) enrol(ctx context.Context) error {
	logTime, err := m.logTime(ctx)
	if err != nil {
		return err
	}
	for _, seed := range m.plan.Signers {
		s, err := m.plan.enrol(keyOf(seed), logTime)
		if err != nil {
			return err
		}
		r, err := m.client.Propose(ctx, s)
		if err != nil {
			return err
		}
		if err := r[0].First(); err != nil {
			return err
		}
	}
	return nil
}

// logTime is the cell's log time, ms. Its leader knows none ahead of its first entry.
func (m *member) logTime(ctx context.Context) (t int64, err error) {
	err = until(ctx, time.Minute, 50*time.Millisecond, "the cell tells its log time", func() (bool, error) {
		_, err := m.client.Locate(ctx)
		t = m.client.LogTime()
		return t > 0, err
	})
	return t, err
}
