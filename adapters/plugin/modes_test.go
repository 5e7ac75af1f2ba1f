package plugin

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jointcloud/pcm/adapters/plugin/plugingrpc"
	pb "github.com/jointcloud/pcm/adapters/plugin/pluginpb"
	"github.com/jointcloud/pcm/adapters/plugin/plugintest"
)

// testTimes are short, but for those that no test waits for.
func testTimes(mode string) Times {
	t := Times{Heartbeat: 500 * time.Millisecond, Back: 2 * time.Second, Orphan: time.Second}
	switch mode {
	case "deaf":
		t.Kill = time.Second
	case "mute":
		t.Hang = 3 * time.Second
	case "lazy":
		t.Listen = time.Second
	case "chatty":
		t.Listen = 5 * time.Minute
	}
	return t
}

// servePlugin is the plug-in, in one of its modes.
func servePlugin(mode string) error {
	s, err := plugintest.Open()
	if err != nil {
		return err
	}
	if mode == "lazy" { // never listens
		select {}
	}
	if mode == "chatty" { // talks before it listens, and never does
		for range 4 << 10 {
			fmt.Fprintln(os.Stderr, strings.Repeat("x", 1023))
		}
		select {}
	}
	if mode == "doomed" {
		return fmt.Errorf("the queue manager is not installed")
	}
	b := &bad{Server: s, mode: mode}
	return plugintest.Serve(b, grpc.MaxSendMsgSize(64<<20), grpc.ChainUnaryInterceptor(b.unary))
}

// bad is a plug-in that fails, hangs, floods or lies in one way.
type bad struct {
	*plugintest.Server
	mode string
}

// unary spoils calls by their name: "crash:Start" crashes in every second Start, "hang:Pools" hangs in Pools.
func (b *bad) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	how, method, _ := strings.Cut(b.mode, ":")
	if method == "" || !strings.HasSuffix(info.FullMethod, "/"+method) {
		return handler(ctx, req)
	}
	switch how {
	case "crash": // after the work, before the answer; the second time it goes well
		res, err := handler(ctx, req)
		if once(filepath.Join(b.State, "crashed")) {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return res, err
	case "hang":
		if once(filepath.Join(b.State, "hung")) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
	case "hangs":
		<-ctx.Done()
		return nil, ctx.Err()
	case "fail":
		return nil, status.Error(codes.Unknown, "\x1b[2Jsegmentation fault\nopen-sesame")
	}
	return handler(ctx, req)
}

func once(name string) bool {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		f.Close()
	}
	return err == nil
}

func (b *bad) Handshake(ctx context.Context, r *pb.HandshakeRequest) (*pb.HandshakeResponse, error) {
	switch b.mode {
	case "old":
		return nil, status.Errorf(codes.FailedPrecondition, "this plug-in speaks version 0 of the contract, the peer %d to %d", r.VersionMin, r.VersionMax)
	case "new":
		return &pb.HandshakeResponse{Version: 7, Nonce: b.Nonce}, nil
	case "impostor":
		return &pb.HandshakeResponse{Version: 1, Nonce: "guessed"}, nil
	case "gossip":
		return nil, status.Errorf(codes.InvalidArgument, "can't log in with %s", r.Secrets["token"])
	case "early":
		res, err := b.Server.Handshake(ctx, r)
		if res != nil {
			res.LogsEveryMs = 100
		}
		return res, err
	case "greeting": // shows what it was given
		if r.Secrets["token"] != testSecret || r.SettingsJson != `{"answer": 42}` || r.Instance != "test" || r.Name != "proc" {
			return nil, status.Errorf(codes.InvalidArgument, "it was given %v %q", r.Secrets, r.SettingsJson)
		}
		for _, kv := range os.Environ() {
			if name, _, _ := strings.Cut(kv, "="); name != "PATH" && name != "HOME" && name != "LANG" && !strings.HasPrefix(name, "PCM_PLUGIN_") {
				return nil, status.Errorf(codes.InvalidArgument, "its environment has %s", kv)
			}
		}
		if wd, err := os.Getwd(); err != nil || wd != b.State {
			return nil, status.Errorf(codes.InvalidArgument, "it is in %s", wd)
		}
	}
	return b.Server.Handshake(ctx, r)
}

