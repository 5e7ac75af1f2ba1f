package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/adaptertest/require"
	"github.com/jointcloud/pcm/adapters/adaptertest/server"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// The supervisor's mode is its settings.
func TestMain(m *testing.M) {
	adaptertest.Main(m, func(ctx context.Context, _, mode string) ([]supervisor.Runner, error) {
		var set Settings
		if err := json.Unmarshal([]byte(mode), &set); err != nil {
			return nil, err
		}
		r, err := NewRunner(ctx, set, slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
		return []supervisor.Runner{r}, err
	})
}

// program is a small static program that runs the steps of conformance tests.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "pcm-task-")
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "task")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, "github.com/jointcloud/pcm/adapters/adaptertest/task")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return file, nil
})

func script(t *testing.T, task *adapters.Task, steps ...string) {
	t.Helper()
	file, err := program()
	if err != nil {
		t.Fatal(err)
	}
	task.Command = append([]string{"./task"}, steps...)
	task.Inputs = []adapters.Mount{{Path: file, Target: "task"}}
	task.Resources.CPU = 100
}

// cluster0 starts a control plane in which the service account pcm has exactly the
// rights that configs/kubernetes/rbac.yaml gives.
func cluster0(t *testing.T) *server.Kubernetes {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	k, err := server.StartKubernetes(ctx)
	require.Server(t, "kubernetes", err)
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("PCM_TEST_KEEP") != "" {
			t.Logf("kept: %s", k.Dir)
			return
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	data, err := os.ReadFile("../../configs/kubernetes/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		var o map[string]any
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		if err := k.Create(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

func withNode(t *testing.T) (*server.Kubernetes, *server.KubernetesNode) {
	t.Helper()
	k := cluster0(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	n, err := k.AddNode(ctx, 0)
	require.Server(t, "kubernetes", err)
	return k, n
}

func settings(k *server.Kubernetes, box string) Settings {
	return Settings{
		Kubeconfig: k.Restricted, Namespace: "pcm", Instance: strings.ToLower(filepath.Base(box)),
		HelperImage: server.HelperImage, DefaultImage: server.HelperImage, Images: []string{"localhost/**"}, Network: true,
		PullLimit: 15 * time.Second, LostLimit: 15 * time.Second,
	}
}

func instance(t *testing.T, k *server.Kubernetes) adaptertest.Instance {
	t.Helper()
	box := adaptertest.NewBox(t, "")
	set := settings(k, box.Dir)
	mode, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	box.Mode = string(mode)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	fresh := func(client *supervisor.Client) adapters.Adapter {
		a, err := New(ctx, Config{Settings: set}, client)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	return adaptertest.Instance{
		Adapter: fresh(box.Client()), Box: box,
		Reconnect: func() adapters.Adapter { return fresh(box.Reconnect()) },
		Hang:      func() func() { return k.API().Hang() },
		Restart: func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := k.RestartAPI(ctx, time.Second); err != nil {
				t.Error(err)
			}
		},
		Starts: func(key adapters.Key) int { return starts(t, k, key) },
		Fill: func() func() {
			name := "filler"
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			quota := map[string]any{"apiVersion": "v1", "kind": "ResourceQuota", "metadata": map[string]any{"name": name, "namespace": "pcm"},
				"spec": map[string]any{"hard": map[string]any{"pods": "0"}}}
			if err := k.Create(ctx, quota); err != nil {
				t.Fatal(err)
			}
			return sync.OnceFunc(func() {
				if err := k.Do(context.Background(), http.MethodDelete, "/api/v1/namespaces/pcm/resourcequotas/"+name, nil, nil); err != nil {
					t.Error(err)
				}
			})
		},
	}
}

// starts counts the pods that the cluster has made for an attempt, ended or not.
func starts(t *testing.T, k *server.Kubernetes, key adapters.Key) int {
	pods, err := k.Started(context.Background(), taskContainer)
	if err != nil {
		t.Error(err)
	}
	n := 0
	for _, pod := range pods {
		if strings.HasPrefix(pod, array{first: key, n: 1}.jobName()+"-") {
			n++
		}
	}
	return n
}

func TestConformance(t *testing.T) {
	t.Parallel()
	k, _ := withNode(t)
	adaptertest.Run(t, adaptertest.Subject{
		Name: Name, Remote: true,
		New: func(t *testing.T) adaptertest.Instance { return instance(t, k) },
		Own: func(t *testing.T) adaptertest.Instance {
			own, _ := withNode(t)
			return instance(t, own)
		},
		Script:  script,
		Exec:    func(steps ...string) []string { return append([]string{"./task", "sleep", "300ms"}, steps...) }, // a terminal has its size a moment after the start
		Missing: func(t *adapters.Task) { t.Command = []string{"no-such-program"} },
		Image:   server.TestImage,
		Env:     []string{"KUBERNETES_*", "HOSTNAME", "SHLVL", "PWD", "OLDPWD"},
		Unsupported: map[string]string{
			"suspend and resume": "suspending a Job deletes its pod",
			"accelerators":       "no device plugin here",
			"no network":         "a NetworkPolicy is asked for; whether it holds is the affair of the cluster's network plugin",
		},
		Patience: 3 * time.Minute, Pace: 2 * time.Second, Many: 12, Enough: 1 << 30, Parallel: 6,
	})
}
