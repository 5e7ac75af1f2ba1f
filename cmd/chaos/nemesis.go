package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
)

// fault is one kind of harm. do does it, waits, and undoes it.
type fault struct {
	name   string
	weight int
	disk   bool // needs a disk that can have faults
	do     func(*nemesis, context.Context, *rand.Rand) error
}

// Harm to what is between peers, to their clocks and their time: many, short.
var light = []fault{
	{"partition", 4, false, (*nemesis).partition},
	{"leader cut off", 2, false, (*nemesis).isolateLeader},
	{"asymmetric partition", 4, false, (*nemesis).bridge},
	{"one-way partition", 4, false, (*nemesis).oneWay},
	{"delay", 6, false, (*nemesis).delay},
	{"loss", 5, false, (*nemesis).loss},
	{"low rate", 4, false, (*nemesis).rate},
	{"streams broken", 4, false, (*nemesis).breakStreams},
	{"clock jump", 6, false, (*nemesis).jump},
	{"SIGSTOP", 6, false, (*nemesis).freeze},
	{"slow disk", 4, true, (*nemesis).slowDisk},
}

// Harm to processes, disks and the set of voters: few, with all that follows.
var heavy = []fault{
	{"kill -9", 8, false, (*nemesis).killOne},
	{"kill -9 of the leader", 5, false, (*nemesis).killLeader},
	{"power cut", 5, true, (*nemesis).powerCut},
	{"power cut of all", 2, true, (*nemesis).powerCutAll},
	{"failing fsync", 3, true, (*nemesis).failFsync},
	{"full disk", 3, true, (*nemesis).fillDisk},
	{"bit flips", 3, true, (*nemesis).flipBits},
	{"voter replaced", 2, false, (*nemesis).replace},
	{"rolling restart", 1, false, (*nemesis).rollingRestart},
	{"leadership handed over", 3, false, (*nemesis).transfer},
}

// nemesis harms one cell. What it does follows from its seed; whom a fault of "the
// leader" meets, from the run.
type nemesis struct {
	cell *testCell
	c    *clients

	mu     sync.Mutex
	counts map[string]*tally
	notes  map[string]int // what followed
}

// tally is what became of one kind of fault.
type tally struct {
	injected int
	leaders  int64 // changes meanwhile
	failed   int64 // proposals that were not answered meanwhile
	times    []times
}

// times are from when to when something was, in log time.
type times struct{ from, to int64 }

// lost counts attempts that were lost during such a fault, or so soon after it that it may
// have been the reason: their sellers could not renew for lease and margin.
func (t *tally) lost(losses []loss) (n int) {
	for _, l := range losses {
		since := l.at - (pcm.LeaseFor(0) + pcm.LeaseMargin).Milliseconds()
		if slices.ContainsFunc(t.times, func(w times) bool { return w.from <= l.at && w.to >= since }) {
			n += l.attempts
		}
	}
	return n
}

func newNemesis(cell *testCell, c *clients) *nemesis {
	return &nemesis{cell: cell, c: c, counts: map[string]*tally{}, notes: map[string]int{}}
}

func (n *nemesis) note(what string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.notes[what]++
}

// injected is how many faults there were.
func (n *nemesis) injected() (all int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, t := range n.counts {
		all += t.injected
	}
	return all
}

