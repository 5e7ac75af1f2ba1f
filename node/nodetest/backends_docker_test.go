package nodetest_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/adaptertest/require"
	"github.com/jointcloud/pcm/adapters/adaptertest/server"
)

const busybox = "localhost/busybox:1"

// docker starts an engine of its own, and a site that sells it.
func docker(t *testing.T) (*site, *server.Engine) {
	t.Helper()
	slow(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	e, err := server.Dockerd(ctx, false)
	require.Server(t, "docker", err)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := e.LoadBusybox(ctx, busybox); err != nil {
		t.Fatal(err)
	}
	return newSite(t, "container", fmt.Sprintf("  container: {enabled: true, socket: %q, default_image: %q, pull: never, slots: 8, price: %s}\n",
		e.Socket, busybox, price)), e
}

// TestDockerSellerKilled: the peer that sells containers is killed, alone right
// after a start, then with its supervisor, then for longer than a lease.
func TestDockerSellerKilled(t *testing.T) {
	t.Parallel()
	s, e := docker(t)
	s.killedAtStart()
	s.bothKilled()
	s.bothAway()
	s.startedOnce(e.Started())
}

// TestDockerRestarted: Docker is killed, with all that runs, and started again.
// That is the seller's fault, and each task is done once more.
func TestDockerRestarted(t *testing.T) {
	t.Parallel()
	s, e := docker(t)
	j := s.carl.Send(lasting(3, 30, 1), "")
	s.begun(j.ID, 3)
	// Docker leaks what holds a container that it was killed amid the start of.
	s.within("the starts are on record", func(ctx context.Context) error {
		if n := trades(t, s.carl, j.ID)[0].States[pcm.AttemptStarted]; n < 3 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := e.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	n, told := s.audit(j.ID)
	if n > 0 || !strings.Contains(told, "engine") {
		t.Errorf("%d overlaps; the buyer is told:\n%s", n, told)
	}
	for _, task := range s.carl.JobTasks(j.ID) {
		if task.Attempt < 2 {
			t.Errorf("what Docker killed is no result: %+v", task)
		}
	}
	s.startedOnce(e.Started())
}

// TestDockerStands: Docker stands still for half a minute.
func TestDockerStands(t *testing.T) {
	t.Parallel()
	s, e := docker(t)
	s.stands(e.Hang)
	s.startedOnce(e.Started())
}
