package consensus

import (
	"context"
	"time"

	"github.com/jointcloud/pcm"
)

// maxQueries bounds the questions that are being answered at a time, and
// queryTime how long one may take: whoever asks tries another peer then.
const (
	maxQueries = 64
	queryTime  = 4 * time.Second
)

// whereAnswer says who leads, as far as the asked peer knows, and what log time is.
type whereAnswer struct {
	Leader pcm.PeerID   `cbor:"1,keyasint,omitempty"`
	Term   uint64       `cbor:"2,keyasint"`
	Stamp  int64        `cbor:"3,keyasint"`
	Voters []pcm.PeerID `cbor:"4,keyasint,omitempty"`
}

// queries answers what peers ask that need not be of the cell.
type queries struct {
	c    *Cell
	busy chan struct{}
}

func newQueries(c *Cell) *queries { return &queries{c: c, busy: make(chan struct{}, maxQueries)} }

// methodWhere is the one question that needs neither leader nor ledger.
const methodWhere = "where"

func (q *queries) answer(from pcm.PeerID, method string, body []byte, reply func([]byte, error)) {
	if method == methodWhere {
		q.c.rest.rouse() // who asks may have found that the leader is gone
		leader, _ := q.c.watch.current()
		_, stamp := q.c.clock.read()
		reply(pcm.MustMarshal(whereAnswer{leader, q.c.raft.CurrentTerm(), stamp, q.c.voters()}), nil)
		return
	}
	if q.c.cfg.Answer == nil {
		reply(nil, pcm.Errorf(pcm.NotFound, "the question %.40q is not answered here", method))
		return
	}
	select {
	case q.busy <- struct{}{}:
	default:
		reply(nil, &retryable{pcm.Errorf(pcm.Busy, "%d questions are being answered here: ask another peer, or in a moment", maxQueries)})
		return
	}
	if !q.c.start(func() {
		defer func() { <-q.busy }()
		ctx, cancel := context.WithTimeout(q.c.ctx, queryTime)
		defer cancel()
		// What was committed before the question is seen by the answer.
		if err := q.c.Sync(ctx); err != nil {
			reply(nil, &retryable{err})
			return
		}
		reply(q.c.cfg.Answer(from, method, body))
	}) {
		<-q.busy
		reply(nil, &retryable{errClosing})
	}
}
