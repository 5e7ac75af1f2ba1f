package kubernetes

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/jointcloud/pcm"
)

// census counts what the cluster has and what of it others use. Where nodes can't
// be listed, quotas or the configuration must say.
type census struct {
	c   *cluster
	log *slog.Logger

	mu     sync.Mutex
	nodes  map[string]nodeView
	pods   map[string]use3 // by namespace/name: those that hold something
	quotas map[string]quotaView
	seen   [3]map[string]bool
	state  [3]error // nil: current
	first  chan struct{}
	once   sync.Once
}

type nodeView struct {
	usable      bool
	has         amounts
	labels      map[string]string
	accelerator string // name of its resource
}

// amounts of what nodes have and pods ask for.
type amounts struct {
	cpu, memory, gpu, pods int64
}

func (a amounts) plus(b amounts) amounts {
	return amounts{a.cpu + b.cpu, a.memory + b.memory, a.gpu + b.gpu, a.pods + b.pods}
}

func (a amounts) minus(b amounts) amounts {
	return amounts{max(a.cpu-b.cpu, 0), max(a.memory-b.memory, 0), max(a.gpu-b.gpu, 0), max(a.pods-b.pods, 0)}
}

type use3 struct {
	node string
	ours bool
	amounts
}

// quotaView is what a ResourceQuota allows; -1 is no bound.
type quotaView struct{ hard, used amounts }

var errNotYet = pcm.Errorf(pcm.Unavailable, "the cluster has not answered yet")

func newCensus(c *cluster, log *slog.Logger) *census {
	return &census{c: c, log: log, nodes: map[string]nodeView{}, pods: map[string]use3{}, quotas: map[string]quotaView{},
		state: [3]error{errNotYet, errNotYet, errNotYet}, first: make(chan struct{})}
}

// accelerators are the resources that count as GPUs, most wanted first.
var accelerators = []string{"nvidia.com/gpu", "amd.com/gpu", "huawei.com/Ascend910", "huawei.com/Ascend310P", "huawei.com/Ascend310", "gpu.intel.com/i915", "gpu.intel.com/xe", "cambricon.com/mlu", "hygon.com/dcu"}

func (s *census) run(ctx context.Context) {
	kinds := []*reflector{
		{what: "nodes", api: s.c.api.Resource(nodes), put: s.putNode, drop: func(o *unstructured.Unstructured) { s.drop(0, o.GetName()) }},
		{what: "pods of all", api: s.c.api.Resource(pods), put: s.putPod, drop: func(o *unstructured.Unstructured) { s.drop(1, o.GetNamespace()+"/"+o.GetName()) }},
		{what: "quotas", api: s.c.in(quotas), put: s.putQuota, drop: func(o *unstructured.Unstructured) { s.drop(2, o.GetName()) }},
	}
	var wg sync.WaitGroup
	for i, r := range kinds {
		r.log = s.log
		r.begin = func() { s.mu.Lock(); s.seen[i] = map[string]bool{}; s.mu.Unlock() }
		r.synced = func() { s.sync(i) }
		r.failed = func(err error) { s.set(i, err) }
		wg.Go(func() { r.run(ctx) })
	}
	wg.Wait()
}

func (s *census) set(i int, err error) {
	s.mu.Lock()
	s.state[i] = err
	s.check()
	s.mu.Unlock()
}

// check tells those who wait when everything was answered. s.mu is held.
func (s *census) check() {
	if !slices.Contains(s.state[:], error(errNotYet)) {
		s.once.Do(func() { close(s.first) })
	}
}

func (s *census) sync(i int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := func(k string) bool { return !s.seen[i][k] }
	switch i {
	case 0:
		maps.DeleteFunc(s.nodes, func(k string, _ nodeView) bool { return gone(k) })
	case 1:
		maps.DeleteFunc(s.pods, func(k string, _ use3) bool { return gone(k) })
	case 2:
		maps.DeleteFunc(s.quotas, func(k string, _ quotaView) bool { return gone(k) })
	}
	s.seen[i], s.state[i] = nil, nil
	s.check()
}