func (b *bad) Pools(ctx context.Context, r *pb.PoolsRequest) (*pb.PoolsResponse, error) {
	good, err := b.Server.Pools(ctx, r)
	if err != nil {
		return nil, err
	}
	var pools []*pb.Pool
	add := func(id string, change func(*pb.Pool)) {
		p := &pb.Pool{Id: id, Capacity: &pb.Resources{CpuMilli: 1000, MemoryBytes: 1 << 30}, Slots: 1}
		change(p)
		pools = append(pools, p)
	}
	switch b.mode {
	case "liar":
		add("negative", func(p *pb.Pool) { p.Capacity.CpuMilli = -1 })
		add("absurd", func(p *pb.Pool) { p.Capacity.MemoryBytes = 1 << 62 })
		add("crowded", func(p *pb.Pool) { p.Slots = 1 << 31 })
		add("none", func(p *pb.Pool) { p.Slots = 0 })
		add("../up", func(*pb.Pool) {})
		add("local", func(*pb.Pool) {}) // twice
		add("labelled", func(p *pb.Pool) { p.Labels = map[string]string{"Bad Key": "\x1b[2J"} })
		add("timeless", func(p *pb.Pool) { p.MaxTimeMs = -5 })
		add("boxed", func(p *pb.Pool) { p.Sandbox = strings.Repeat("x", 1000) })
		add("shrunk", func(p *pb.Pool) { p.Largest = &pb.Resources{MemoryBytes: -1} })
		add("swollen", func(p *pb.Pool) { p.Largest = &pb.Resources{CpuMilli: 1 << 62} })
	case "sizes":
		add("cells", func(p *pb.Pool) {
			p.Slots, p.Largest, p.NoFiles = 4, &pb.Resources{CpuMilli: 250, MemoryBytes: 256 << 20}, true
		})
		add("whole", func(p *pb.Pool) { p.Largest = p.Capacity })
		add("unsaid", func(p *pb.Pool) { p.Largest = &pb.Resources{} })
		add("boast", func(p *pb.Pool) { p.Largest = &pb.Resources{CpuMilli: 64000} })
	case "many":
		for i := range 1000 {
			add(fmt.Sprint("p", i), func(*pb.Pool) {})
		}
	case "huge":
		add(strings.Repeat("x", 8<<20), func(*pb.Pool) {})
	}
	return &pb.PoolsResponse{Pools: append(good.Pools, pools...)}, nil
}

func (b *bad) Watch(r *pb.WatchRequest, out plugingrpc.Adapter_WatchServer) error {
	switch b.mode {
	case "mute": // neither statuses nor heartbeats
		<-out.Context().Done()
		return nil
	case "flood":
		go func() {
			for out.Context().Err() == nil {
				var msg pb.WatchResponse
				for i := range 1000 {
					msg.Statuses = append(msg.Statuses, &pb.Status{Key: fmt.Sprint("junk", i), Reason: strings.Repeat("x", 1000)})
				}
				if out.Send(&msg) != nil {
					return
				}
			}
		}()
		<-out.Context().Done()
		return nil
	case "babble": // good statuses, and others in between
		return b.Server.Watch(r, &babbler{Adapter_WatchServer: out})
	case "relapse":
		return b.Server.Watch(r, &relapser{out})
	case "early": // tells that an attempt runs when it has ended
		return b.Server.Watch(r, &changer{out, func(st *pb.Status) {
			if st.State != pb.State_STATE_ENDED {
				st.State, st.StdoutBytes, st.StderrBytes = pb.State_STATE_PENDING, nil, nil
			}
		}})
	case "endless":
		return b.Server.Watch(r, &changer{out, func(st *pb.Status) { st.StdoutBytes, st.StderrBytes = nil, nil }})
	}
	return b.Server.Watch(r, out)
}