// run makes faults of one list, one after the other, until ctx ends. A fault that
// has begun is undone first.
func (n *nemesis) run(ctx context.Context, seed uint64, faults []fault, pause time.Duration) error {
	rng := rand.New(rand.NewPCG(seed, uint64(len(faults))))
	sum := 0
	for _, f := range faults {
		if !f.disk || n.cell.disk.faulty() {
			sum += f.weight
		}
	}
	for ctx.Err() == nil {
		pick := rng.IntN(sum)
		for _, f := range faults {
			if f.disk && !n.cell.disk.faulty() {
				continue
			}
			if pick -= f.weight; pick >= 0 {
				continue
			}
			draw := rand.New(rand.NewPCG(rng.Uint64(), 0)) // what a fault draws doesn't change those after it
			if err := n.inject(ctx, f, draw); err != nil {
				return fmt.Errorf("%s: %s: %w", n.cell.name, f.name, err)
			}
			break
		}
		wait := pause/2 + rand.N(pause)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
	return nil
}

func (n *nemesis) inject(ctx context.Context, f fault, rng *rand.Rand) error {
	leaders, failed, began := n.cell.leaders.Load(), n.c.failed.Load(), n.cell.now()
	err := f.do(n, ctx, rng)
	n.cell.leader() // so that a change is seen
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.counts[f.name]
	if t == nil {
		t = &tally{}
		n.counts[f.name] = t
	}
	t.leaders += n.cell.leaders.Load() - leaders
	t.failed += n.c.failed.Load() - failed
	if errors.Is(err, errNobody) {
		return nil
	}
	t.injected++
	t.times = append(t.times, times{began, n.cell.now()})
	return err
}

// errNobody says that there was nobody to harm.
var errNobody = errors.New("nobody is there to be harmed")

// expendable draws a peer that may be lost for good: only while the cell has all its
// voters, and all of them run. Two lost at once are a lost majority, which no cell survives.
func (n *nemesis) expendable(ctx context.Context, rng *rand.Rand) (*proc, error) {
	if n.cell.voters < 3 {
		return nil, errNobody
	}
	ctx, cancel := context.WithTimeout(ctx, patience/4)
	defer cancel()
	whole := n.cell.awaitVoters(ctx, n.cell.voters)
	all := len(slices.DeleteFunc(n.cell.running(), func(p *proc) bool { return !p.votes }))
	if all < n.cell.voters || whole != nil {
		return nil, errNobody
	}
	return n.one(rng)
}

// one draws a peer that runs.
func (n *nemesis) one(rng *rand.Rand) (*proc, error) {
	ps := n.cell.running()
	if len(ps) == 0 {
		return nil, errNobody
	}
	return ps[rng.IntN(len(ps))], nil
}

// hold waits between two bounds, or until ctx ends.
func hold(ctx context.Context, rng *rand.Rand, least, most time.Duration) {
	select {
	case <-time.After(least + time.Duration(rng.Int64N(int64(most-least)))):
	case <-ctx.Done():
	}
}

// between sets a rule for what one peer sends to others; nil: none.
func (n *nemesis) between(from *proc, rules map[pcm.PeerID]Rule) {
	from.configure(func(c *PeerConfig) { c.Rules = rules })
	from.call("Faults", rules, new(bool), 2*time.Second) // one that is down reads them when it starts
}

// cut keeps some peers apart from others, both ways, for a while.
func (n *nemesis) cut(ctx context.Context, rng *rand.Rand, some, others []*proc, least, most time.Duration) error {
	sides := [][2][]*proc{{some, others}, {others, some}}
	for i, side := range sides {
		outside := i == 0 // who is in no cell is cut off from one side
		for _, p := range side[0] {
			rules := map[pcm.PeerID]Rule{}
			for _, o := range side[1] {
				rules[o.id] = Rule{Cut: true}
			}
			if outside && n.cell.outside != "" {
				rules[n.cell.outside] = Rule{Cut: true}
			}
			n.between(p, rules)
		}
	}
	hold(ctx, rng, least, most)
	reset := rng.IntN(2) == 0
	for _, p := range slices.Concat(some, others) {
		n.heal(p, reset)
	}
	return nil
}

// heal ends the faults of what a peer sends; with reset, its streams break.
func (n *nemesis) heal(p *proc, reset bool) {
	if reset {
		rules := map[pcm.PeerID]Rule{}
		for _, o := range n.cell.all() {
			rules[o.id] = Rule{Reset: true}
		}
		n.between(p, rules)
	}
	n.between(p, nil)
}

func (n *nemesis) shuffled(rng *rand.Rand) []*proc {
	ps := n.cell.running()
	rng.Shuffle(len(ps), func(i, j int) { ps[i], ps[j] = ps[j], ps[i] })
	return ps
}

// Most partitions are short; some outlast an election.
func length(rng *rand.Rand) (least, most time.Duration) {
	if rng.IntN(5) == 0 {
		return 1500 * time.Millisecond, 3 * time.Second
	}
	return 100 * time.Millisecond, 500 * time.Millisecond
}

func (n *nemesis) partition(ctx context.Context, rng *rand.Rand) error {
	ps := n.shuffled(rng)
	if len(ps) < 3 {
		return errNobody
	}
	k := 1 + rng.IntN((len(ps)-1)/2)
	least, most := length(rng)
	return n.cut(ctx, rng, ps[:k], ps[k:], least, most)
}

func (n *nemesis) isolateLeader(ctx context.Context, rng *rand.Rand) error {
	return n.isolateLeaderFor(ctx, rng, 1500*time.Millisecond, 3*time.Second)
}

func (n *nemesis) isolateLeaderFor(ctx context.Context, rng *rand.Rand, least, most time.Duration) error {
	leader := n.cell.leader()
	if leader == nil {
		return errNobody
	}
	others := slices.DeleteFunc(n.cell.running(), func(p *proc) bool { return p == leader })
	return n.cut(ctx, rng, []*proc{leader}, others, least, most)
}

// bridge keeps two peers apart that both reach all others.
func (n *nemesis) bridge(ctx context.Context, rng *rand.Rand) error {
	ps := n.shuffled(rng)
	if len(ps) < 2 {
		return errNobody
	}
	least, most := length(rng)
	return n.cut(ctx, rng, ps[:1], ps[1:2], least, most)
}

// oneWay lets nothing of one peer out, or nothing in.
func (n *nemesis) oneWay(ctx context.Context, rng *rand.Rand) error {
	ps := n.shuffled(rng)
	if len(ps) < 2 {
		return errNobody
	}
	least, most := length(rng)
	if rng.IntN(2) == 0 {
		rules := map[pcm.PeerID]Rule{}
		for _, o := range ps[1:] {
			rules[o.id] = Rule{Cut: true}
		}
		n.between(ps[0], rules)
	} else {
		for _, o := range ps[1:] {
			n.between(o, map[pcm.PeerID]Rule{ps[0].id: {Cut: true}})
		}
	}
	hold(ctx, rng, least, most)
	for _, p := range ps {
		n.heal(p, false)
	}
	return nil
}

// shape makes the links of some peers worse.
func (n *nemesis) shape(ctx context.Context, rng *rand.Rand, r Rule) error {
	ps := n.shuffled(rng)
	if len(ps) == 0 {
		return errNobody
	}
	some := ps[:1+rng.IntN(len(ps))]
	for _, p := range some {
		rules := map[pcm.PeerID]Rule{}
		for _, o := range ps {
			rules[o.id] = r
		}
		n.between(p, rules)
	}
	hold(ctx, rng, 200*time.Millisecond, 800*time.Millisecond)
	for _, p := range some {
		n.heal(p, false)
	}
	return nil
}

func (n *nemesis) delay(ctx context.Context, rng *rand.Rand) error {
	d := time.Duration(5+rng.IntN(100)) * time.Millisecond
	return n.shape(ctx, rng, Rule{Delay: d, Jitter: d / 2})
}

func (n *nemesis) loss(ctx context.Context, rng *rand.Rand) error {
	return n.shape(ctx, rng, Rule{Loss: 0.01 + 0.2*rng.Float64()})
}

func (n *nemesis) rate(ctx context.Context, rng *rand.Rand) error {
	return n.shape(ctx, rng, Rule{Rate: 20_000 + rng.IntN(200_000)})
}

func (n *nemesis) breakStreams(ctx context.Context, rng *rand.Rand) error {
	p, err := n.one(rng)
	if err != nil {
		return err
	}
	n.heal(p, true)
	return nil
}

// jump sets a peer's wall clock wrong, and later right again.
func (n *nemesis) jump(ctx context.Context, rng *rand.Rand) error {
	p, err := n.one(rng)
	if err != nil {
		return err
	}
	n.setClock(p, time.Duration(rng.Int64N(int64(2*time.Hour)))-time.Hour)
	hold(ctx, rng, 100*time.Millisecond, time.Second)
	n.setClock(p, 0)
	return nil
}

func (n *nemesis) setClock(p *proc, off time.Duration) {
	p.configure(func(c *PeerConfig) { c.Clock = off })
	p.call("Clock", off, new(bool), 2*time.Second) // one that is down reads it when it starts
}

func (n *nemesis) freeze(ctx context.Context, rng *rand.Rand) error {
	p, err := n.one(rng)
	if err != nil {
		return err
	}
	p.signal(syscall.SIGSTOP)
	least, most := length(rng)
	hold(ctx, rng, least, most)
	p.signal(syscall.SIGCONT)
	return nil
}

func (n *nemesis) slowDisk(ctx context.Context, rng *rand.Rand) error {
	p, err := n.one(rng)
	if err != nil {
		return err
	}
	f := n.cell.disk.of(p.name)
	slow := time.Duration(10+rng.IntN(100)) * time.Millisecond
	f.set(func(f *folder) { f.slow = slow })
	hold(ctx, rng, 200*time.Millisecond, time.Second)
	f.set(func(f *folder) { f.slow = 0 })
	return nil
}

func (n *nemesis) killOne(ctx context.Context, rng *rand.Rand) error {
	p, err := n.one(rng)
	if err != nil {
		return err
	}
	p.kill()
	hold(ctx, rng, 0, 500*time.Millisecond)
	return n.mend(p)
}

func (n *nemesis) killLeader(ctx context.Context, rng *rand.Rand) error {
	p := n.cell.leader()
	if p == nil {
		return errNobody
	}
	p.kill()
	hold(ctx, rng, 0, 3*time.Second)
	return n.mend(p)
}

// powerCut ends a process, and takes what its disk had not synced.
func (n *nemesis) powerCut(ctx context.Context, rng *rand.Rand) error {
	p, err := n.one(rng)
	if err != nil {
		return err
	}
	if err := n.unplug(p); err != nil {
		return err
	}
	hold(ctx, rng, 0, 500*time.Millisecond)
	return n.mend(p)
}

func (n *nemesis) unplug(ps ...*proc) error {
	for _, p := range ps {
		p.signal(syscall.SIGKILL)
	}
	for _, p := range ps {
		p.wait()
		lost, err := n.cell.disk.cutPower(context.Background(), p.name)
		if err != nil {
			return err
		}
		if lost > 0 {
			n.note("disks that lost writes")
		}
	}
	return nil
}

func (n *nemesis) powerCutAll(ctx context.Context, rng *rand.Rand) error {
	ps := n.cell.running()
	if err := n.unplug(ps...); err != nil {
		return err
	}
	for _, p := range ps {
		if err := n.mend(p); err != nil {
			return err
		}
	}
	return nil
}

// failFsync makes fsync fail: the peer has to stop by itself, or not to have asked.
func (n *nemesis) failFsync(ctx context.Context, rng *rand.Rand) error {
	return n.spoil(ctx, rng, "stopped by themselves: fsync failed", func(f *folder, on bool) { f.failing = on })
}

func (n *nemesis) fillDisk(ctx context.Context, rng *rand.Rand) error {
	return n.spoil(ctx, rng, "stopped by themselves: the disk was full", func(f *folder, on bool) { f.full = on })
}

func (n *nemesis) spoil(ctx context.Context, rng *rand.Rand, stopped string, how func(*folder, bool)) error {
	p, err := n.one(rng)
	if err != nil {
		return err
	}
	f := n.cell.disk.of(p.name)
	f.set(func(f *folder) { how(f, true) })
	hold(ctx, rng, 300*time.Millisecond, 1500*time.Millisecond)
	f.set(func(f *folder) { how(f, false) })
	if !p.runs() {
		n.note(stopped)
	}
	return n.mend(p)
}

// flipBits damages a file of a peer that is down. Damage that a peer finds when it
// starts is for an operator, who does as the message says: here, another peer takes its place.
func (n *nemesis) flipBits(ctx context.Context, rng *rand.Rand) error {
	p, err := n.expendable(ctx, rng)
	if err != nil {
		return err
	}
	p.kill()
	var files []string
	dir := filepath.Join(n.cell.disk.below, p.name)
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && d.Name() != "LOCK" {
			if info, err := d.Info(); err == nil && info.Size() > 0 {
				files = append(files, path)
			}
		}
		return err
	})
	if err != nil || len(files) == 0 {
		return errors.Join(err, n.mend(p))
	}
	path := files[rng.IntN(len(files))]
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for range 1 + rng.IntN(3) {
		data[rng.IntN(len(data))] ^= 1 << rng.IntN(8)
	}
	p.spoil()
	rel, _ := filepath.Rel(dir, path) // it is below dir
	n.note("files whose bits were flipped, in " + strings.SplitN(rel, "/", 2)[0])
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	return n.mend(p)
}

