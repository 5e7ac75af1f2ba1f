package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/configs"
	"github.com/jointcloud/pcm/node"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/rules"
)

// stopGrace is how long a node may take to end in order.
const stopGrace = 10 * time.Second

// daemon is a node as this command drives it. Run ends without an error when its
// ctx ends, or when Down or Leave was asked for.
type daemon interface {
	api.Node
	Run(ctx context.Context) error
}

// surroundings is what a node is told besides its configuration.
type surroundings struct {
	Version string
	API     []string // where its API listens
	Logger  *slog.Logger
	Rules   func() (rules.Set, error) // as the configuration has them now
}

func (a *app) upCommand() *cobra.Command {
	var file string
	var f Config // what the flags say
	c := &cobra.Command{
		Use: "up", Short: "Start this node, and run it until it is stopped", Args: noArgs,
		Long: `Starts this machine's node. Without any configuration it founds a mesh of its
own, sells this machine through the process and WebAssembly adapters, and listens
on loopback only. To let peers on other machines in, name addresses:

  pcm up --listen /ip4/0.0.0.0/udp/7419/quic-v1 --listen /ip4/0.0.0.0/tcp/7419

Flags win over environment (PCM_NAME, PCM_LISTEN, …), which wins over the file
config.yaml in the data folder (or --config FILE).`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, named := a.dataDir()
			if !named {
				dir = ""
			}
			if file == "" {
				file = a.getenv("PCM_CONFIG")
			}
			changed := cmd.Flags().Changed
			cfg, err := loadConfig(file, dir, a.getenv, func(c *Config) {
				if named {
					c.Data = dir
				}
				if a.api != "" {
					c.API = a.api
				}
				for name, set := range map[string]func(){
					"name":      func() { c.Name = f.Name },
					"listen":    func() { c.Listen = f.Listen },
					"announce":  func() { c.Announce = f.Announce },
					"bootstrap": func() { c.Bootstrap = f.Bootstrap },
					"join":      func() { c.Join = f.Join },
					"cell":      func() { c.Cell.Join = f.Cell.Join },
					"mdns":      func() { c.MDNS = f.MDNS },

					"log-listen":     func() { c.LogListen = f.LogListen },
					"ledger-archive": func() { c.LedgerArchive = f.LedgerArchive },
					"log-level":      func() { c.Log.Level = f.Log.Level },
				} {
					if changed(name) {
						set()
					}
				}
			})
			if err != nil {
				return err
			}
			return a.upAgain(cmd.Context(), cfg, ruleReader(file, dir, a.getenv))
		},
	}
	fl := c.Flags()
	fl.StringVar(&file, "config", "", "YAML `FILE` with the configuration (PCM_CONFIG)")
	fl.StringVar(&f.Name, "name", "", "name of this peer, for people (default: the host's)")
	fl.StringArrayVar(&f.Listen, "listen", nil, "`MULTIADDR` to listen on for peers; may be repeated (default: loopback, port 7419)")
	fl.StringArrayVar(&f.Announce, "announce", nil, "`MULTIADDR` under which others reach this peer; may be repeated")
	fl.StringArrayVar(&f.Bootstrap, "bootstrap", nil, "`MULTIADDR` of a peer to dial; may be repeated")
	fl.StringVar(&f.Join, "join", "", "`TOKEN` from 'pcm invite': join that mesh instead of founding one")
	fl.StringVar(&f.Cell.Join, "cell", "", cellFlag)
	fl.BoolVar(&f.MDNS, "mdns", false, "find peers on the local network")
	fl.StringVar(&f.LogListen, "log-listen", "", "`HOST:PORT` where anybody may read the ledger as a public log, and nothing else (default: nowhere)")
	fl.StringVar(&f.LedgerArchive, "ledger-archive", "", "`DIR` for records that the cell no longer keeps (default: none, and this peer keeps them all)")
	fl.StringVar(&f.Log.Level, "log-level", "", "debug, info, warn or error")
	return c
}

