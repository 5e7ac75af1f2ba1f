package main

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/kubernetes"
	"github.com/jointcloud/pcm/adapters/supervisor"
	"github.com/jointcloud/pcm/node"
)

// Kubernetes sells a namespace of a Kubernetes cluster.
type Kubernetes struct {
	Enabled        bool       `json:"enabled"`
	Kubeconfig     string     `json:"kubeconfig"`
	Context        string     `json:"context"`
	Namespace      string     `json:"namespace"`
	HelperImage    string     `json:"helper_image"`
	DefaultImage   string     `json:"default_image"` // empty: the helper's
	Images         []string   `json:"images"`
	PullPolicy     string     `json:"pull_policy"`
	PullSecrets    []string   `json:"pull_secrets"`
	PullMinutes    int        `json:"pull_minutes"`
	ServiceAccount string     `json:"service_account"`
	PriorityClass  string     `json:"priority_class"`
	RuntimeClass   string     `json:"runtime_class"`
	NodeSelector   pcm.Labels `json:"node_selector"`
	Tolerations    []string   `json:"tolerations"` // KEY=VALUE:EFFECT, KEY:EFFECT or KEY
	User           int        `json:"user"`
	Network        bool       `json:"network"`
	Accelerator    string     `json:"accelerator"`
	Measure        bool       `json:"measure"`
	Capacity       Capacity   `json:"capacity"`
	Slots          int        `json:"slots"` // 0: as many pods as the cluster takes
	Price          Price      `json:"price"`
}

func defaultKubernetes(price Price) Kubernetes {
	return Kubernetes{
		Namespace: "pcm", HelperImage: "busybox:stable", Images: []string{}, PullPolicy: "IfNotPresent", PullSecrets: []string{},
		NodeSelector: pcm.Labels{}, Tolerations: []string{}, User: 65534, PullMinutes: 10, Price: price,
	}
}

// settings is what daemon and supervisor both need of it. The instance tells what
// is ours in the cluster from what is another node's.
func (k Kubernetes) settings(instance string) kubernetes.Settings {
	s := kubernetes.Settings{
		Kubeconfig: k.Kubeconfig, Context: k.Context, Namespace: k.Namespace, Instance: instance,
		HelperImage: k.HelperImage, DefaultImage: k.DefaultImage, Images: k.Images, PullPolicy: k.PullPolicy, PullSecrets: k.PullSecrets,
		PullLimit: time.Duration(k.PullMinutes) * time.Minute, ServiceAccount: k.ServiceAccount, PriorityClass: k.PriorityClass,
		RuntimeClass: k.RuntimeClass, NodeSelector: k.NodeSelector, User: int64(k.User), Network: k.Network, Accelerator: k.Accelerator, Measure: k.Measure,
	}
	if k.Kubeconfig == "" {
		s.Server = kubernetes.InCluster()
	}
	for _, t := range k.Tolerations {
		s.Tolerations = append(s.Tolerations, toleration(t))
	}
	s.Defaults()
	return s
}

// toleration reads KEY=VALUE:EFFECT, as kubectl writes taints.
func toleration(text string) kubernetes.Toleration {
	var t kubernetes.Toleration
	text, t.Effect, _ = strings.Cut(text, ":")
	value := false
	if t.Key, t.Value, value = strings.Cut(text, "="); value {
		t.Operator = "Equal"
	} else {
		t.Operator = "Exists"
	}
	return t
}

func (k Kubernetes) validate() error {
	if err := oneOf(k.PullPolicy, "Always", "IfNotPresent", "Never"); err != nil {
		return &pcm.FieldError{Field: "adapters.kubernetes.pull_policy", Err: err}
	}
	if k.PullMinutes < 1 || k.PullMinutes > 24*60 {
		return &pcm.FieldError{Field: "adapters.kubernetes.pull_minutes", Err: pcm.Errorf(pcm.Invalid, "%d is out of range: 1 to %d", k.PullMinutes, 24*60)}
	}
	if k.Enabled {
		if err := k.settings("i-0").Validate(); err != nil {
			return &pcm.FieldError{Field: "adapters.kubernetes", Err: err}
		}
	}
	return validateSale("adapters.kubernetes", k.Capacity, k.Slots, k.Price)
}

func (k Kubernetes) sale(instance string, client *supervisor.Client, log *slog.Logger) (node.Sale, error) {
	price, err := k.Price.pcm()
	if err != nil {
		return node.Sale{}, err
	}
	capacity, err := k.Capacity.resources()
	if err != nil {
		return node.Sale{}, err
	}
	// It watches the cluster as long as this process lives.
	a, err := kubernetes.New(context.Background(), kubernetes.Config{Settings: k.settings(instance), Capacity: capacity, Slots: k.Slots, Logger: log}, client)
	return node.Sale{Price: price, Adapter: a}, err
}

// kubernetesRunner is the supervisor's side.
func kubernetesRunner(ctx context.Context, set *kubernetes.Settings, log *slog.Logger) ([]supervisor.Runner, error) {
	if set == nil {
		return nil, nil
	}
	r, err := kubernetes.NewRunner(ctx, *set, log)
	if err != nil {
		return nil, err
	}
	return []supervisor.Runner{r}, nil
}
