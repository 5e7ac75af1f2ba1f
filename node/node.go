// Package node is one peer: it ties mesh, cell, store and adapters together and
// runs the loops by which work flows. Each step of the flow has a file of its own:
// submit, drive, match, place, award, execute, finish, accept, settle.
package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/mesh"
	"github.com/jointcloud/pcm/mesh/artifact"
	"github.com/jointcloud/pcm/node/rules"
)

// Config is what a peer is started with. Dir and Logger are required.
type Config struct {
	Dir        string // data folder
	Name       string // for people
	Version    string
	Labels     pcm.Labels
	AccountKey string // path of the account's key; "": in the data folder

	Join      string   // token of the mesh to join; "": found one, or go on in the one of the data folder
	Cell      string   // where to go: a cell's name or ID, or "new:NAME" to found one; "": the mesh's first cell is called like the peer, a newcomer goes where it is sent
	Listen    []string // multiaddrs
	Announce  []string
	Bootstrap []string
	MDNS      bool
	PortMap   bool

	Sales      []Sale                    // what this peer sells
	Facts      map[pcm.PoolID]Facts      // what the back ends don't tell of their pools
	Operations Operations                // with running tasks, that this peer allows
	Rules      func() (rules.Set, error) // on which this peer sells, as they are written now; nil: none

	Credit pcm.Micro // most that any one other account may owe this peer

	LedgerArchive string // folder for records that the cell no longer keeps; "": none are removed here

	StoreQuota   pcm.Bytes
	StoreReserve pcm.Bytes
	Profile      string // of the cell's timing: lan or wan

	API    func() []string // where the local API listens, for status
	Logger *slog.Logger
}

// Sale is an adapter whose pools are sold at a price.
type Sale struct {
	Adapter adapters.Adapter
	Price   pcm.Price
}

// Node is one running peer.
type Node struct {
	cfg         Config
	log         *slog.Logger
	id          *identity
	self        pcm.PeerID
	account     pcm.AccountID
	incarnation uint64
	startedAt   time.Time

	mesh  *mesh.Mesh
	cell  *consensus.Cell
	state *ledger.State // read only within cell.View
	store *artifact.Store
	files *artifact.Service

	specs   *specs
	drivers *drivers
	seller  *seller
	rankers rankers
	rooms   *rooms // in other cells
	ears    *ears
	owed    owedAbroad
	offer   *selling
	glass   *transparency
	aways   *aways
	bought  *bought
	joins   sync.Mutex // held while another cell's issuer has a peer taken in
	changes *changes
	pulse   pulse
	metrics *metrics

	retention *retention

	owners       *owners
	awards       awards
	denials      denials
	asking       askPaces
	rules        atomic.Pointer[rules.Set] // this peer's own
	book         rules.Book                // compiled, of all peers
	operator     *operator
	audit        *auditLog
	deals        *deals
	latest       atomic.Uint64 // highest Raft index that this peer has heard of
	lastRenewal  atomic.Int64  // adapters.BootTime at which the last committed renewal was sent
	renewalIndex atomic.Uint64 // of that renewal's Raft entry, or of a later one's

	voting atomic.Pointer[consensus.Cell] // the cell, for checks that may come before it is open
	signs  atomic.Pointer[transparency]   // the same as glass, for questions that may come before it is open

	renewed  chan struct{} // a renewed passport is to be enrolled
	member   chan struct{} // closed when the cell knows this peer
	enrolled sync.Once
	rejoin   atomic.Bool // moves to another mesh when the node ends

	run      context.Context // ends when the node does; for work that outlives a request
	stop     context.CancelCauseFunc
	draining atomic.Bool // takes no new work
	left     atomic.Bool // membership was given up
	closing  sync.Once
	closed   error
}

// ErrDown is why a node ends that was asked to.
var ErrDown = errors.New("asked to go down")

