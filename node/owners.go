package node

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
)

// keepEnded is how long inputs and outputs of an ended job are kept.
const keepEnded = 7 * 24 * time.Hour

// jobOwner is the name under which what belongs to a job is pinned.
func jobOwner(job pcm.JobID) string { return "job/" + string(job) }

func jobOfOwner(owner string) (pcm.JobID, bool) {
	id, ok := strings.CutPrefix(owner, "job/")
	return pcm.JobID(id), ok && pcm.JobID(id).Valid()
}

// tradeOwner is the name under which a seller pins a trade's inputs and outputs,
// until the trade is closed.
func tradeOwner(id pcm.TradeID) string { return "trade/" + string(id) }

func tradeOfOwner(owner string) (pcm.TradeID, bool) {
	id, ok := strings.CutPrefix(owner, "trade/")
	return pcm.TradeID(id), ok && pcm.TradeID(id).Valid()
}

// owners knows to which jobs and trades an artifact belongs: the store's pins, by digest.
type owners struct {
	mu sync.Mutex
	by map[pcm.Digest][]string
}

func newOwners() *owners { return &owners{by: map[pcm.Digest][]string{}} }

func (o *owners) add(owner string, digests ...pcm.Digest) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, d := range digests {
		if !slices.Contains(o.by[d], owner) {
			o.by[d] = append(o.by[d], owner)
		}
	}
}

func (o *owners) remove(owner string, digests []pcm.Digest) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, d := range digests {
		if rest := slices.DeleteFunc(o.by[d], func(s string) bool { return s == owner }); len(rest) > 0 {
			o.by[d] = rest
		} else {
			delete(o.by, d)
		}
	}
}

func (o *owners) of(d pcm.Digest) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.by[d])
}

// pin keeps artifacts for a job.
func (n *Node) pin(owner string, digests ...pcm.Digest) error {
	if err := n.store.Pin(owner, digests...); err != nil {
		return err
	}
	n.owners.add(owner, digests...)
	return nil
}

// unpin lets go of all that was kept for a job.
func (n *Node) unpin(owner string) {
	n.owners.remove(owner, n.store.Pins(owner))
	if err := n.store.Unpin(owner); err != nil {
		n.log.Warn("can't let go of artifacts that are no longer needed", "owner", owner, "error", err)
	}
}

// loadOwners reads the store's pins.
func (n *Node) loadOwners() {
	for _, owner := range n.store.Owners() {
		n.owners.add(owner, n.store.Pins(owner)...)
	}
}
