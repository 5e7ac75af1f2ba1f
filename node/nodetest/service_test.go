package nodetest_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

// forward runs pcm port-forward at a peer until the test ends, and is the URL of
// its port.
func forward(t *testing.T, p *nodetest.Peer, task string) string {
	t.Helper()
	cmd := p.Command(context.Background(), "port-forward", task)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("pcm port-forward: %v", err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("pcm port-forward said %q: %v", line, err)
	}
	addr, _, _ := strings.Cut(line, " ")
	return "http://" + addr
}

// ask asks a service once.
func ask(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return string(body), err
}

// TestService: a service is reached from a third peer, restarted when it is ill or
// has ended, scaled, and found again when its seller is gone.
func TestService(t *testing.T) {
	t.Parallel()
	m := nodetest.New(t,
		nodetest.Spec{Name: "anna", Config: nodetest.Seller("0.002")},
		nodetest.Spec{Name: "bert", Config: nodetest.Seller("0.001")},
		nodetest.Spec{Name: "carl", Config: nodetest.Buyer},
	)
	bert, carl := m.Peer("bert"), m.Peer("carl")
	build := exec.Command("go", "build", "-o", filepath.Join(m.Dir, "server"), "./server")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("can't build the service: %v\n%s", err, text)
	}
	j := carl.Send(pcm.Spec{Name: "web", Steps: []pcm.Step{{
		Name: "web", Count: 3, Command: []string{"./server"}, Inputs: []pcm.Input{{Source: "server"}}, TimeLimit: "1h",
		Service: &pcm.Service{Port: 8080, Scale: 1, Health: &pcm.HealthCheck{HTTP: "/healthz", Interval: "1s", Failures: 2, StartPeriod: "30s"}},
	}}}, m.Dir)
	healthy := func(index int, seller string) {
		t.Helper()
		nodetest.Eventually(t, fmt.Sprintf("replica %d is well at %s", index, seller), func(ctx context.Context) error {
			v, err := carl.Look(ctx, string(j.ID), "web", index)
			if err != nil {
				return err
			}
			task, err := carl.Task(ctx, string(j.ID), "web", index)
			if err == nil && (v.Health != "healthy" || task.SellerName != seller) {
				err = fmt.Errorf("it is %+v at %s", v, task.SellerName)
			}
			return err
		})
	}
	healthy(0, "bert")
	url := forward(t, carl, string(j.ID))
	seen := map[string]bool{}
	another := func(what string) {
		t.Helper()
		nodetest.Eventually(t, what, func(ctx context.Context) error {
			id, err := ask(ctx, url+"/")
			if err == nil && seen[id] {
				err = fmt.Errorf("still %s answers", id)
			}
			if err == nil {
				seen[id] = true
			}
			return err
		})
	}
	another("the service is reached")
	if r := carl.PCM("job", "describe", string(j.ID)); !strings.Contains(r.Stdout, "scaled to 1 of 3, 1 placed, port 8080") || !strings.Contains(r.Stdout, "healthy") {
		t.Errorf("described as %s", r.Stdout)
	}
	if j, err := carl.Job(t.Context(), string(j.ID)); err != nil || j.Counts.Parked != 2 || j.Counts.Waiting != 0 || j.State != pcm.JobOpen {
		t.Errorf("job %+v, %v", j, err)
	}

	if _, err := ask(t.Context(), url+"/ill"); err != nil {
		t.Fatal(err)
	}
	another("one that is ill is replaced")
	if h := carl.JobTasks(j.ID)[0].History; len(h) != 1 || !strings.Contains(h[0], "health check: /healthz answers 500") {
		t.Errorf("history %q", h)
	}
	if _, err := ask(t.Context(), url+"/end"); err == nil {
		t.Error("it answers that it ends")
	}
	another("one that has ended is run again")

	if r := carl.PCM("job", "scale", string(j.ID), "web=2"); r.Code != 0 {
		t.Fatalf("scale: %+v", r)
	}
	healthy(1, "bert")
	another("a second replica takes connections as well")
	if r := carl.PCM("job", "scale", string(j.ID), "9"); r.Code == 0 || !strings.Contains(r.Stderr, "0 to 3, not to 9") {
		t.Errorf("scale beyond the spec: %+v", r)
	}
	if r := m.Peer("anna").PCM("job", "scale", string(j.ID), "1"); r.Code != 3 {
		t.Errorf("a stranger scales: %+v", r)
	}
	if r := carl.PCM("job", "scale", string(j.ID), "1"); r.Code != 0 {
		t.Fatalf("scale: %+v", r)
	}
	carl.AwaitJob(j.ID, "one replica runs", func(j api.Job) bool { return j.Counts.Placed == 1 && j.Counts.Parked == 2 })
	if task := carl.JobTasks(j.ID)[1]; task.State != pcm.TaskWaiting || !strings.Contains(task.Reason, "scaled to 1") {
		t.Errorf("the second one is %+v", task)
	}

	// Whom its seller has denied since buys nothing new there. What runs goes on,
	// is looked after and reached, though the seller has been restarted.
	must(t, bert, "account", "deny", "carl")
	bert.Kill()
	bert.Up()
	healthy(0, "bert")
	nodetest.Eventually(t, "it is reached after its seller's restart", func(ctx context.Context) error {
		id, err := ask(ctx, url+"/")
		if err == nil && !seen[id] {
			err = fmt.Errorf("another one answers: %s", id)
		}
		return err
	})

	// Whoever drives the job next knows the scale: it is in the ledger.
	carl.Kill()
	carl.Up()
	carl.AwaitJob(j.ID, "it is driven in another term", func(j api.Job) bool { return j.DriverTerm > 1 })
	bert.Kill()
	another("it is found where it runs when its seller is gone")
	healthy(0, "anna")
	if j, err := carl.Job(t.Context(), string(j.ID)); err != nil || j.Counts.Placed != 1 || j.Counts.Parked != 2 {
		t.Errorf("after another term began: %+v, %v", j, err)
	}
	if r := carl.PCM("job", "stop", string(j.ID)); r.Code != 0 {
		t.Fatalf("stop: %+v", r)
	}
	if j := carl.AwaitJob(j.ID, "stopped and settled", api.Settled); j.State != pcm.JobCancelled || j.Counts.Cancelled != 3 {
		t.Errorf("it is %+v", j)
	}
	m.Verify()
}
