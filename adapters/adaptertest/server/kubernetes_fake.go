package server

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
)

// AddFakeNodes starts KWOK with n nodes of the given size, on which pods seem to
// run: for numbers, and for hardware that isn't there. extra adds resources, like
// {"nvidia.com/gpu": "8"}.
func (k *Kubernetes) AddFakeNodes(ctx context.Context, n int, cpu, memory, pods string, extra map[string]string) error {
	if k.kwok == nil {
		bin, err := kubernetesPrograms("kwok", "kwok.yaml")
		if err != nil {
			return err
		}
		k.kwok, err = k.Start("kwok", nil, bin["kwok"], "--kubeconfig", k.Admin, "--config", bin["kwok.yaml"], "--manage-all-nodes=false",
			"--manage-nodes-with-annotation-selector", "kwok.x-k8s.io/node=fake", "--node-lease-duration-seconds", "40", "--cidr", "10.99.0.1/16")
		if err != nil {
			return err
		}
	}
	for i := range n {
		amounts := map[string]any{"cpu": cpu, "memory": memory, "pods": pods}
		for name, v := range extra {
			amounts[name] = v
		}
		err := k.Create(ctx, map[string]any{"apiVersion": "v1", "kind": "Node",
			"metadata": map[string]any{"name": fmt.Sprintf("fake%d", i), "annotations": map[string]any{"kwok.x-k8s.io/node": "fake"},
				"labels": map[string]any{"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux", "kubernetes.io/hostname": fmt.Sprintf("fake%d", i)}},
			"status": map[string]any{"allocatable": amounts, "capacity": amounts}})
		if err != nil {
			return err
		}
	}
	last := fmt.Sprintf("fake%d", n-1)
	return k.kwok.Ready(ctx, func(ctx context.Context) error {
		var node struct {
			Spec   struct{ Taints []any }
			Status struct {
				Conditions []struct{ Type, Status string }
			}
		}
		if err := k.Do(ctx, http.MethodGet, filepath.Join("/api/v1/nodes", last), nil, &node); err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" && len(node.Spec.Taints) == 0 {
				return nil
			}
		}
		return fmt.Errorf("node %s is not ready", last)
	})
}
