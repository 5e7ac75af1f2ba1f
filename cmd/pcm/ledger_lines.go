package main

import (
	"fmt"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// recordLine is one operation or fact of a record, flat.
type recordLine struct {
	Kind   string
	Job    pcm.JobID
	Trade  pcm.TradeID
	Tasks  int
	Amount string
	Unit   string
	Peer   pcm.PeerID // whom it is about
	Text   string     // a reason or a name
}

// recordLines are the operations of a record that took effect, and its facts.
func recordLines(v api.RecordView) []recordLine {
	var lines []recordLine
	if v.Command != nil {
		for i, op := range v.Command.Ops {
			if i >= len(v.Kinds) || v.Kinds[i] != op.Kind() {
				break // the rest was refused
			}
			lines = append(lines, opLine(op))
		}
	}
	for _, f := range v.Facts {
		lines = append(lines, factLine(f))
	}
	if len(lines) == 0 {
		lines = append(lines, recordLine{Kind: "new_term"})
	}
	return lines
}

func opLine(op pcm.Op) recordLine {
	l := recordLine{Kind: op.Kind()}
	terms := func(t pcm.Terms) {
		l.Job, l.Trade, l.Tasks, l.Unit, l.Peer = t.Job, t.Trade(), t.Tasks.Len(), t.Price.Unit, t.Seller
	}
	switch {
	case op.Burn != nil:
		l.Peer = op.Burn.Peer
	case op.Submit != nil:
		l.Job, l.Unit, l.Text = op.Submit.Job, op.Submit.Unit, op.Submit.Name
		for _, s := range op.Submit.Steps {
			l.Tasks += s.Count
		}
		if op.Submit.Budget > 0 {
			l.Amount = op.Submit.Budget.String()
		}
	case op.Drive != nil:
		l.Job = op.Drive.Job
	case op.Place != nil:
		terms(op.Place.Terms)
	case op.Award != nil:
		terms(op.Award.Terms)
	case op.Reject != nil:
		l.Trade, l.Tasks, l.Text = op.Reject.Trade, op.Reject.Tasks.Len(), op.Reject.Reason
	case op.Start != nil:
		l.Trade, l.Tasks = op.Start.Trade, op.Start.Tasks.Len()
	case op.Meter != nil:
		l.Trade, l.Tasks = op.Meter.Trade, 1
	case op.Finish != nil:
		l.Trade, l.Tasks = op.Finish.Trade, len(op.Finish.Results)
	case op.Accept != nil:
		l.Job, l.Trade, l.Tasks = op.Accept.Job, op.Accept.Trade, len(op.Accept.Results)
	case op.Abandon != nil:
		l.Job, l.Trade, l.Tasks, l.Text = op.Abandon.Job, op.Abandon.Trade, op.Abandon.Tasks.Len(), op.Abandon.Reason
	case op.Settle != nil:
		l.Trade, l.Tasks, l.Amount = op.Settle.Trade, op.Settle.Tasks.Len(), op.Settle.Amount.String()
	case op.Dispute != nil:
		l.Trade, l.Tasks, l.Text = op.Dispute.Trade, op.Dispute.Tasks.Len(), op.Dispute.Reason
	case op.Stop != nil:
		l.Trade, l.Tasks, l.Text = op.Stop.Trade, op.Stop.Tasks.Len(), op.Stop.Reason
	case op.Scale != nil:
		l.Job, l.Tasks = op.Scale.Job, op.Scale.Count
	case op.Cancel != nil:
		l.Job, l.Text = op.Cancel.Job, op.Cancel.Reason
	case op.Void != nil:
		terms(op.Void.Terms)
	case op.Succeed != nil:
		l.Job, l.Text = op.Succeed.Job, fmt.Sprintf("term %d", op.Succeed.Term)
	case op.Clear != nil:
		l.Job, l.Trade, l.Amount = op.Clear.Job, op.Clear.Trade, op.Clear.Paid.String()
	case op.NoteKey != nil:
		l.Peer = op.NoteKey.Peer
	case op.Net != nil:
		if n, err := pcm.ReadNetting(op.Net.Netting); err == nil {
			byA, byB := n.Struck()
			l.Unit, l.Amount, l.Text = n.Unit, pcm.AddMicro(byA, byB).String(), string(n.ID)
		}
	case op.Resolve != nil:
		if r, err := pcm.ReadResolution(op.Resolve.Resolution); err == nil {
			l.Trade, l.Tasks, l.Amount = r.Trade, r.Tasks.Len(), r.Amount.String()
		}
	case op.Set != nil:
		l.Text = op.Set.Key + "=" + op.Set.Value
	case op.Base != nil:
		l.Text = fmt.Sprintf("after that of %d records", op.Base.Last)
	case op.Upgrade != nil:
		l.Text = fmt.Sprintf("level %d", op.Upgrade.Level)
	}
	return l
}

func factLine(f pcm.Fact) recordLine {
	switch {
	case f.Lost != nil:
		return recordLine{Kind: "lost", Trade: f.Lost.Trade, Tasks: f.Lost.Tasks.Len(), Text: f.Lost.Reason}
	case f.Ended != nil:
		return recordLine{Kind: "ended", Job: f.Ended.Job, Text: string(f.Ended.State)}
	case f.Closed != nil:
		return recordLine{Kind: "closed", Job: f.Closed.Job, Trade: f.Closed.Trade, Amount: f.Closed.Paid.String()}
	case f.Overdue != nil:
		return recordLine{Kind: "overdue", Job: f.Overdue.Job}
	case f.Cleared != nil:
		return recordLine{Kind: "cleared", Job: f.Cleared.Job, Trade: f.Cleared.Trade}
	case f.Based != nil:
		return recordLine{Kind: "based", Text: fmt.Sprintf("%d records come to a state with digest %x", f.Based.Size, f.Based.Digest)}
	}
	return recordLine{}
}

// whatFor are the kinds of a record, for a person: who acts in another cell shows its passport with
// each command, which is told of only where it is all there is.
func whatFor(kinds []string) string {
	if len(kinds) > 1 && kinds[0] == "enroll" {
		kinds = kinds[1:]
	}
	return strings.Join(kinds, " ")
}
