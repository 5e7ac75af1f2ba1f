package node

import (
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

// A question tells sellers no secret of the job.
func TestQuestionHasNoSecrets(t *testing.T) {
	spec := pcm.Spec{Name: "train", Budget: "12.5 card-hour", Steps: []pcm.Step{
		{Name: "before", Command: []string{"true"}},
		{
			Name: "run", Command: []string{"train", "--token=hush"}, Needs: []string{"before"}, Env: map[string]string{"KEY": "hush"}, Args: []string{"hush"},
			Inputs:  []pcm.Input{{Source: "data", Target: "data", Digest: pcm.DigestOf([]byte("hush"))}},
			Service: &pcm.Service{Port: 80, Health: &pcm.HealthCheck{Command: []string{"check", "hush"}}},
		},
	}}
	before := string(pcm.MustMarshal(spec))
	raw := pcm.MustMarshal(question("", heldSpec{spec: spec}, 1, []pcm.PoolID{"local"}))
	if strings.Contains(string(raw), "hush") || strings.Contains(string(raw), "12.5") {
		t.Errorf("it tells a secret: %q", raw)
	}
	if strings.Contains(string(raw), string(spec.Steps[1].Inputs[0].Digest)) {
		t.Error("it tells what the input is")
	}
	for _, has := range []string{"train", "KEY", "data", "card-hour"} {
		if !strings.Contains(string(raw), has) {
			t.Errorf("it lacks %s, which rules may see", has)
		}
	}
	var r askRequest
	if err := pcm.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Spec.Steps) != 1 {
		t.Errorf("%d steps", len(r.Spec.Steps))
	}
	if string(pcm.MustMarshal(spec)) != before {
		t.Error("the job itself was changed")
	}
}

// Each peer may ask so many questions at once, and so many a second.
func TestAskPace(t *testing.T) {
	var a askPaces
	now := time.Now()
	n := 0
	for a.may("one", now) {
		if n++; n > 10*askBurst {
			t.Fatal("there is no bound")
		}
	}
	if n < askBurst {
		t.Errorf("only %d questions at once", n)
	}
	if !a.may("two", now) {
		t.Error("one peer's questions count for another")
	}
	if !a.may("one", now.Add(2*askPace)) || a.may("one", now.Add(askPace)) {
		t.Error("the bound doesn't ease with time, or too fast")
	}
	if !a.may("one", now.Add(time.Hour)) || len(a.by) != 1 {
		t.Errorf("%d peers are remembered for ever", len(a.by))
	}
}

// A denial is asked about now and then, and can be lifted.
func TestDenialsAreForgiven(t *testing.T) {
	var d denials
	now := time.Now()
	terms := pcm.Terms{Seller: "bert", Buyer: "carl"}
	if d.again("bert", "carl", now) {
		t.Error("nothing was denied")
	}
	d.learn(terms, deniedMark+"no", now)
	if d.again("bert", "carl", now.Add(time.Second)) {
		t.Error("it is asked again at once")
	}
	if !d.again("bert", "carl", now.Add(forgiveEvery)) || d.again("bert", "carl", now.Add(forgiveEvery+time.Second)) {
		t.Error("it is not asked once each time")
	}
	d.lift("bert", "carl")
	if _, denied := d.of("bert", "carl", now); denied || len(d.at) != 0 {
		t.Error("it is still denied")
	}
	d.learn(terms, deniedMark+"no", now)
	if _, denied := d.of("bert", "carl", now.Add(deniedFor+time.Second)); denied || len(d.at)+len(d.by) != 0 {
		t.Error("it is remembered for ever")
	}
}