// upAgain runs the node, and again when it has moved to another mesh.
func (a *app) upAgain(ctx context.Context, cfg Config, own func() (rules.Set, error)) error {
	for {
		err := a.up(ctx, cfg, own)
		if !errors.Is(err, node.ErrRejoin) {
			return err
		}
		cfg.Join = "" // it has done its work
	}
}

// up runs the node. What is started in order (listeners, lock, node, API) ends in
// the opposite order.
func (a *app) up(ctx context.Context, cfg Config, own func() (rules.Set, error)) error {
	// What may be refused comes first: then no folder is made a data folder in vain.
	tcp, refused := listenTCP(cfg)
	if tcp != nil {
		defer tcp.Close()
	}
	var logListener net.Listener
	if refused == nil {
		logListener, refused = listenLog(cfg)
	}
	if logListener != nil {
		defer logListener.Close()
		cfg.LogListen = logListener.Addr().String()
	}
	if held, _ := lockHeld(cfg.Data); refused != nil && !held {
		return refused
	}
	unlock, err := lockData(cfg.Data) // if it is held, that says more than a port that is taken
	if err != nil {
		return err
	}
	defer unlock()
	if refused != nil {
		return refused
	}
	log := newLogger(cfg.Log, a.errOut)
	ctx, stop := a.signals(ctx, log)
	defer stop()

	listeners, addr, err := listenAPI(cfg, tcp)
	if err != nil {
		return err
	}
	defer closeAll(listeners)
	defer os.Remove(filepath.Join(cfg.Data, api.AddrFile))
	defer os.Remove(filepath.Join(cfg.Data, api.SocketFile))
	token, err := api.EnsureToken(cfg.Data)
	if err != nil {
		return err
	}

	d, err := openNode(ctx, cfg, surroundings{Version: a.versionString(), API: []string{addr}, Logger: log, Rules: own})
	if err != nil {
		return err
	}
	server := api.NewServer(d, api.Config{
		Token: token, Hosts: cfg.APIHosts, Version: a.versionString(), JobSchema: configs.JobSchema, Logger: log.With("part", "api"),
	})

	runCtx, stopRunning := context.WithCancelCause(ctx)
	defer stopRunning(nil)
	serveCtx, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	var g errgroup.Group
	g.Go(func() error {
		err := server.Serve(serveCtx, listeners...)
		stopRunning(err) // a node without its API could not be stopped
		return err
	})
	if l, ok := d.(api.Log); ok && logListener != nil {
		g.Go(func() error {
			err := api.ServeLog(serveCtx, l, log.With("part", "log"), logListener)
			stopRunning(err)
			return err
		})
	}
	g.Go(func() error {
		defer stopServing() // the API answers until the node has ended
		return d.Run(runCtx)
	})
	g.Go(func() error {
		a.greet(serveCtx, cfg, d, addr)
		return nil
	})
	g.Go(func() error {
		settle(runCtx, log)
		return nil
	})
	return g.Wait()
}

// signals ends ctx at the first SIGINT or SIGTERM, and the process at the second,
// or when ending in order takes longer than stopGrace.
func (a *app) signals(ctx context.Context, log *slog.Logger) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		select {
		case s := <-ch:
			log.Info("stopping: a second signal ends at once", "signal", s.String())
			cancel()
		case <-done:
			return
		}
		select {
		case <-ch:
			log.Warn("ending at once")
		case <-time.After(stopGrace):
			log.Error("ending now: the node did not end in time", "grace", stopGrace)
		case <-done:
			return
		}
		os.Exit(130)
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(done)
		cancel()
	}
}

// listenTCP opens the API's listener for TCP.
func listenTCP(cfg Config) (net.Listener, error) {
	tcp, err := net.Listen("tcp", cfg.API)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, pcm.Errorf(pcm.Conflict, "%s, where the API shall listen, is taken, perhaps by another node: give this one another address with --api HOST:PORT, or --api 127.0.0.1:0 for any free port", cfg.API)
		}
		return nil, pcm.Errorf(pcm.Invalid, "the API can't listen on %s: %w; give another address with --api HOST:PORT", cfg.API, err)
	}
	return tcp, nil
}