// ErrRejoin is why a node ends that is to be opened again: it has moved to another
// mesh, or its cell is to be recovered or rejoined.
var ErrRejoin = errors.New("to be opened again")

// Open brings the peer up: identity, mesh, cell, store. When it returns, the
// peer listens; Run makes it work. Errors are for the operator to read.
func Open(ctx context.Context, cfg Config) (*Node, error) {
	n := &Node{
		cfg: cfg, log: cfg.Logger, startedAt: time.Now(), incarnation: uint64(time.Now().UnixMilli()),
		renewed: make(chan struct{}, 1), member: make(chan struct{}),
	}
	n.run, n.stop = context.WithCancelCause(context.Background())
	ok := false
	defer func() {
		if !ok {
			n.Close()
		}
	}()
	if err := n.openIdentity(ctx); err != nil {
		return nil, err
	}
	if err := n.leaveOldCell(); err != nil {
		return nil, err
	}
	n.self, n.account = n.id.Peer.Peer(), n.id.Account.Account()
	n.log = n.log.With("self", pcm.Short(n.self))
	n.changes = newChanges()
	n.metrics = newMetrics(n)

	var err error
	member := n.id.Mesh
	n.mesh, err = mesh.New(mesh.Config{
		Key: n.id.Peer, Mesh: member.Mesh, Root: member.root(), Passport: member.Passport,
		Listen: cfg.Listen, Announce: cfg.Announce, Bootstrap: append(append([]string{}, cfg.Bootstrap...), member.Bootstrap...),
		MDNS: cfg.MDNS, PortMap: cfg.PortMap, PeersFile: filepath.Join(cfg.Dir, "peers"),
		OnPassport: n.keepPassport, SelfIssue: n.selfIssue(), Logger: n.log,
	})
	if err != nil {
		return nil, err
	}
	n.store, err = artifact.Open(artifact.Config{
		Dir: filepath.Join(cfg.Dir, "artifacts"), Quota: cfg.StoreQuota, Reserve: cfg.StoreReserve, Logger: n.log,
	})
	if err != nil {
		return nil, err
	}
	n.owners = newOwners()
	n.loadOwners()
	n.state = ledger.New(ledger.Genesis{Mesh: member.Mesh, Root: member.root(), Cell: member.Cell, Name: member.CellName})
	if n.operator, err = openOperator(n); err != nil {
		return nil, err
	}
	if err := n.loadRules(); err != nil {
		return nil, err
	}
	if n.audit, err = openAuditLog(filepath.Join(cfg.Dir, auditDir), n.log); err != nil {
		return nil, err
	}
	n.specs = newSpecs(n)
	n.files = artifact.NewService(artifact.ServiceConfig{Store: n.store, Network: n.mesh, Allow: n.specs.mayRead, Logger: n.log})
	n.drivers = newDrivers(n)
	n.seller = newSeller(n)
	n.offer = newSelling(n)
	n.aways = newAways(n)
	n.rooms, n.ears, n.bought = newRooms(n), newEars(n), newBought(n)
	n.cell, err = consensus.Open(consensus.Config{
		Dir: filepath.Join(cfg.Dir, "cell"), Cell: member.Cell, Mesh: member.Mesh, Self: n.self,
		Host: n.mesh.Host(), Machine: n.state, Bootstrap: member.Founded && !member.Begun, Profile: consensus.Profile(cfg.Profile),
		Check: n.checkCommand, Answer: n.answerQuery, Trust: member.vouched(), Eligible: n.eligible, Owner: n.owner, Site: n.site, Settled: n.state.MaxVoters,
		Seal: n.id.Peer.Seal, Head: n.head, Logger: n.log,
	})
	if err != nil {
		return nil, err
	}
	n.voting.Store(n.cell)
	if member.Founded && !member.Begun {
		// A founder that loses the cell's folder must not begin a second history of it.
		n.id.Mesh.Begun = true
		if err := n.id.save(cfg.Dir); err != nil {
			return nil, err
		}
	}
	n.retention = newRetention(n)
	if n.glass, err = openTransparency(n); err != nil {
		return nil, err
	}
	n.signs.Store(n.glass)
	if n.deals, err = openDeals(n); err != nil {
		return nil, err
	}
	n.serve()
	ok = true
	return n, nil
}

