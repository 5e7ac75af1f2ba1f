package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/jointcloud/pcm"
)

// metrics are what Prometheus can scrape. Names carry their units.
type metrics struct {
	events *prometheus.CounterVec
	all    []any
}

func newMetrics(n *Node) *metrics {
	m := &metrics{events: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "pcm_ledger_events_total", Help: "Committed operations and facts of this peer's cell that concern it, by kind.",
	}, []string{"kind"})}
	gauge := func(name, help string, value func() float64) any {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	m.all = []any{
		m.events,
		gauge("pcm_peers_connected", "Peers of the mesh that this one is connected to.", func() float64 { return float64(n.connected()) }),
		gauge("pcm_tasks_running", "Attempts that run on this peer.", func() float64 { r, _ := n.seller.busy(); return float64(r) }),
		gauge("pcm_tasks_queued", "Attempts that were awarded to this peer and wait for room.", func() float64 { _, q := n.seller.busy(); return float64(q) }),
		gauge("pcm_jobs_driven", "Jobs that this peer drives.", func() float64 { return float64(n.drivers.count()) }),
		gauge("pcm_ledger_records", "Records of the cell's ledger.", func() float64 { return float64(n.cell.Status().Records) }),
		gauge("pcm_raft_applied_index", "Last Raft entry that was applied here.", func() float64 { return float64(n.cell.Applied()) }),
		gauge("pcm_raft_term", "Raft term of the cell.", func() float64 { return float64(n.cell.Status().Term) }),
		gauge("pcm_artifacts_bytes", "Space that the artifact store takes.", func() float64 { return float64(n.store.Usage().Used) }),
		gauge("pcm_disk_free_bytes", "Space free on the disk of the data folder.", func() float64 { return float64(n.store.Usage().Free) }),
	}
	return m
}

func (m *metrics) observe(e *pcm.Event) {
	kind := ""
	switch {
	case e.Op != nil:
		kind = e.Op.Kind()
	case e.Fact != nil:
		kind = factKind(*e.Fact)
	}
	m.events.WithLabelValues(kind).Inc()
}

// Collectors are the node's Prometheus collectors.
func (n *Node) Collectors() []any { return n.metrics.all }