// listenAPI opens the API's unix socket beside its listener for TCP, and notes the
// address that TCP got.
func listenAPI(cfg Config, tcp net.Listener) ([]net.Listener, string, error) {
	addr := tcp.Addr().String()
	unix, err := api.ListenUnix(cfg.Data)
	if err != nil {
		return nil, "", err
	}
	if err := writeAddr(cfg.Data, addr); err != nil {
		unix.Close()
		return nil, "", err
	}
	return []net.Listener{unix, tcp}, addr, nil
}

// listenLog opens the listener for outsiders; nil if none is wanted.
func listenLog(cfg Config) (net.Listener, error) {
	if cfg.LogListen == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", cfg.LogListen)
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "the public log can't listen on %s: %w; give another address with --log-listen HOST:PORT", cfg.LogListen, err)
	}
	return l, nil
}

func closeAll(ls []net.Listener) {
	for _, l := range ls {
		l.Close()
	}
}

// greet says what was started, once it is ready, and what to do next.
func (a *app) greet(ctx context.Context, cfg Config, d api.Node, addr string) {
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	patience := time.After(5 * time.Second)
	for {
		st, err := d.Status(ctx)
		late := false
		select {
		case <-patience:
			late = true
		default:
		}
		if err == nil && (st.Ready && (len(st.Pools) > 0 || !sells(cfg)) || late) {
			a.greeting(st, cfg, addr)
			return
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return
		}
	}
}

// sells tells whether the node has anything to sell.
func sells(cfg Config) bool { return cfg.Adapters.Process.Enabled || cfg.Adapters.Wasm.Enabled }

func (a *app) greeting(st api.Status, cfg Config, addr string) {
	t := &table{wide: true, now: a.now()}
	state := "is up"
	if !st.Ready {
		state = "is starting (" + or(st.Reason, "not ready yet") + ")"
	}
	t.text("Peer %s %s.", st.Name, state)
	t.pair("  peer", "%s", st.ID)
	t.pair("  account", "%s", st.Account)
	t.pair("  mesh", "%s", st.Mesh)
	t.pair("  cell", "%s (%s), %s", st.CellName, st.Cell, or(st.Role, "joining"))
	for _, l := range st.Listen {
		t.pair("  listens", "%s", l)
	}
	t.pair("  api", "http://%s (token in %s)", addr, filepath.Join(cfg.Data, api.TokenFile))
	if cfg.LogListen != "" {
		t.pair("  log", "http://%s%s (public, read-only)", cfg.LogListen, api.LogPath(st.Cell))
	}
	t.pair("  data", "%s", cfg.Data)
	for _, p := range st.Pools {
		t.pair("  sells", "%s", drawPool(p))
	}
	at := ""
	if cfg.Data != defaultData(a.getenv) {
		at = " --data " + cfg.Data
	}
	t.text("Next, in another terminal:")
	t.row("  pcm"+at+" run -- echo hello", "run something")
	t.row("  pcm"+at+" invite", "let another peer in")
	t.row("  pcm"+at+" down", "stop this node")
	if onlyLoopback(st.Listen) {
		t.text("It listens on loopback only; 'pcm up --help' says how to let other machines in.")
	}
	io.WriteString(a.out, t.String()) // nobody may be reading; the node runs all the same
}

// newLogger logs text to a terminal, JSON otherwise, unless the configuration says which.
func newLogger(c Log, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // Validate let only known levels through
	}
	opts := &slog.HandlerOptions{Level: level}
	if c.Format == "text" || (c.Format == "auto" && isTerminal(w)) {
		return slog.New(slog.NewTextHandler(w, opts))
	}
	return slog.New(slog.NewJSONHandler(w, opts))
}