// serve registers what other peers may ask of this one.
func (n *Node) serve() {
	n.mesh.ServeJoin(n.admit)
	n.mesh.HandleCall(protoCellJoin, mesh.Limits{Request: maxCellJoin, Concurrent: 2}, n.serveCellJoin)
	n.mesh.HandleCall(protoSpec, mesh.Limits{Concurrent: 32}, n.specs.serve)
	n.mesh.Handle(protoLogs, n.serveLogs)
	n.mesh.HandleLimited(protoSession, mesh.Limits{Concurrent: maxSessionsPeer}, n.serveSession)
	n.mesh.HandleCall(protoAsk, mesh.Limits{Request: maxAsk, Concurrent: 4}, n.serveAsk)
	n.mesh.HandleCall(protoClock, mesh.Limits{Concurrent: 8}, serveClock)
	n.mesh.HandleCall(protoAgree, mesh.Limits{Request: maxAgreement, Concurrent: 4}, n.deals.serve)
	n.mesh.HandleCall(protoAttest, mesh.Limits{Request: maxAttest, Concurrent: 32}, n.serveAttest)
	n.mesh.HandleCall(protoReceipt, mesh.Limits{Request: maxReceipt, Concurrent: 32}, n.serveReceipt)
	n.mesh.HandleCall(protoLevel, mesh.Limits{Concurrent: 4}, serveLevel)
	n.mesh.HandleCall(protoCheckpoint, mesh.Limits{Request: maxCheckpointRequest, Concurrent: 8}, n.glass.serve)
}

// Run makes the peer work until ctx ends, Down or Leave is called, or a part
// fails; then it closes everything, in the reverse order of Open.
func (n *Node) Run(ctx context.Context) error {
	defer n.Close()
	stopped := context.AfterFunc(ctx, func() { n.stop(context.Cause(ctx)) })
	defer stopped()
	g, gctx := errgroup.WithContext(n.run)
	for _, loop := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"mesh", n.mesh.Run},
		{"events", n.dispatch},
		{"enrol", n.enrol},
		{"sell", n.offer.run},
		{"renew", n.renew},
		{"take over", n.takeOver},
		{"finish", n.seller.report},
		{"watch", n.seller.watch},
		{"health", n.seller.checkHealth},
		{"meter", n.seller.meter},
		{"disk", n.watchDisk},
		{"drain", n.drainPools},
		{"audit", n.audit.run},
		{"cell", n.cell.Run},
		{"peers", n.watchPeers},
		{"transparency", n.glass.run},
		{"recovery", n.tellRecovery},
		{"partings", n.keepPartings},
		{"rejoin", n.askInAgain},
		{"levels", n.raiseLevel},
		{"retention", n.retention.run},
		{"agreements", n.deals.run},
		{"describe", n.describe},
	} {
		g.Go(func() error {
			err := loop.run(gctx)
			if err != nil && gctx.Err() == nil {
				n.log.Error("a part of the node failed", "part", loop.name, "error", err)
				return err
			}
			return nil
		})
	}
	<-gctx.Done()
	n.draining.Store(true)
	err := g.Wait()
	if cause := context.Cause(n.run); err == nil && errors.Is(cause, ErrRejoin) {
		err = cause
	}
	return errors.Join(err, n.Close())
}

