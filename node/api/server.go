// Package api is the local HTTP view of one peer: its server, its Go client and
// its OpenAPI document. The server knows its node by the interface [Node] only.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

// Config is how a node is served.
type Config struct {
	Token     string          // for what needs one over TCP; "" lets nothing of that through
	Hosts     []string        // further Host headers to accept, as "HOST:PORT"
	Version   string          // of the software, for the OpenAPI document
	JobSchema json.RawMessage // JSON Schema of a job's spec, to hand on
	Logger    *slog.Logger    // nil: none
}

// Server serves one node.
type Server struct {
	node Node
	cfg  Config
	log  *slog.Logger
	huma huma.API

	handler  http.Handler
	inFlight chan struct{} // holds one element for each request in work
	streams  chan struct{} // and for each open stream
	sessions chan struct{} // and for each session with a task

	closeOnce sync.Once
	closing   chan struct{} // closed when the server shuts down: streams end
}

// NewServer makes the server. It panics when two collectors of the node clash,
// which a test would see.
func NewServer(node Node, cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		node: node, cfg: cfg, log: cfg.Logger,
		inFlight: make(chan struct{}, maxInFlight+maxStreams+maxSessions),
		streams:  make(chan struct{}, maxStreams),
		sessions: make(chan struct{}, maxSessions),
		closing:  make(chan struct{}),
	}
	mux := http.NewServeMux()
	s.huma = humago.New(mux, humaConfig(cfg.Version))
	s.routes()
	mux.Handle("GET /metrics", s.metrics())
	if l, ok := node.(Log); ok {
		logRoutes(mux, l, s.log)
	}
	s.handler = s.guard(router(mux))
	return s
}

// Handler is the whole API. Requests count as coming over TCP unless the
// connection was accepted by [Server.Serve] on a unix socket.
func (s *Server) Handler() http.Handler { return s.handler }

// OpenAPI is the OpenAPI 3.1 document, as JSON.
func (s *Server) OpenAPI() ([]byte, error) { return s.huma.OpenAPI().MarshalJSON() }

// shutdownGrace is how long requests in work may take after the server was told to end.
const shutdownGrace = 3 * time.Second

// Serve answers on all listeners until ctx ends, which is no error, or one of
// them fails. It closes the listeners.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ConnContext:       connContext,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		g.Go(func() error {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	g.Go(func() error {
		<-gctx.Done()
		s.closeOnce.Do(func() { close(s.closing) })
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
		return nil
	})
	return g.Wait()
}

func (s *Server) metrics() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "pcm_api_streams", Help: "Open event streams and log streams of the local API.",
	}, func() float64 { return float64(len(s.streams)) }))
	for _, c := range s.node.Collectors() {
		if pc, ok := c.(prometheus.Collector); ok {
			reg.MustRegister(pc)
		} else {
			s.log.Warn("not a Prometheus collector", "type", c)
		}
	}
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg, MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}
