package consensus

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/jointcloud/pcm"
)

// word is what two peers of a cell tell each other about its recoveries.
type word struct {
	Notices []pcm.Signed `cbor:"1,keyasint"` // that the sender's history went through
	Leader  pcm.PeerID   `cbor:"2,keyasint"`
	Term    uint64       `cbor:"3,keyasint"`
	Last    uint64       `cbor:"4,keyasint"` // in its log
	Stopped bool         `cbor:"5,keyasint"` // it was left behind, and takes no part
	Forgot  bool         `cbor:"6,keyasint"` // its folder is new
	Head    []byte       `cbor:"7,keyasint"` // of its history, signed: see Config.Head
}

type lastWord struct {
	word
	at time.Time
}

// inquire asks the others until all have answered, there is a leader, or their time is over.
func (n *notices) inquire(changed <-chan struct{}) {
	ctx, cancel := context.WithTimeout(n.c.ctx, noticeAsk*n.beat)
	defer cancel()
	whom := n.c.voters()
	if len(whom) == 1 && whom[0] == n.c.cfg.Self {
		whom = nil // nobody else could be elected
	}
	n.mu.Lock()
	again := n.asked
	for _, o := range n.heard {
		whom = append(append(whom, o.By), o.Keep...)
	}
	n.mu.Unlock()
	slices.Sort(whom)
	var wg sync.WaitGroup
	for _, id := range slices.Compact(whom) {
		if id == n.c.cfg.Self {
			continue
		}
		wg.Go(func() {
			for n.askSoon(ctx, id) != nil && !again {
				select {
				case <-time.After(n.beat / noticeRetries):
				case <-ctx.Done():
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-changed:
		cancel()
		<-done
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = true
	for i := range n.heard {
		n.asked = n.asked && !n.believed(i)
	}
}

// askSoon asks a peer, and while there is no connection waits for one for half a heartbeat timeout only: an
// old address may lead nowhere for long, and whoever waits for it doesn't see the connection that
// the peer has opened meanwhile.
func (n *notices) askSoon(ctx context.Context, id pcm.PeerID) error {
	if len(n.c.connections([]pcm.PeerID{id})) == 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, n.beat/2)
		defer cancel()
	}
	return n.ask(ctx, id)
}

// look asks peers with which there is a connection: this peer's leader, the voters, and those whom
// a recovery parted from this peer; once for each connection, if both know of the same recoveries.
func (n *notices) look(leader pcm.PeerID) {
	ctx, cancel := context.WithTimeout(n.c.ctx, noticeAsk*n.beat)
	defer cancel()
	n.mu.Lock()
	parted := n.partedLocked()
	n.mu.Unlock()
	var wg sync.WaitGroup
	for id, opened := range n.c.connections(append(append(n.c.voters(), leader), parted...)) {
		n.mu.Lock()
		w := n.words[id]
		same := w != nil && w.at.After(opened) && len(w.Notices) == len(n.kept.Own) &&
			!slices.ContainsFunc(w.Notices, func(s pcm.Signed) bool { return !slices.ContainsFunc(n.kept.Own, s.Equal) })
		n.mu.Unlock()
		if same {
			continue
		}
		wg.Go(func() {
			if err := n.ask(ctx, id); err != nil { // an older release doesn't know the question
				n.c.log.Debug("a peer does not say whether the cell was recovered", "cell", n.c.cfg.Cell, "peer", id, "error", err)
				n.mu.Lock()
				if w == nil && ctx.Err() == nil {
					n.words[id] = &lastWord{at: time.Now()}
				}
				n.mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// partedLocked are those whom a recovery parted from this peer.
func (n *notices) partedLocked() (list []pcm.PeerID) {
	for _, o := range n.own {
		list = append(list, o.Recovered.Lost...)
	}
	for _, o := range n.heard {
		list = append(append(list, o.By), o.Keep...)
	}
	return list
}

// connections are those of some other peers with whom there is one, and since when.
func (c *Cell) connections(ids []pcm.PeerID) map[pcm.PeerID]time.Time {
	found := map[pcm.PeerID]time.Time{}
	for _, id := range ids {
		p, err := peer.Decode(string(id))
		if err != nil || id == c.cfg.Self || c.cfg.Host.Network().Connectedness(p) != network.Connected {
			continue
		}
		for _, conn := range c.cfg.Host.Network().ConnsToPeer(p) {
			found[id] = later(found[id], conn.Stat().Opened)
		}
	}
	return found
}

// ask exchanges words with a peer.
func (n *notices) ask(ctx context.Context, id pcm.PeerID) error {
	var w word
	if err := n.c.ask(ctx, id, nil, protoNotice, "word", n.say(), &w); err != nil {
		return err
	}
	n.hear(id, w)
	return nil
}

// answer takes another peer's word, and gives this one's.
func (n *notices) answer(from pcm.PeerID, method string, body []byte, reply func([]byte, error)) {
	var w word
	if err := pcm.Unmarshal(body, &w); err != nil || method != "word" {
		reply(nil, pcm.Errorf(pcm.Invalid, "malformed request %q: %v", method, err))
		return
	}
	n.hear(from, w)
	reply(pcm.MustMarshal(n.say()), nil)
}

// say is this peer's word.
func (n *notices) say() word {
	leader, _ := n.c.watch.current()
	w := word{Leader: leader, Term: n.c.raft.CurrentTerm(), Last: n.c.raft.LastIndex(), Forgot: n.c.forgot()}
	if n.c.cfg.Head != nil {
		w.Head = n.c.cfg.Head()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	w.Notices, w.Stopped = slices.Clone(n.kept.Own), n.stoppedLocked() != nil
	return w
}

// hear takes in what a peer says.
func (n *notices) hear(from pcm.PeerID, w word) {
	if len(w.Notices) > maxNotices || len(w.Head) > maxHead {
		n.c.log.Warn("a peer's word on recoveries is over its bounds", "cell", n.c.cfg.Cell, "peer", from)
		return
	}
	leader, _ := n.c.watch.current()
	n.mu.Lock()
	defer n.mu.Unlock()
	news := false
	for _, s := range w.Notices {
		if slices.ContainsFunc(n.kept.Own, s.Equal) {
			continue
		}
		if k := slices.IndexFunc(n.kept.Heard, func(h heardNotice) bool { return h.Notice.Equal(s) }); k >= 0 && from != leader {
			news = n.kept.Heard[k].tell(from, n.c.isVoter) || news
			continue
		}
		o, err := n.read(s)
		switch {
		case err != nil:
			n.c.log.Warn("a notice of a recovery is none", "cell", n.c.cfg.Cell, "peer", from, "error", err)
			continue
		case from == leader:
			if err := n.take(s); err != nil {
				n.c.log.Error("can't note that the cell was recovered", "cell", n.c.cfg.Cell, "error", err)
			}
			continue
		case !o.LeavesBehind(n.c.cfg.Self) || !n.c.isMember(o.By) && !n.c.isMember(from):
			continue // this peer will follow, or nobody whom it knows says so
		}
		// One of each signer: the latest, unless this peer has acted on the one before.
		n.drop(func(i int) bool {
			h := n.kept.Heard[i]
			return n.heard[i].By == o.By && n.heard[i].At < o.At && h.Stopped == 0 && h.Refused == 0
		})
		if len(n.heard) >= maxNotices && n.credible(o, []pcm.PeerID{from}) { // those whom nobody stands for don't keep it out
			for i, h := range n.kept.Heard {
				if h.Stopped == 0 && h.Refused == 0 && !n.believed(i) {
					n.drop(func(k int) bool { return k == i })
					break
				}
			}
		}
		if len(n.heard) >= maxNotices || slices.ContainsFunc(n.heard, func(k pcm.Notice) bool { return k.By == o.By }) && !n.c.isVoter(o.By) {
			continue
		}
		n.heard, n.kept.Heard = append(n.heard, o), append(n.kept.Heard, heardNotice{Notice: s, From: []pcm.PeerID{from}, At: n.c.cfg.Now().UnixMilli()})
		news = true
		n.c.log.Error("the cell was recovered without this peer, it is told", "cell", n.c.cfg.Cell, "by", o.By, "told_by", from, "at", time.UnixMilli(o.At).UTC())
	}
	if news {
		if err := n.save(); err != nil {
			n.c.log.Error("can't note that the cell was recovered", "cell", n.c.cfg.Cell, "error", err)
		}
		select {
		case n.poke <- struct{}{}:
		default:
		}
	}
	if n.words[from] != nil || len(n.words) < maxWords && (from == leader || n.c.isMember(from) || slices.Contains(n.partedLocked(), from)) {
		n.words[from] = &lastWord{w, time.Now()}
	}
}
