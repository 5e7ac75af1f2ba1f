package kubernetes

import (
	"context"
	"maps"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// What the label "network-policy" of pools says.
const (
	policyMade    = "requested" // the policy is there; whether it holds is the network plugin's affair
	policyRefused = "refused"
)

// shut asks the cluster to keep tasks that may not use the network off it.
func (r *Runner) shut(ctx context.Context) {
	name := "pcm-" + hash(r.set.Instance)[:12] + "-no-network"
	policy := object{
		"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
		"metadata": object{"name": name, "labels": object{labelManaged: managed, labelInstance: r.set.Instance}},
		"spec": object{
			"podSelector": object{"matchLabels": object{labelInstance: r.set.Instance, labelNetwork: "none"}},
			"policyTypes": []any{"Ingress", "Egress"},
		},
	}
	for wait := minWait; ctx.Err() == nil; wait = min(2*wait, maxWait) {
		_, err := r.c.create(ctx, policies, policy)
		if err == nil || apierrors.IsAlreadyExists(err) {
			r.label("network-policy", policyMade)
			return
		}
		if !away(err) {
			r.log.Warn("no network policy: tasks can reach what the cluster lets them reach", "err", err)
			r.label("network-policy", policyRefused)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// label adds to the facts.
func (r *Runner) label(key, value string) {
	for {
		old := r.facts.Load()
		f := supervisor.Facts{Sandbox: old.Sandbox, Labels: pcm.Labels{}}
		maps.Copy(f.Labels, old.Labels)
		f.Labels[key] = value
		if r.facts.CompareAndSwap(old, &f) {
			return
		}
	}
}

// publish says how streams are told apart.
func (r *Runner) publish() {
	if r.merged.Load() {
		r.label("streams", "merged")
	}
}
