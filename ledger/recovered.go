package ledger

import "github.com/jointcloud/pcm"

// recovered writes down that the cell went on without a majority of its voters.
// It changes nothing: what was lost is lost, and this says so.
func (a *applying) recovered(op *pcm.Recovered) error {
	if err := op.Validate(); err != nil {
		return err
	}
	if len(a.by.NoteKey) == 0 {
		return pcm.Errorf(pcm.Forbidden, "peer %s is no voter of %s: who recovered it says so", pcm.Short(a.by.Peer), pcm.Short(a.genesis.Cell))
	}
	if op.Index >= a.index {
		return pcm.Errorf(pcm.Invalid, "%s can't have been recovered after entry %d, this is entry %d", pcm.Short(a.genesis.Cell), op.Index, a.index)
	}
	return nil
}
