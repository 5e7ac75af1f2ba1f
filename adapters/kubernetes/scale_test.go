package kubernetes

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/adaptertest/require"
)

// resident is the memory of a process in MiB.
func resident(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.Atoi(strings.Fields(v)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kb >> 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// Pools by kind of accelerator, on nodes that only seem to be there, and what
// quotas leave of them.
func TestPools(t *testing.T) {
	t.Parallel()
	k := cluster0(t)
	ctx := within5(t)
	if err := k.AddFakeNodes(ctx, 2, "32", "256Gi", "110", map[string]string{"nvidia.com/gpu": "8"}); err != nil {
		require.Server(t, "kubernetes", err)
	}
	in := instance(t, k)
	pools, err := in.Adapter.Pools(ctx)
	if err != nil || len(pools) != 1 {
		t.Fatalf("%+v, %v", pools, err)
	}
	p := pools[0]
	if p.ID != "kubernetes-nvidia.com-gpu" || p.Capacity != (pcm.Resources{CPU: 64000, Memory: 512 << 30, GPU: 16}) || p.Slots != 220 || p.Accelerator == nil || p.Accelerator.Vendor != "nvidia" || p.Labels["nodes"] != "2" {
		t.Errorf("%+v", p)
	}
	quota := map[string]any{"apiVersion": "v1", "kind": "ResourceQuota", "metadata": map[string]any{"name": "q", "namespace": "pcm"},
		"spec": map[string]any{"hard": map[string]any{"requests.cpu": "10", "pods": "7"}}}
	if err := k.Create(ctx, quota); err != nil {
		t.Fatal(err)
	}
	// Others use some; ours is what we may use.
	other := map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "other", "namespace": "default"},
		"spec": map[string]any{"containers": []any{map[string]any{"name": "c", "image": "x", "resources": map[string]any{
			"requests": map[string]any{"memory": "56Gi", "nvidia.com/gpu": "2"}, "limits": map[string]any{"nvidia.com/gpu": "2"}}}}}}
	if err := k.Create(ctx, other); err != nil {
		t.Fatal(err)
	}
	for want := (pcm.Resources{CPU: 10000, Memory: 456 << 30, GPU: 14}); ; {
		pools, err = in.Adapter.Pools(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(pools) == 1 && pools[0].Capacity == want && pools[0].Slots == 7 {
			break
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%+v", pools)
		}
	}
}

// Ten thousand running attempts are tracked in little memory, by two watches.
func TestTenThousand(t *testing.T) {
	if os.Getenv("PCM_TEST_SCALE") == "" {
		t.Skip("TAKES MANY MINUTES: PCM_TEST_SCALE=10000 RUNS IT")
	}
	total, err := strconv.Atoi(os.Getenv("PCM_TEST_SCALE"))
	if err != nil {
		t.Fatal(err)
	}
	k := cluster0(t)
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	if err := k.AddFakeNodes(ctx, 20, "1000", "4Ti", "1000", nil); err != nil {
		require.Server(t, "kubernetes", err)
	}
	in := instance(t, k)
	ch, err := in.Adapter.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for done := 0; done < total; done += 1000 {
		n := min(1000, total-done)
		first := adaptertest.NewTask()
		for i := range n {
			task := first
			task.Index, task.Count, task.Batch, task.Width = i, n, n, n
			task.Command = []string{"true"}
			task.Resources = pcm.Resources{CPU: 10, Memory: 16 << 20}
			task.Limit, task.Deadline = time.Hour, adapters.Now().Add(time.Hour)
			if err := in.Adapter.Start(ctx, task); err != nil {
				t.Fatal(err)
			}
		}
	}
	running := map[adapters.Key]bool{}
	for len(running) < total {
		select {
		case st, ok := <-ch:
			if !ok {
				t.Fatalf("%d of %d run; the watch ended", len(running), total)
			}
			if st.State == adapters.Running {
				running[st.Key] = true
			}
			if st.State == adapters.Ended {
				t.Fatalf("%s: %s, %q", st.Key, st.Outcome, st.Reason)
			}
		case <-ctx.Done():
			t.Fatalf("%d of %d run", len(running), total)
		}
	}
	rss := resident(t, in.Box.PID())
	t.Logf("%d attempts run after %s; the supervisor has %d MiB", total, time.Since(began).Round(time.Second), rss)
	if total >= 10_000 && rss > 150 {
		t.Errorf("the supervisor has %d MiB: more than 150", rss)
	}
	in.Box.Kill() // it would end them one by one
}