// Close stops what Open started: drivers, cell (leadership is handed over
// first), mesh, store. Running tasks are left to their supervisors.
func (n *Node) Close() error {
	n.closing.Do(func() {
		n.stop(ErrDown)
		ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
		defer cancel()
		var errs []error
		if n.drivers != nil {
			n.drivers.wait(ctx)
		}
		if n.aways != nil {
			n.aways.close()
		}
		if n.cell != nil {
			errs = append(errs, n.cell.Close(ctx))
		}
		if n.mesh != nil {
			errs = append(errs, n.mesh.Close())
		}
		if n.store != nil {
			errs = append(errs, n.store.Close())
		}
		if n.audit != nil {
			errs = append(errs, n.audit.close())
		}
		n.closed = errors.Join(errs...)
		switch {
		case n.rejoin.Load():
			n.closed = errors.Join(n.closed, finishMove(n.cfg.Dir))
		case n.left.Load():
			n.closed = errors.Join(n.closed, forget(n.cfg.Dir))
		}
	})
	return n.closed
}

// commandValidity is how long a proposed command may take effect: long enough
// for a change of leader.
const commandValidity = 60 * time.Second

// command signs operations as one command for this node's cell.
func (n *Node) command(ops ...pcm.Op) pcm.Signed {
	return n.id.Peer.Seal(pcm.DomainCommand, pcm.Command{
		Version: pcm.CommandVersion, ID: pcm.NewCommandID(), Mesh: n.id.Mesh.Mesh, Cell: n.id.Mesh.Cell,
		Peer: n.self, NotAfter: n.cell.LogTime() + commandValidity.Milliseconds(), Ops: ops,
	})
}

// propose has operations committed as one command. The error is that of the
// proposal; what became of the operations is in the result.
func (n *Node) propose(ctx context.Context, ops ...pcm.Op) (pcm.CommandResult, error) {
	results, err := n.commit(ctx, [][]pcm.Op{ops})
	if err != nil {
		return pcm.CommandResult{}, err
	}
	return results[0], nil
}

// commit has lists of operations committed, each as a command of its own, in
// their order, and returns a result for each. A command whose validity in log
// time was misjudged (after a restart, a change of leader, a suspended machine) is
// signed anew: it took no effect.
func (n *Node) commit(ctx context.Context, commands [][]pcm.Op) ([]pcm.CommandResult, error) {
	results := make([]pcm.CommandResult, len(commands))
	open := make([]int, len(commands)) // those without a result
	for i := range open {
		open[i] = i
	}
	for {
		if n.cell.LogTime() == 0 {
			if err := n.cell.Sync(ctx); err != nil {
				return nil, err
			}
		}
		signed := make([]pcm.Signed, len(open))
		for k, i := range open {
			signed[k] = n.command(commands[i]...)
		}
		got, err := n.proposeAll(ctx, signed)
		if err != nil {
			return nil, err
		}
		var again []int
		for k, r := range got {
			results[open[k]] = r
			if misdated(r) {
				again = append(again, open[k])
			}
		}
		if len(again) == 0 || !pause(ctx, 100*time.Millisecond) {
			return results, nil
		}
		open = again
		if err := n.cell.Sync(ctx); err != nil { // also brings the log time
			return nil, err
		}
	}
}

// misdated tells whether a command was refused as a whole because of its validity.
func misdated(r pcm.CommandResult) bool { return r.Err != nil && r.Err.Code == pcm.Conflict }

// proposeAll has commands committed, in their order, in as few entries as they
// fit in. Results are of the commands, in order; on an error, of those before it.
func (n *Node) proposeAll(ctx context.Context, commands []pcm.Signed) ([]pcm.CommandResult, error) {
	var results []pcm.CommandResult
	for len(commands) > 0 {
		k, bytes := 0, 0
		for k < len(commands) && k < pcm.MaxEntryCommands {
			if bytes += len(commands[k].Payload) + 128; k > 0 && bytes > pcm.MaxEntryBytes/2 {
				break
			}
			k++
		}
		r, err := n.cell.Propose(ctx, commands[:k]...)
		if err != nil {
			return results, err
		}
		results, commands = append(results, r...), commands[k:]
		n.heardOf(r[len(r)-1].Index)
	}
	return results, nil
}

