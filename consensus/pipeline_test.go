package consensus

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// onePipeline holds one answer at a time, and takes no request while it does.
type onePipeline struct{ answers chan raft.AppendFuture }

func (p *onePipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	f := answered{args, resp}
	p.answers <- f
	return f, nil
}
func (p *onePipeline) Consumer() <-chan raft.AppendFuture { return p.answers }
func (p *onePipeline) Close() error                       { return nil }

type answered struct {
	args *raft.AppendEntriesRequest
	resp *raft.AppendEntriesResponse
}

func (f answered) Error() error {
	if f.resp.Term == 99 {
		return errors.New("the stream broke")
	}
	return nil
}
func (f answered) Start() time.Time                      { return time.Time{} }
func (f answered) Request() *raft.AppendEntriesRequest   { return f.args }
func (f answered) Response() *raft.AppendEntriesResponse { return f.resp }

// Who sends never waits for answers that nobody takes any more.
func TestPipelineNeverHangs(t *testing.T) {
	for name, last := range map[string]raft.AppendEntriesResponse{"refused": {}, "broken": {Term: 99, Success: true}} {
		t.Run(name, func(t *testing.T) {
			p := newSteadyPipeline(&onePipeline{make(chan raft.AppendFuture, 1)}, nil)
			defer p.Close()
			good := &raft.AppendEntriesResponse{Success: true}
			for range 3 {
				p.AppendEntries(&raft.AppendEntriesRequest{}, good)
				if f := <-p.Consumer(); f.Response() != good {
					t.Fatal("another answer")
				}
			}
			p.AppendEntries(&raft.AppendEntriesRequest{}, &last)
			<-p.Consumer() // Raft stops here
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				for range 100 {
					p.AppendEntries(&raft.AppendEntriesRequest{}, good)
				}
			}()
			select {
			case <-sent:
			case <-time.After(time.Minute):
				t.Fatal("it hangs")
			}
		})
	}
}

// What waits when a pipeline is closed is let go.
func TestPipelineCloses(t *testing.T) {
	p := newSteadyPipeline(&onePipeline{make(chan raft.AppendFuture, 1)}, nil)
	p.AppendEntries(&raft.AppendEntriesRequest{}, &raft.AppendEntriesResponse{Success: true})
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A vote is asked for again over another stream, but not of a peer that can't be reached or doesn't answer.
func TestVotesGetPastDeadStreams(t *testing.T) {
	broken := errors.New("stream reset")
	for name, c := range map[string]struct {
		outcomes []error
		asked    int
	}{
		"at once":         {[]error{nil}, 1},
		"one dead stream": {[]error{broken, nil}, 2},
		"all are dead":    {[]error{broken, broken, broken, broken, broken}, maxPool + 1},
		"no way there":    {[]error{broken, &dialError{broken}, nil}, 2},
		"no answer":       {[]error{os.ErrDeadlineExceeded, nil}, 1},
	} {
		n := 0
		err := past(func() error { n++; return c.outcomes[n-1] })
		if n != c.asked || !errors.Is(err, c.outcomes[n-1]) {
			t.Errorf("%s: asked %d times, %v", name, n, err)
		}
	}
}
