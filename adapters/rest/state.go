package rest

import (
	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// states is the description's table.
type states struct {
	adapters.States
	suspended bool // it has a word for that
}

// outcomes are the words of descriptions for outcomes that aren't ours.
var outcomes = map[string]pcm.Outcome{"lost": pcm.OutcomeSeller, "": pcm.OutcomeSeller}

func newStates(table map[string]description.State) states {
	s := states{States: adapters.States{}}
	for word, d := range table {
		n := adapters.Native{State: adapters.State(d.State), Reason: d.Reason}
		if n.State == adapters.Ended {
			n.Outcome = pcm.Outcome(d.Outcome)
			if o, ok := outcomes[d.Outcome]; ok {
				n.Outcome = o
			}
		}
		s.suspended = s.suspended || n.State == adapters.Suspended
		s.States[word] = n
	}
	return s
}
