package ledger

import (
	"bytes"

	"github.com/jointcloud/pcm"
)

// maxNoteKeys bounds the keys that sign checkpoints of a cell: its voters, and
// for a while those that voted before.
const maxNoteKeys = 32

// noteKey binds a key to the signing peer, or takes one back.
func (a *applying) noteKey(op *pcm.NoteKey) (bool, error) {
	if err := op.Validate(); err != nil {
		return false, err
	}
	m := a.members[op.Peer]
	switch {
	case m == nil:
		return false, pcm.Errorf(pcm.NotFound, "peer %s is not known to %s", pcm.Short(op.Peer), pcm.Short(a.genesis.Cell))
	case len(op.Key) > 0 && op.Peer != a.by.Peer:
		return false, pcm.Errorf(pcm.Unauthorized, "peer %s can bind a note key only to itself", pcm.Short(a.by.Peer))
	case op.Peer != a.by.Peer && len(a.by.NoteKey) == 0:
		return false, pcm.Errorf(pcm.Unauthorized, "peer %s signs no checkpoints and can't take the note key of another peer back", pcm.Short(a.by.Peer))
	case bytes.Equal(op.Key, m.NoteKey):
		return false, nil
	case len(op.Key) == 0:
		m.NoteKey = nil
		return true, nil
	}
	id, n := pcm.NoteKeyID(a.genesis.Cell, op.Key), 0
	for _, o := range a.Members() {
		if len(o.NoteKey) == 0 || o == m {
			continue
		}
		if n++; pcm.NoteKeyID(a.genesis.Cell, o.NoteKey) == id {
			return false, pcm.Errorf(pcm.Conflict, "a note key with the ID %08x is bound already: make another key", id)
		}
	}
	if n >= maxNoteKeys {
		return false, pcm.Errorf(pcm.Refused, "%s has %d note keys, which is its bound", pcm.Short(a.genesis.Cell), n)
	}
	m.NoteKey = bytes.Clone(op.Key)
	return true, nil
}

// NoteKeys are the keys with which peers sign checkpoints, by peer.
func (s *State) NoteKeys() []pcm.NoteKey {
	var list []pcm.NoteKey
	for _, m := range s.Members() {
		if len(m.NoteKey) > 0 {
			list = append(list, pcm.NoteKey{Peer: m.Peer, Key: m.NoteKey})
		}
	}
	return list
}