func (s *census) drop(i int, key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch i {
	case 0:
		delete(s.nodes, key)
	case 1:
		delete(s.pods, key)
	case 2:
		delete(s.quotas, key)
	}
}

// note tells that a list has the key. s.mu is held.
func (s *census) note(i int, key string) {
	if s.seen[i] != nil {
		s.seen[i][key] = true
	}
}

func (s *census) putNode(o *unstructured.Unstructured) {
	var w struct {
		Metadata struct{ Labels map[string]string }
		Spec     struct {
			Unschedulable bool
			Taints        []struct{ Key, Value, Effect string }
		}
		Status struct {
			Allocatable map[string]any
			Conditions  []condition
		}
	}
	if decode(o, &w) != nil {
		return
	}
	v := nodeView{labels: w.Metadata.Labels, usable: !w.Spec.Unschedulable}
	ready := slices.ContainsFunc(w.Status.Conditions, func(c condition) bool { return c.Type == "Ready" && c.Status == "True" })
	v.usable = v.usable && ready
	for _, taint := range w.Spec.Taints {
		if taint.Effect != "PreferNoSchedule" && !s.c.set.tolerates(taint.Key, taint.Value, taint.Effect) {
			v.usable = false
		}
	}
	for k, want := range s.c.set.NodeSelector {
		v.usable = v.usable && w.Metadata.Labels[k] == want
	}
	for _, name := range s.c.set.known() {
		if quantity(w.Status.Allocatable[name], false) > 0 {
			v.accelerator = name
			break
		}
	}
	v.has = amountsOf(w.Status.Allocatable, v.accelerator)
	v.has.pods = quantity(w.Status.Allocatable["pods"], false)
	s.mu.Lock()
	s.nodes[o.GetName()] = v
	s.note(0, o.GetName())
	s.mu.Unlock()
}

func (s Settings) tolerates(key, value, effect string) bool {
	return slices.ContainsFunc(s.Tolerations, func(t Toleration) bool {
		return (t.Key == "" && t.Operator == "Exists" || t.Key == key) && (t.Operator == "Exists" || t.Value == value) && (t.Effect == "" || t.Effect == effect)
	})
}

func (s *census) putPod(o *unstructured.Unstructured) {
	var w wirePod
	if decode(o, &w) != nil {
		return
	}
	key := o.GetNamespace() + "/" + o.GetName()
	u := use3{node: strings.Clone(w.Spec.NodeName)}
	u.ours = w.Metadata.Labels[labelInstance] == s.c.set.Instance && w.Metadata.Labels[labelManaged] == managed
	var first amounts
	for _, c := range w.Spec.InitContainers {
		a := amountsOf(c.Resources.Requests, "")
		first.cpu, first.memory = max(first.cpu, a.cpu), max(first.memory, a.memory)
	}
	for _, c := range w.Spec.Containers {
		a := amountsOf(c.Resources.Requests, "")
		for _, name := range s.c.set.known() {
			a.gpu = max(a.gpu, quantity(c.Resources.Requests[name], false))
		}
		u.amounts = u.plus(a)
	}
	u.cpu, u.memory, u.pods = max(u.cpu, first.cpu), max(u.memory, first.memory), 1
	over := w.Status.Phase == "Succeeded" || w.Status.Phase == "Failed"
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(1, key)
	if over || u.node == "" || u.ours {
		delete(s.pods, key) // what holds nothing, or holds what we may use
		return
	}
	s.pods[key] = u
}