// changer changes what is told.
type changer struct {
	plugingrpc.Adapter_WatchServer
	change func(*pb.Status)
}

func (c *changer) Send(m *pb.WatchResponse) error {
	for _, st := range m.Statuses {
		c.change(st)
	}
	return c.Adapter_WatchServer.Send(m)
}

// babbler tells of attempts of others, with every message.
type babbler struct{ plugingrpc.Adapter_WatchServer }

func (b *babbler) Send(m *pb.WatchResponse) error {
	foreign := &pb.Status{Key: "trd-aaaaaaaaaaaaaaaa.0.1", State: pb.State_STATE_ENDED, Fence: 1}
	all := []*pb.Status{foreign, {Key: "../../etc", State: pb.State_STATE_ENDED}, {Key: ""}, {}}
	for _, st := range m.Statuses {
		all = append(all,
			&pb.Status{Key: st.Key, Fence: st.Fence + 1, State: pb.State_STATE_ENDED, ExitCode: 7}, // another trade's
			&pb.Status{Key: st.Key + "0", Fence: st.Fence, State: pb.State_STATE_ENDED, ExitCode: 8})
	}
	return b.Adapter_WatchServer.Send(&pb.WatchResponse{Statuses: append(all, m.Statuses...), SnapshotComplete: m.SnapshotComplete})
}

// relapser tells of the end with a strange code, then takes it back.
type relapser struct{ plugingrpc.Adapter_WatchServer }

func (r *relapser) Send(m *pb.WatchResponse) error {
	for _, st := range m.Statuses {
		if st.State == pb.State_STATE_ENDED {
			st.ExitCode, st.Outcome, st.Native, st.CpuMs, st.MemoryBytes = 100_000, pb.Outcome_OUTCOME_OK, strings.Repeat("\x1b[31m", 100), -5, 1<<62
			back := &pb.Status{Key: st.Key, Fence: st.Fence, State: pb.State_STATE_RUNNING, Native: "undead"}
			m.Statuses = append(m.Statuses, back)
		}
	}
	return r.Adapter_WatchServer.Send(m)
}

func (b *bad) Stop(ctx context.Context, r *pb.StopRequest) (*pb.StopResponse, error) {
	if b.mode == "deaf" && !exists(filepath.Join(b.State, "hears")) {
		return &pb.StopResponse{}, nil // and does nothing
	}
	return b.Server.Stop(ctx, r)
}

func exists(name string) bool { _, err := os.Lstat(name); return err == nil }

func (b *bad) Logs(ctx context.Context, r *pb.LogsRequest) (*pb.LogsResponse, error) {
	switch b.mode {
	case "endless": // always more of the same, whatever the offset
		return &pb.LogsResponse{Stdout: []byte(strings.Repeat("more\n", 10_000))}, nil
	case "early": // what was asked before the end was told leaves a trace
		if res, err := b.List(ctx, &pb.ListRequest{}); err == nil && res.Statuses[0].State != pb.State_STATE_ENDED {
			once(filepath.Join(b.State, "asked"))
		}
	case "overfull":
		return &pb.LogsResponse{Stdout: make([]byte, 3<<20), Eof: true}, nil
	}
	return b.Server.Logs(ctx, r)
}

func (b *bad) Outputs(ctx context.Context, r *pb.OutputsRequest) (*pb.OutputsResponse, error) {
	if b.mode == "forget" {
		return nil, status.Error(codes.NotFound, "no outputs here")
	}
	return b.Server.Outputs(ctx, r)
}

func (b *bad) Rank(ctx context.Context, r *pb.RankRequest) (*pb.RankResponse, error) {
	if b.mode == "oracle" {
		return &pb.RankResponse{Scores: []*pb.Score{{Id: "0", Score: math.NaN()}, {Id: "77", Score: 1}}}, nil
	}
	return b.Server.Rank(ctx, r)
}
