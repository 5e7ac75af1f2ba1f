package nodetest_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jointcloud/pcm/node/nodetest"
)

// TestBackEndHangs: what runs tasks at a seller stands still. It is taken out of
// the offers, which status explains, and work goes elsewhere; then it is offered again.
func TestBackEndHangs(t *testing.T) {
	t.Parallel()
	m, anna, bert, carl := three(t)
	flag := filepath.Join(m.Dir, "go")
	j := carl.Send(own(nodetest.Command(1, "while ! test -e "+flag+"; do sleep 0.05; done")), "")
	if task := carl.AwaitRunning(j.ID); task.SellerName != "bert" {
		t.Fatalf("it runs at %s", task.SellerName)
	}
	if task := bert.JobTasks(j.ID)[0]; !strings.HasPrefix(task.BackEnd, "running") || task.Usage == nil {
		t.Errorf("at its seller: %+v", task)
	}
	write(t, flag, "")
	carl.Done(j.ID)

	pid := bert.Supervisor()
	if pid == 0 {
		t.Fatal("bert has no supervisor")
	}
	syscall.Kill(pid, syscall.SIGSTOP)
	defer syscall.Kill(pid, syscall.SIGCONT)
	offered := func(ctx context.Context) (bool, error) {
		offers, err := anna.Offers(ctx)
		for _, o := range offers.Items {
			if o.Peer == bert.PeerID() && o.Pool.Adapter == "process" {
				return true, err
			}
		}
		return false, err
	}
	nodetest.Eventually(t, "bert's pool is out of the offers", func(ctx context.Context) error {
		is, err := offered(ctx)
		if err == nil && is {
			err = fmt.Errorf("it is offered")
		}
		return err
	})
	st, err := bert.Status(t.Context())
	if err != nil || !strings.Contains(strings.Join(st.Warnings, "\n"), "adapter process can't be observed since") {
		t.Errorf("status warns of %q, %v", st.Warnings, err)
	}
	j = carl.Done(carl.Send(nodetest.Command(1, "echo elsewhere"), "").ID)
	if task := carl.JobTasks(j.ID)[0]; task.SellerName != "anna" || task.Attempt != 1 {
		t.Errorf("meanwhile: %+v", task)
	}
	syscall.Kill(pid, syscall.SIGCONT)
	nodetest.Eventually(t, "bert's pool is offered again", func(ctx context.Context) error {
		is, err := offered(ctx)
		if err == nil && !is {
			err = fmt.Errorf("it is not offered")
		}
		return err
	})
	j = carl.Done(carl.Send(nodetest.Command(1, "echo again"), "").ID)
	first(t, carl, j.ID)
	m.Verify()
}