func (s *census) putQuota(o *unstructured.Unstructured) {
	var w struct {
		Status struct{ Hard, Used map[string]any }
	}
	if decode(o, &w) != nil {
		return
	}
	read := func(m map[string]any) amounts {
		pick := func(milli bool, names ...string) int64 {
			least := int64(-1)
			for _, n := range names {
				if v, ok := m[n]; ok {
					if q := quantity(v, milli); least < 0 || q < least {
						least = q
					}
				}
			}
			return least
		}
		gpu := int64(-1)
		if a := s.c.set.Accelerator; a != "" {
			gpu = pick(false, "requests."+a, "limits."+a)
		}
		return amounts{pick(true, "cpu", "requests.cpu", "limits.cpu"), pick(false, "memory", "requests.memory", "limits.memory"), gpu, pick(false, "pods", "count/pods", "count/jobs.batch")}
	}
	s.mu.Lock()
	s.quotas[o.GetName()] = quotaView{read(w.Status.Hard), read(w.Status.Used)}
	s.note(2, o.GetName())
	s.mu.Unlock()
}

func amountsOf(m map[string]any, accelerator string) amounts {
	a := amounts{cpu: quantity(m["cpu"], true), memory: quantity(m["memory"], false)}
	if accelerator != "" {
		a.gpu = quantity(m[accelerator], false)
	}
	return a
}

// quantity reads an amount as the cluster writes it; in thousandths if milli.
func quantity(v any, milli bool) int64 {
	var text string
	switch v := v.(type) {
	case string:
		text = v
	case int64:
		text = strconv.FormatInt(v, 10)
	case float64:
		text = strconv.FormatFloat(v, 'f', -1, 64)
	default:
		return 0
	}
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return 0
	}
	n := q.Value()
	if milli {
		n = q.MilliValue()
	}
	return max(n, 0)
}

// labelProduct is what the vendor's discovery says of a node's accelerators.
const labelProduct = "nvidia.com/gpu.product"

// share is what one kind of nodes has for us.
type share struct {
	accelerator string
	product     string // what the nodes say that their accelerators are
	arch, os    string
	nodes       int
	amounts
	largest amounts // of one node: no task can have more
}

// shares counts by kind of node: those without accelerator first. ok is false
// where nodes can't be listed; bound is what quotas leave, -1 where they don't bound.
func (s *census) shares(ctx context.Context) (all []share, bound amounts, ok bool, err error) {
	select {
	case <-s.first:
	case <-ctx.Done():
		return nil, bound, false, pcm.Errorf(pcm.Unavailable, "the cluster at %s does not answer", s.c.config.Host)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, what := range []string{"nodes", "pods", "quotas"} {
		if err := s.state[i]; err != nil && !apierrors.IsForbidden(err) {
			return nil, bound, false, fault("watch the "+what+" of the cluster", err)
		}
	}
	bound = amounts{-1, -1, -1, -1}
	for _, q := range s.quotas {
		bound = amounts{least(bound.cpu, q.hard.cpu), least(bound.memory, q.hard.memory), least(bound.gpu, q.hard.gpu), least(bound.pods, q.hard.pods)}
	}
	if s.state[0] != nil {
		return nil, bound, false, nil
	}
	taken := map[string]amounts{}
	for _, p := range s.pods {
		taken[p.node] = taken[p.node].plus(p.amounts)
	}
	kinds := map[string]*share{}
	for name, n := range s.nodes {
		if !n.usable {
			continue
		}
		k := kinds[n.accelerator]
		if k == nil {
			k = &share{accelerator: n.accelerator, product: n.labels[labelProduct], arch: n.labels["kubernetes.io/arch"], os: n.labels["kubernetes.io/os"]}
			kinds[n.accelerator] = k
		}
		free := n.has.minus(taken[name])
		k.nodes++
		k.amounts = k.plus(free)
		k.largest = amounts{max(k.largest.cpu, free.cpu), max(k.largest.memory, free.memory), max(k.largest.gpu, free.gpu), max(k.largest.pods, free.pods)}
	}
	for _, k := range kinds {
		all = append(all, *k)
	}
	slices.SortFunc(all, func(a, b share) int { return cmp.Compare(a.accelerator, b.accelerator) })
	return all, bound, true, nil
}

// least is the smaller bound; -1 is none.
func least(a, b int64) int64 {
	if a < 0 || b >= 0 && b < a {
		return b
	}
	return a
}
