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

// steadyOver sends all over one stream.
func steadyOver(t *testing.T, stream raft.AppendPipeline) *steadyPipeline {
	t.Helper()
	p, err := newSteadyPipeline(func() (raft.AppendPipeline, error) { return stream, nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A pipeline that has nothing to send gives its stream back when the last answer is there, and
// goes on over another one.
func TestPipelineParks(t *testing.T) {
	var streams []*manual
	var none error
	open := func() (raft.AppendPipeline, error) {
		if none != nil {
			return nil, none
		}
		streams = append(streams, &manual{answers: make(chan raft.AppendFuture)})
		return streams[len(streams)-1], nil
	}
	p, err := newSteadyPipeline(open, func(told passed, req *raft.AppendEntriesRequest) bool { return told == passed{req.PrevLogEntry, 0} })
	if err != nil {
		t.Fatal(err)
	}
	empty := entries(2, 5, 4)
	p.AppendEntries(empty, nil)
	p.AppendEntries(empty, nil) // says nothing new; but the answer to the first is still to come
	if streams[0].closed() {
		t.Fatal("it was closed while an answer was to come")
	}
	streams[0].answer(0, true)
	<-p.Consumer()
	p.AppendEntries(empty, nil)
	if n := len(streams[0].requests()); n != 1 || !streams[0].closed() {
		t.Fatalf("%d requests were sent, closed is %v", n, streams[0].closed())
	}
	none = errors.New("no way there")
	if _, err := p.AppendEntries(entries(2, 5, 6), nil); !errors.Is(err, none) {
		t.Errorf("%v is told", err)
	}
	none = nil
	req := entries(2, 5, 6)
	if _, err := p.AppendEntries(req, nil); err != nil {
		t.Fatal(err)
	}
	streams[1].answer(0, true)
	if f := <-p.Consumer(); f.Request() != req {
		t.Errorf("the answer is to %+v", f.Request())
	}
	p.Close()
	if !streams[1].closed() {
		t.Error("its stream outlives it")
	}
	p.AppendEntries(entries(2, 5, 4), nil) // Raft may be late
}

// Who sends never waits for answers that nobody takes any more.
func TestPipelineNeverHangs(t *testing.T) {
	for name, last := range map[string]raft.AppendEntriesResponse{"refused": {}, "broken": {Term: 99, Success: true}} {
		t.Run(name, func(t *testing.T) {
			p := steadyOver(t, &onePipeline{make(chan raft.AppendFuture, 1)})
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
	p := steadyOver(t, &onePipeline{make(chan raft.AppendFuture, 1)})
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
