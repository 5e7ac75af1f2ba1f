package consensus

import (
	"encoding/binary"
	"errors"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus/frames"
)

// Keys of hashicorp/raft's own. Whom it voted for stands beside the term of the vote.
var (
	keyCurrentTerm  = []byte("CurrentTerm")
	keyLastVoteTerm = []byte("LastVoteTerm")
	keyLastVoteCand = []byte("LastVoteCand")
)

// voteStore keeps Raft's terms in bbolt, which has no checksum of what it stores: with one
// bit of them changed, a peer would vote a second time in a term, and the cell could
// have two leaders in it. Each term is followed by its checksum, which older releases
// don't read, and theirs has none. Whom a peer voted for needs none: nobody has an ID
// that differs from another one by some bits.
type voteStore struct {
	*raftboltdb.BoltStore
	path string
}

// SetUint64 implements raft.StableStore.
func (v *voteStore) SetUint64(key []byte, n uint64) error { return v.Set(key, sealedTerm(key, n)) }

// GetUint64 implements raft.StableStore.
func (v *voteStore) GetUint64(key []byte) (uint64, error) {
	data, err := v.Get(key)
	if err != nil {
		return 0, err
	}
	n, _, err := v.parse(key, data)
	return n, err
}

// sealedTerm is a term as it is stored: 8 bytes, big-endian, and a checksum of these and the key.
func sealedTerm(key []byte, n uint64) []byte {
	data := binary.BigEndian.AppendUint64(nil, n)
	return binary.LittleEndian.AppendUint32(data, frames.Checksum(append(data[:8:8], key...)))
}

func (v *voteStore) parse(key, data []byte) (n uint64, sealed bool, err error) {
	if len(data) != 8 && len(data) != 12 {
		return 0, false, frames.Damaged(v.path, "%s has %d bytes", key, len(data))
	}
	n = binary.BigEndian.Uint64(data)
	sealed = len(data) == 12
	if sealed && string(data) != string(sealedTerm(key, n)) {
		return 0, false, frames.Damaged(v.path, "the checksum of %s is not that of its content", key)
	}
	return n, sealed, nil
}

// check finds out whether the votes can be what Raft wrote, and adds the checksums that
// an older release left out. Raft stores its term ahead of a vote in it, of the
// entries of it, and of snapshots with such, and the term of a vote ahead of for whom it is. newest is the term
// of the newest entry.
func (v *voteStore) check(newest uint64) error {
	terms := map[string]uint64{}
	for _, key := range [][]byte{keyCurrentTerm, keyLastVoteTerm} {
		data, err := v.Get(key)
		if errors.Is(err, raftboltdb.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		n, sealed, err := v.parse(key, data)
		if err == nil && !sealed {
			err = v.SetUint64(key, n)
		}
		if err != nil {
			return err
		}
		terms[string(key)] = n
	}
	current, voted := terms[string(keyCurrentTerm)], terms[string(keyLastVoteTerm)]
	if current < newest || current < voted {
		return frames.Damaged(v.path, "it says term %d, where this peer has voted in term %d and stored an entry of term %d", current, voted, newest)
	}
	whom, err := v.Get(keyLastVoteCand)
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return err
	}
	if err == nil && (voted == 0 || len(whom) == 0) {
		return frames.Damaged(v.path, "it knows of a vote only the half")
	}
	return nil
}

// openVotes holds Raft's votes against the log and the snapshots.
func (c *Cell) openVotes(path string, logs raft.LogStore, snaps raft.SnapshotStore) error {
	c.votes = &voteStore{c.bolt, path}
	_, newest, err := endOf(logs, snaps)
	if err == nil {
		err = c.votes.check(newest)
	}
	if err != nil {
		return pcm.Errorf(pcm.Internal, "%w: %s", err, boltAdvice)
	}
	return nil
}
