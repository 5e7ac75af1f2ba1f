package adapters

import (
	"context"
	"time"

	"github.com/jointcloud/pcm"
)

// Choice is what a strategy of placement is asked: on which of some sites the tasks
// of a step should run. All of them fit.
type Choice struct {
	Job   pcm.JobID // "" before it is submitted
	Step  string
	Tasks int
	Each  pcm.Resources
	Limit time.Duration // of one task
	Sites []ChoiceSite
}

// ChoiceSite is a pool of a peer.
type ChoiceSite struct {
	Peer     string // its name
	Pool     pcm.PoolID
	Adapter  string
	Labels   pcm.Labels // of peer and pool
	Capacity pcm.Resources
	Free     pcm.Resources
	Room     int       // tasks that can run there at once now
	Cost     pcm.Micro // of one task at its time limit
}

// Score is a strategy's verdict on a site.
type Score struct {
	Score  float64 // higher is better
	Reason string  // for a person
}

// Ranker is an adapter that supplies a strategy of placement. It answers within
// its context's deadline. Scores are by index of Choice.Sites; a site without one is not used.
type Ranker interface {
	Rank(ctx context.Context, c Choice) (map[int]Score, error)
}