// heardOf notes that an entry is committed.
func (n *Node) heardOf(index uint64) {
	for {
		old := n.latest.Load()
		if index <= old || n.latest.CompareAndSwap(old, index) {
			return
		}
	}
}

// staleFor bounds how long a view waits for this peer's copy of the ledger to
// show what the peer has heard of.
const staleFor = time.Second

// fresh waits until what this peer has proposed or was told of is in its copy of
// the ledger, so that who submits a job and asks for it finds it. A copy that
// stays behind is read all the same: views are not judgements.
func (n *Node) fresh(ctx context.Context) {
	if index := n.latest.Load(); n.cell.Applied() < index {
		ctx, cancel := context.WithTimeout(ctx, staleFor)
		defer cancel()
		if err := n.cell.WaitApplied(ctx, index); err != nil {
			n.log.Debug("a view is behind", "error", err)
		}
	}
}

// checkCommand decodes a command, and is what a leader checks of it before it is proposed.
func (n *Node) checkCommand(s pcm.Signed) (pcm.Command, error) {
	cmd, err := ledger.Check(s)
	if err != nil {
		return cmd, err
	}
	return cmd, mayLead(cmd, n.self, func() []pcm.PeerID {
		if c := n.voting.Load(); c != nil {
			return c.Voters()
		}
		return nil // the cell is being opened: whoever asks will try again
	})
}

// mayLead refuses what only voters and leaders may say: who votes is known to Raft, and
// not to the ledger. A key for checkpoints gives a say in the cell's settings, and a
// level that a release doesn't speak stops every peer of it.
func mayLead(cmd pcm.Command, leader pcm.PeerID, voters func() []pcm.PeerID) error {
	for _, op := range cmd.Ops {
		switch {
		case op.NoteKey != nil && len(op.NoteKey.Key) > 0 && !slices.Contains(voters(), cmd.Peer):
			return pcm.Errorf(pcm.Forbidden, "peer %s doesn't vote in %s: only voters have note keys", pcm.Short(cmd.Peer), pcm.Short(cmd.Cell))
		case op.Base != nil && cmd.Peer != leader:
			return pcm.Errorf(pcm.Forbidden, "peer %s can't make a base of %s: its leader does", pcm.Short(cmd.Peer), pcm.Short(cmd.Cell))
		case op.Upgrade != nil && (cmd.Peer != leader || op.Upgrade.Level > pcm.LedgerLevel):
			return pcm.Errorf(pcm.Forbidden, "peer %s can't raise %s to level %d of the ledger's rules: its leader does, as soon as all its peers speak it", pcm.Short(cmd.Peer), pcm.Short(cmd.Cell), op.Upgrade.Level)
		}
	}
	return nil
}

// must is propose for operations that are all meant to take effect.
func (n *Node) must(ctx context.Context, ops ...pcm.Op) (pcm.CommandResult, error) {
	r, err := n.propose(ctx, ops...)
	if err == nil {
		err = r.First()
	}
	return r, err
}

// dispatch hands committed events to those whom they concern. An event may come
// twice; all who get it are idempotent.
func (n *Node) dispatch(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := n.follow(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("can't follow the ledger: reading it anew", "reason", err)
			pause(ctx, time.Second)
		}
	}
	return nil
}

// errBehind is why following ends when events were missed.
var errBehind = errors.New("fell behind on events")

// follow reads the state, which says what earlier events would have said, and
// hands on all events from then on.
func (n *Node) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := n.cell.Events(ctx)
	if err := n.resync(ctx); err != nil {
		return err
	}
	for batch := range events {
		for i := range batch {
			e := &batch[i]
			n.heardOf(e.Index)
			n.seller.observe(e)
			n.drivers.observe(e)
			n.changes.observe(n, e)
			n.metrics.observe(e)
		}
		n.pulse.beat()
	}
	return errBehind
}

