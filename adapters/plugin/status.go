package plugin

import (
	"fmt"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/plugin/pluginpb"
)

// States of attempts, as plug-ins name them. One that is not in the table is one that may run.
var states = map[pluginpb.State]adapters.State{
	pluginpb.State_STATE_PENDING:   adapters.Pending,
	pluginpb.State_STATE_RUNNING:   adapters.Running,
	pluginpb.State_STATE_SUSPENDED: adapters.Suspended,
	pluginpb.State_STATE_ENDED:     adapters.Ended,
}

var outcomes = map[pluginpb.Outcome]pcm.Outcome{
	pluginpb.Outcome_OUTCOME_OK:         pcm.OutcomeOK,
	pluginpb.Outcome_OUTCOME_FAILED:     pcm.OutcomeFailed,
	pluginpb.Outcome_OUTCOME_TIME_LIMIT: pcm.OutcomeTimeLimit,
	pluginpb.Outcome_OUTCOME_MEMORY:     pcm.OutcomeMemory,
	pluginpb.Outcome_OUTCOME_OUTPUT:     pcm.OutcomeOutput,
	pluginpb.Outcome_OUTCOME_STOPPED:    pcm.OutcomeStopped,
	pluginpb.Outcome_OUTCOME_SITE:       pcm.OutcomeSeller,
}

// news is what a plug-in told of an attempt, checked.
type news struct {
	state   adapters.State
	native  string
	reason  string
	outcome pcm.Outcome
	code    int
	wall    time.Duration
	cpuMS   int64
	memory  pcm.Bytes
	sizes   [2]int64 // of stdout and stderr; -1: not told
}

const (
	maxNative = 64
	maxReason = 200 // leaves room for what we add
	maxBytes  = 1 << 50
)

// read checks a status. What can't be is not believed, and said.
func read(st *pluginpb.Status) news {
	n := news{state: adapters.Running, native: pcm.Clean(st.Native, maxNative), reason: pcm.Clean(st.Reason, maxReason), sizes: [2]int64{-1, -1}}
	if s, ok := states[st.State]; ok {
		n.state = s
	}
	if st.CpuMs > 0 && st.CpuMs < int64(365*24*time.Hour/time.Millisecond)*4096 {
		n.cpuMS = st.CpuMs
	}
	if st.MemoryBytes > 0 && st.MemoryBytes < maxBytes {
		n.memory = pcm.Bytes(st.MemoryBytes)
	}
	if st.StartedMs > 0 && st.EndedMs > st.StartedMs {
		n.wall = time.Duration(min(st.EndedMs-st.StartedMs, int64(365*24*time.Hour/time.Millisecond))) * time.Millisecond
	}
	for i, size := range []*int64{st.StdoutBytes, st.StderrBytes} {
		if size != nil && *size >= 0 {
			n.sizes[i] = *size
		}
	}
	if n.state != adapters.Ended {
		return n
	}
	n.code = int(st.ExitCode)
	known := false
	if n.outcome, known = outcomes[st.Outcome]; !known {
		n.outcome = pcm.OutcomeFailed
		if n.code == 0 {
			n.outcome = pcm.OutcomeOK
		}
	}
	doubt := ""
	switch {
	case n.code < 0 || n.code > 255:
		doubt = fmt.Sprintf("the plug-in told an exit code of %d", n.code)
		n.code, n.outcome = 255, pcm.OutcomeSeller
	case n.outcome == pcm.OutcomeOK && n.code != 0:
		doubt = fmt.Sprintf("the plug-in told that it went well, with exit code %d", n.code)
		n.outcome = pcm.OutcomeSeller
	case n.outcome != pcm.OutcomeOK && n.code == 0:
		n.code = 255
	}
	if doubt != "" {
		n.reason = doubt + ", which can't be"
	}
	if n.outcome != pcm.OutcomeOK && n.reason == "" {
		n.reason = fmt.Sprintf("ended with exit code %d", n.code)
	}
	return n
}

// track is an attempt that is followed.
type track struct {
	fence uint64
	poke  chan struct{} // capacity 1: there is something new

	mu      sync.Mutex
	last    *news
	over    *news // how it ended: for good
	missing bool  // from the last snapshot
}

// hear takes in a status.
func (t *track) hear(st *pluginpb.Status) {
	n := read(st)
	t.mu.Lock()
	t.missing = false
	if t.over == nil { // no later word counts
		t.last = &n
		if n.state == adapters.Ended {
			t.over = &n
		}
	}
	t.mu.Unlock()
	t.wake()
}

func (t *track) wake() {
	select {
	case t.poke <- struct{}{}:
	default:
	}
}

// seen notes whether a whole snapshot had it.
func (t *track) seen(there bool) {
	t.mu.Lock()
	t.missing = !there
	t.mu.Unlock()
	if !there {
		t.wake()
	}
}

func (t *track) now() (last *news, missing bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last, t.missing && t.over == nil
}

func (t *track) end() *news { t.mu.Lock(); defer t.mu.Unlock(); return t.over }
