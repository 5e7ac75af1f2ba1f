package adapters

import "github.com/jointcloud/pcm"

// Native is what a back end's own word for a state means.
type Native struct {
	State   State
	Outcome pcm.Outcome // when ended
	Reason  string      // for a person; "" where there is nothing to explain
}

// States maps a back end's words for states, and for the reasons of them, to
// ours: one table for each adapter.
type States map[string]Native

// Of looks a word up. A word that the table lacks means that the attempt may
// run: it is kept as it is, for a person to read, and decides nothing.
func (s States) Of(word string) Native {
	if n, ok := s[word]; ok {
		return n
	}
	return Native{State: Running, Reason: "its back end calls its state " + word + ", which is not known here"}
}
