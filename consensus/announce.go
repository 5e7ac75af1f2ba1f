package consensus

import (
	"time"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
)

// commit is an entry that this peer has proposed, as leader of the entry's term,
// and that is committed.
type commit struct{ index, term uint64 }

// announceRetry is how long a member is left alone that could not be told of a
// commit. One that has yet to get the entry is told again, sooner or later
// within announceFor.
const (
	announceRetry = time.Second
	announceFor   = time.Second
	announceLeast = time.Millisecond
	announceMost  = 64 * time.Millisecond
)

// announce tells one member of commits as they come, until done is closed. Raft
// itself tells followers of a commit with the next entry, or after its
// CommitTimeout: for that long, what a user reads at a follower would lag behind
// what the same user has done there.
//
// The message is one that a leader may send at any time: an append without
// entries. It stays true for ever, whoever leads by the time it arrives: this
// peer led in the entry's term, and the entry is committed. Followers in a later
// term ignore it. Raft never sees the answer.
func (c *Cell) announce(to pcm.PeerID, commits <-chan commit, done <-chan struct{}) {
	for {
		select {
		case k := <-commits:
			if c.cfg.silent || c.announceOne(to, k, commits, done) {
				continue
			}
			select { // Raft's own messages will tell it
			case <-time.After(announceRetry):
			case <-done:
				return
			}
		case <-done:
			return
		}
	}
}

// announceOne tells a member of one commit; false if it can't be reached.
func (c *Cell) announceOne(to pcm.PeerID, k commit, commits <-chan commit, done <-chan struct{}) bool {
	req := raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(c.cfg.Self), Addr: []byte(c.cfg.Self)},
		Term:      k.term, PrevLogEntry: k.index, PrevLogTerm: k.term, LeaderCommitIndex: k.index,
	}
	begun, wait := time.Now(), announceLeast
	for {
		var resp raft.AppendEntriesResponse
		if err := c.trans.AppendEntries(raft.ServerID(to), raft.ServerAddress(to), &req, &resp); err != nil {
			return false
		}
		// Without success at the same term, the entry is still on its way.
		if resp.Success || resp.Term != k.term || len(commits) > 0 || time.Since(begun) > announceFor {
			return true
		}
		select {
		case <-time.After(wait):
			wait = min(2*wait, announceMost)
		case <-done:
			return true
		}
	}
}

// offer puts a commit where announce finds it, in place of an earlier one.
func offer(commits chan commit, k commit) {
	for {
		select {
		case commits <- k:
			return
		default:
		}
		select {
		case <-commits:
		default:
		}
	}
}