// resync brings seller and drivers in line with the ledger.
func (n *Node) resync(ctx context.Context) error {
	sync, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := n.cell.Sync(sync); err != nil {
		return err
	}
	n.seller.resync()
	n.drivers.resync()
	return nil
}

// pause waits for d; false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Down makes Run return.
func (n *Node) Down(context.Context) error {
	n.draining.Store(true)
	n.stop(ErrDown)
	return nil
}

// Leave gives this peer's membership up for good: it sells nothing more, leaves
// its cell and forgets the mesh. It is refused while work depends on it.
func (n *Node) Leave(ctx context.Context) error {
	var live, drives int
	n.cell.View(func() {
		if m, ok := n.state.Member(n.self); ok {
			live, drives = m.Live, m.Drives
		}
	})
	if live > 0 || drives > 0 {
		return pcm.Errorf(pcm.Refused, "%d tasks run here and %d jobs are driven from here: wait for them, or stop them with 'pcm job stop'", live, drives)
	}
	if n.cell.Status().Role != consensus.RoleNone { // else it is out already, by an earlier try
		if err := n.mayLeave(); err != nil {
			return err
		}
		if err := n.leaveCell(ctx); err != nil {
			return err
		}
	}
	n.left.Store(true)
	n.stop(ErrDown)
	return nil
}

// leaveTime bounds leaving the cell; after it the peer goes on as before.
const leaveTime = 20 * time.Second

// leaveCell stops selling and leaves the cell, or changes nothing.
func (n *Node) leaveCell(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	n.draining.Store(true)
	err := n.offer.withdraw(ctx)
	if err == nil && len(n.cell.Status().Members) > 1 {
		err = n.cell.Remove(ctx, n.self)
	}
	if err != nil {
		n.draining.Store(false)
		n.offer.resume()
	}
	return err
}

// heardWithin is how lately a voter must have answered to count on it.
const heardWithin = 5 * time.Second

// quorumWithout tells whether the cell can go on deciding without this peer.
func (n *Node) quorumWithout() error {
	st := n.cell.Status()
	connected := map[pcm.PeerID]bool{}
	for _, p := range n.mesh.Peers() {
		connected[p.Passport.Peer] = p.Connected
	}
	names := n.names()
	voters, silent := 0, []string{}
	for _, m := range st.Members {
		if m.Peer == n.self || m.Role != consensus.RoleVoter && m.Role != consensus.RoleLeader {
			continue
		}
		voters++
		if !connected[m.Peer] || st.Role == consensus.RoleLeader && time.Since(m.Contact) > heardWithin {
			silent = append(silent, orElse(names[m.Peer], pcm.Short(m.Peer)))
		}
	}
	if alive := voters - len(silent); voters > 0 && alive*2 <= voters {
		return pcm.Errorf(pcm.Refused, "without this peer the cell could decide nothing: of its other %d voters, %s can't be reached; wait until they are back, or until they are replaced", voters, strings.Join(silent, ", "))
	}
	return nil
}

// mayLeave refuses to take from those who stay what they can't do without: the
// cell's quorum, and the mesh's root key.
func (n *Node) mayLeave() error {
	if role := n.cell.Status().Role; role == consensus.RoleLeader || role == consensus.RoleVoter {
		if err := n.quorumWithout(); err != nil {
			return err
		}
	}
	others := len(n.cell.Status().Members) - 1
	for _, d := range n.otherCells() {
		others += d.Members
	}
	path := filepath.Join(n.cfg.Dir, rootKeyFile)
	if _, err := os.Stat(path); n.id.Root == nil || err != nil || others < 1 {
		return nil
	}
	return pcm.Errorf(pcm.Refused, "this peer keeps the root key of %s, and %d other peers are in the mesh: without the key no passport can be renewed, and the mesh ends within %d days. Move %s to the data folder of the peer that shall keep it, restart that one, then leave", n.id.Mesh.Mesh, others, pcm.PassportLifetime/(24*time.Hour), path)
}
