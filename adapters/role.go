package adapters

import (
	"context"
	"io"
	"net"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
)

// What some adapters can do beyond the contract. Each role goes with the
// feature that its pools show.

// Batcher is an adapter that queues attempts at its back end. It is given more than
// Width tasks of a trade at once (see [Task.Batch]), and sees to it that no
// more than Width of them run at once.
type Batcher interface {
	// MaxBatch is the most that it takes of one trade at once; 0: it has no queue, after all.
	MaxBatch() int
}

// Discoverer is an adapter whose back end tells when its pools may have changed.
// Those of others are looked at from time to time.
type Discoverer interface {
	// Changed gives a signal whenever Pools may find something else, until ctx ends.
	// The channel keeps one signal for a reader that is slow; it may be closed.
	Changed(ctx context.Context) <-chan struct{}
}

// Prober is an adapter whose Pools may be those that were seen before.
type Prober interface {
	// Probe is Pools, with the back end asked now.
	Probe(ctx context.Context) ([]pcm.Pool, error)
	// Seen is when the question was asked that the back end has answered last; zero: none was.
	Seen() time.Time
}

// Suspender halts a running attempt and lets it go on. Lease and time limit run
// on meanwhile. Both are idempotent. Feature: [pcm.FeatureSuspend].
type Suspender interface {
	Suspend(ctx context.Context, k Key) error
	Resume(ctx context.Context, k Key) error
}

// Exec is a command to run beside a running attempt, in its surroundings.
type Exec struct {
	Command []string
	TTY     bool // Stderr is not used then
	Rows    uint16
	Cols    uint16
	Stdin   io.Reader // nil: none
	Stdout  io.Writer
	Stderr  io.Writer
	Resize  <-chan [2]uint16 // rows, columns; nil: never
}

// Execer runs commands inside running attempts. It returns the exit code (128+n
// for signal n); the command ends with ctx. Feature: [pcm.FeatureExec].
type Execer interface {
	Exec(ctx context.Context, k Key, x Exec) (code int, err error)
}

// Copier copies files out of and into the working folder of a running attempt,
// as tar streams. Paths are relative and stay in the folder; links that lead
// outside are neither followed nor made. Feature: [pcm.FeatureCopy].
type Copier interface {
	// CopyOut writes the file or folder to w: its entries are named from its last element on.
	CopyOut(ctx context.Context, k Key, path string, w io.Writer) error
	// CopyIn unpacks r into the folder, which is made if it is missing.
	CopyIn(ctx context.Context, k Key, folder string, r io.Reader) error
}

// Dialer reaches the ports on which a running attempt listens, wherever its
// network is. Feature: [pcm.FeatureService].
type Dialer interface {
	Dial(ctx context.Context, k Key, port int) (net.Conn, error)
}

// Features are those of the adapter's roles and the others named, sorted: for its pools.
func Features(a Adapter, others ...pcm.Feature) []pcm.Feature {
	all := slices.Clone(others)
	if _, ok := a.(Copier); ok {
		all = append(all, pcm.FeatureCopy)
	}
	if _, ok := a.(Execer); ok {
		all = append(all, pcm.FeatureExec)
	}
	if _, ok := a.(Dialer); ok {
		all = append(all, pcm.FeatureService)
	}
	if _, ok := a.(Suspender); ok {
		all = append(all, pcm.FeatureSuspend)
	}
	slices.Sort(all)
	return all
}