// replace takes a voter out for good and a new one in, under load.
func (n *nemesis) replace(ctx context.Context, rng *rand.Rand) error {
	p, err := n.expendable(ctx, rng)
	if err != nil {
		return err
	}
	return n.succeed(p)
}

// succeed puts a new peer in the place of one that is gone.
func (n *nemesis) succeed(p *proc) error {
	p.abandon()
	n.note("voters replaced")
	ctx := context.Background() // bounded by patience
	if _, err := n.cell.join(ctx, p.votes); err != nil {
		return err
	}
	if err := n.cell.change(ctx, "remove", p.id); err != nil {
		return err
	}
	return nil
}

func (n *nemesis) rollingRestart(ctx context.Context, rng *rand.Rand) error {
	for _, p := range n.shuffled(rng) {
		p.stop()
		if err := n.mend(p); err != nil {
			return err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil
}

// bringUp lets peers of an older release work for a while, and updates them then.
func (n *nemesis) bringUp(ctx context.Context, seed uint64, ready <-chan struct{}) error {
	select {
	case <-ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := n.trades(ctx, olderFor); err != nil {
		return err
	}
	return n.inject(ctx, fault{name: "rolling upgrade", do: (*nemesis).upgrade}, rand.New(rand.NewPCG(seed, 9)))
}

// trades waits until some more commands were acknowledged.
func (n *nemesis) trades(ctx context.Context, least int) error {
	was := n.c.acked.Load()
	return await(ctx, patience, n.cell.name+" is used", func() error {
		if done := n.c.acked.Load() - was; done < int64(least) {
			return fmt.Errorf("%d of %d commands are acknowledged", done, least)
		}
		return nil
	})
}

// olderFor is how many commands a cell of an older release takes before it is updated.
const olderFor = 200

// upgrade takes the cell from an older release to this one, a peer at a time, under load:
// some are shut down for it, some just die.
func (n *nemesis) upgrade(ctx context.Context, rng *rand.Rand) error {
	n.cell.update()
	for _, p := range n.cell.all() {
		if !p.setOlder(false) {
			continue
		}
		if rng.IntN(3) == 0 {
			p.kill()
		} else {
			p.stop()
		}
		if err := n.mend(p); err != nil {
			return err
		}
		n.note("peers updated to this release")
	}
	return nil
}

func (n *nemesis) transfer(ctx context.Context, rng *rand.Rand) error {
	p, err := n.one(rng)
	if err != nil {
		return err
	}
	for _, o := range n.cell.running() {
		if err := o.call("Change", Change{"transfer", p.id, 3 * time.Second}, new(bool), 5*time.Second); err == nil {
			return nil
		}
	}
	return nil // nobody leads: it is a harmless one
}

// mend has a peer run again, as an operator would who reads what it says.
func (n *nemesis) mend(p *proc) error {
	if p.isGone() {
		return nil
	}
	if p.runs() {
		return nil
	}
	p.wait()
	if said := p.tail(4); strings.Contains(said, "so as not to differ from the others") && !p.isSpoilt() {
		n.c.violated(isSame, "%s has stopped: %s", p.name, said)
	}
	for moved := false; ; moved = true {
		err := p.start(context.Background()) // bounded by patience
		if err == nil {
			return nil
		}
		if !errors.Is(err, errEnded) {
			return err
		}
		said := p.tail(4)
		if strings.Contains(said, "move that folder away") && !moved {
			n.note("histories found damaged, and fetched anew")
			if err := n.moveHistory(p); err != nil {
				return err
			}
			continue
		}
		n.note("peers that refused damaged files")
		return n.succeed(p)
	}
}

// moveHistory takes a peer's history away, as an operator is told to.
func (n *nemesis) moveHistory(p *proc) error {
	if err := os.RemoveAll(filepath.Join(n.cell.disk.below, p.name, "history")); err != nil {
		return err
	}
	n.cell.disk.of(p.name).forget(filepath.Join(p.name, "history"))
	return nil
}

// proofread has peers whose files were damaged read all of their history, which may not
// have been read since. Where that fails, it is done as the peer says. It tells
// whether anything was.
func (n *nemesis) proofread() (mended bool, err error) {
	for _, p := range n.cell.all() {
		if !p.isSpoilt() {
			continue
		}
		if _, err := p.records(); err == nil || !strings.Contains(err.Error(), "move that folder away") {
			continue // if it can't be read for another reason, that is told later
		}
		n.note("histories found damaged when they were read, and fetched anew")
		p.kill()
		if err := n.moveHistory(p); err != nil {
			return false, err
		}
		if err := n.mend(p); err != nil {
			return false, err
		}
		mended = true
	}
	return mended, nil
}
