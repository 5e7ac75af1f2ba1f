package nodetest_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm/adapters/adaptertest/require"
	"github.com/jointcloud/pcm/adapters/adaptertest/server"
)

// slurm starts a cluster of its own, and a site that sells it.
func slurm(t *testing.T) (*site, *server.Slurm) {
	t.Helper()
	slow(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := server.StartSlurm(ctx, server.SlurmOptions{Nodes: 2})
	require.Server(t, "slurm", err)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return newSite(t, "slurm", fmt.Sprintf("  slurm: {enabled: true, conf: %q, partitions: [main], allow_others: true, price: %s}\n", c.Conf, price)), c
}

// TestSlurmSellerKilled: the peer that sells Slurm's nodes is killed, alone right
// after a start, then with its supervisor, then for longer than a lease.
func TestSlurmSellerKilled(t *testing.T) {
	t.Parallel()
	s, _ := slurm(t)
	s.killedAtStart()
	s.bothKilled()
	s.bothAway()
}

// TestSlurmControllerKilled: the controller is killed right after a submit, forgets
// the jobs and gives their numbers to somebody else.
func TestSlurmControllerKilled(t *testing.T) {
	t.Parallel()
	s, c := slurm(t)
	j := s.carl.Send(lasting(4, 8, 2), "")
	number := ""
	s.within("Slurm has the job", func(ctx context.Context) error {
		out, err := c.Command(ctx, "squeue", "-h", "-o", "%F %j")
		if err == nil && !strings.Contains(out, " pcm.") {
			err = fmt.Errorf("its queue is %q", out)
		}
		number, _, _ = strings.Cut(strings.TrimSpace(out), " ")
		return err
	})
	c.KillController()
	if err := c.StartController(); err != nil {
		t.Fatal(err)
	}
	foreign := ""
	s.within("the controller is back", func(ctx context.Context) (err error) {
		foreign, err = c.Command(ctx, "sbatch", "--parsable", "--job-name=foreign", "--output=/dev/null", "--hold", "--wrap=true")
		return err
	})
	t.Logf("our job had number %s, somebody else's got %s", number, strings.TrimSpace(foreign))
	n, told := s.audit(j.ID)
	if n > 0 && !strings.Contains(told, "had begun on n") {
		t.Errorf("%d times a task ran twice at once, and nobody said why:\n%s", n, told)
	}
	if out, err := c.Command(t.Context(), "squeue", "-h", "-n", "foreign", "-o", "%T"); err != nil || strings.TrimSpace(out) != "PENDING" {
		t.Errorf("somebody else's job is %q, %v", out, err)
	}
}

// TestSlurmStands: the controller stands still for half a minute.
func TestSlurmStands(t *testing.T) {
	t.Parallel()
	s, c := slurm(t)
	s.stands(c.HangController)
}
