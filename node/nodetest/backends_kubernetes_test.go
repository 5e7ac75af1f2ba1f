package nodetest_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/adaptertest/require"
	"github.com/jointcloud/pcm/adapters/adaptertest/server"
)

// cluster is a control plane with real kubelets, and a site that sells it.
type cluster struct {
	*site
	kube  *server.Kubernetes
	nodes map[string]*server.KubernetesNode
}

func kubernetes(t *testing.T, nodes int) *cluster {
	t.Helper()
	slow(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	k, err := server.StartKubernetes(ctx)
	require.Server(t, "kubernetes", err)
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := k.Apply(ctx, "../../configs/kubernetes/rbac.yaml"); err != nil {
		t.Fatal(err)
	}
	c := &cluster{kube: k, nodes: map[string]*server.KubernetesNode{}}
	for i := range nodes {
		n, err := k.AddNode(ctx, i)
		require.Server(t, "kubernetes", err)
		c.nodes[n.Name] = n
	}
	c.site = newSite(t, "kubernetes", fmt.Sprintf("  kubernetes: {enabled: true, kubeconfig: %q, namespace: pcm, helper_image: %q, price: %s}\n",
		k.Restricted, server.HelperImage, price))
	return c
}

// started counts the containers of tasks that the nodes have started.
func (c *cluster) started() int {
	c.Helper()
	pods, err := c.kube.Started(c.Context(), "task")
	if err != nil {
		c.Fatal(err)
	}
	return len(pods)
}

// TestKubernetesSellerKilled: the peer that sells a namespace is killed, alone
// right after a start, then with its supervisor, then for longer than a lease.
func TestKubernetesSellerKilled(t *testing.T) {
	t.Parallel()
	c := kubernetes(t, 1)
	c.killedAtStart()
	c.bothKilled()
	c.bothAway()
	c.startedOnce(c.started())
}

// TestKubernetesAway: the API server stands still for half a minute, then it is
// killed and away for a whole one.
func TestKubernetesAway(t *testing.T) {
	t.Parallel()
	c := kubernetes(t, 1)
	c.stands(c.kube.API().Hang)

	runs := c.carl.Send(lasting(1, 70, 2), "")
	ends := c.carl.Send(lasting(1, 15, 2), "")
	c.begun(runs.ID, 1)
	c.begun(ends.ID, 1)
	back := make(chan error, 1)
	go func() { back <- c.kube.RestartAPI(context.Background(), time.Minute) }()
	c.offered(false)
	waits := c.carl.Send(lasting(1, 1, 1), "")
	if err := <-back; err != nil {
		t.Fatal(err)
	}
	for _, id := range []pcm.JobID{runs.ID, ends.ID, waits.ID} {
		c.alone(id)
		if n := c.attempts(id); n != 1 {
			t.Errorf("a cluster that was away for a minute cost an attempt")
		}
	}
	c.startedOnce(c.started())
}

// TestKubeletKilled: the kubelet of a node is killed and its pods run on, where
// nobody can end them. The task runs again on another node; one result counts, and
// the buyer is told that the first may still run.
func TestKubeletKilled(t *testing.T) {
	t.Parallel()
	c := kubernetes(t, 2)
	j := c.carl.Send(lasting(1, 300, 2), "")
	c.begun(j.ID, 1)
	var pods struct {
		Items []struct{ Spec struct{ NodeName string } }
	}
	if err := c.kube.Do(t.Context(), http.MethodGet, "/api/v1/namespaces/pcm/pods", nil, &pods); err != nil || len(pods.Items) != 1 {
		t.Fatalf("%+v, %v", pods, err)
	}
	node := c.nodes[pods.Items[0].Spec.NodeName]
	node.Kubelet().Kill()
	n, told := c.audit(j.ID)
	if n != 1 || c.attempts(j.ID) != 2 || !strings.Contains(told, "node "+node.Name+" does not answer; the pod may still run there") {
		t.Errorf("%d overlaps; the buyer is told:\n%s", n, told)
	}
	// What is left of it ends when the node is back.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := node.StartKubelet(ctx); err != nil {
		t.Fatal(err)
	}
	c.within("no pod is left", func(ctx context.Context) error {
		err := c.kube.Do(ctx, http.MethodGet, "/api/v1/namespaces/pcm/pods", nil, &pods)
		if err == nil && len(pods.Items) > 0 {
			err = fmt.Errorf("%d are", len(pods.Items))
		}
		return err
	})
}
