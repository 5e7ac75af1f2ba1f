package main

// The contract's server: see adapter.proto.

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"openi/plugingrpc"
	"openi/pluginpb"
)

const contractVersion = 1

// keys are those of attempts: names of their folders, too.
var keys = regexp.MustCompile(`^[a-z0-9-][a-z0-9.-]{0,95}$`)

// server answers the host.
type server struct {
	plugingrpc.UnimplementedAdapterServer
	backend Backend
	about   string
	state   string
	every   time.Duration

	mu       sync.Mutex
	attempts *attempts
}

// serve runs the plug-in until it is told to end.
func serve(b Backend, about string, every time.Duration) error {
	socket, state := os.Getenv("PCM_PLUGIN_SOCKET"), os.Getenv("PCM_PLUGIN_STATE")
	if socket == "" || state == "" {
		return fmt.Errorf("PCM_PLUGIN_SOCKET or PCM_PLUGIN_STATE is not set: PCM starts this program, as adapters.plugins of its configuration says")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(4<<20), grpc.MaxSendMsgSize(4<<20))
	plugingrpc.RegisterAdapterServer(g, &server{backend: b, about: about, state: state, every: every})
	go func() {
		<-ctx.Done()
		g.Stop()
	}()
	return g.Serve(l)
}

func (s *server) Handshake(ctx context.Context, r *pluginpb.HandshakeRequest) (*pluginpb.HandshakeResponse, error) {
	if r.VersionMin > contractVersion || r.VersionMax < contractVersion {
		return nil, status.Errorf(codes.FailedPrecondition, "this plug-in speaks version %d of the contract, the host %d to %d", contractVersion, r.VersionMin, r.VersionMax)
	}
	settings := map[string]any{}
	if r.SettingsJson != "" {
		if err := json.Unmarshal([]byte(r.SettingsJson), &settings); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "the settings are no JSON object: %v", err)
		}
	}
	texts := map[string]string{}
	for k, v := range settings {
		texts[k] = asText(plain(v))
	}
	if err := s.backend.Configure(ctx, Config{r.Name, r.Instance, texts, r.Secrets}); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.attempts == nil {
		a, err := newAttempts(filepath.Join(s.state, "attempts"), s.backend, s.every)
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		s.attempts = a
		go a.run(context.Background())
	}
	roles := []pluginpb.Role{}
	if x, ok := s.backend.(Suspender); ok && suspends(x) {
		roles = append(roles, pluginpb.Role_ROLE_SUSPEND)
	}
	return &pluginpb.HandshakeResponse{Version: contractVersion, Nonce: os.Getenv("PCM_PLUGIN_NONCE"), About: s.about, Roles: roles, LogsEveryMs: 500}, nil
}

func suspends(x Suspender) bool {
	d, ok := x.(interface{ suspends() bool })
	return !ok || d.suspends()
}

func (s *server) all() (*attempts, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.attempts == nil {
		return nil, status.Error(codes.FailedPrecondition, "the first call is Handshake")
	}
	return s.attempts, nil
}

// of finds an attempt; without an error it may be nil: it isn't known.
func (s *server) of(key string) (*Attempt, error) {
	all, err := s.all()
	if err != nil {
		return nil, err
	}
	return all.get(key), nil
}

func (s *server) Pools(ctx context.Context, _ *pluginpb.PoolsRequest) (*pluginpb.PoolsResponse, error) {
	all, err := s.all()
	if err != nil {
		return nil, err
	}
	pools, err := s.backend.Pools(ctx, all.ours())
	if err != nil {
		return nil, err
	}
	return &pluginpb.PoolsResponse{Pools: pools[:min(len(pools), 64)]}, nil
}

func (s *server) Start(ctx context.Context, r *pluginpb.StartRequest) (*pluginpb.StartResponse, error) {
	all, err := s.all()
	if err != nil {
		return nil, err
	}
	if !keys.MatchString(r.Key) {
		return nil, status.Errorf(codes.InvalidArgument, "%q is no key of an attempt", r.Key)
	}
	if len(r.Command) == 0 && r.Image == "" {
		return nil, status.Error(codes.InvalidArgument, "there is nothing to run")
	}
	a, err := all.start(ctx, r)
	if err != nil {
		return nil, err
	}
	return &pluginpb.StartResponse{NativeId: cut(a.ID, 64)}, nil
}

func (s *server) Watch(r *pluginpb.WatchRequest, out grpc.ServerStreamingServer[pluginpb.WatchResponse]) error {
	all, err := s.all()
	if err != nil {
		return err
	}
	beat := time.NewTicker(max(time.Duration(r.HeartbeatMs)*time.Millisecond, 100*time.Millisecond))
	defer beat.Stop()
	told, first := 0, true
	for {
		all.mu.Lock()
		changed := all.changed
		var news []*pluginpb.Status
		for key, n := range all.serial {
			if n > told {
				news = append(news, proto.Clone(all.byKey[key].state).(*pluginpb.Status))
			}
		}
		told = all.count
		all.mu.Unlock()
		for len(news) > 0 {
			n := min(len(news), 1000)
			if err := out.Send(&pluginpb.WatchResponse{Statuses: news[:n]}); err != nil {
				return err
			}
			news = news[n:]
		}
		if first {
			first = false
			if err := out.Send(&pluginpb.WatchResponse{SnapshotComplete: true}); err != nil {
				return err
			}
		}
		select {
		case <-out.Context().Done():
			return out.Context().Err()
		case <-changed:
			if err := sleep(out.Context(), 50*time.Millisecond); err != nil {
				return err
			}
		case <-beat.C:
			if err := out.Send(&pluginpb.WatchResponse{}); err != nil {
				return err
			}
		}
	}
}

func (s *server) List(_ context.Context, r *pluginpb.ListRequest) (*pluginpb.ListResponse, error) {
	all, err := s.all()
	if err != nil {
		return nil, err
	}
	resp := &pluginpb.ListResponse{}
	for _, a := range all.list() {
		if a.Request.Key <= r.After {
			continue
		}
		if len(resp.Statuses) == 1000 {
			resp.More = true
			break
		}
		all.mu.Lock()
		resp.Statuses = append(resp.Statuses, proto.Clone(a.state).(*pluginpb.Status))
		all.mu.Unlock()
	}
	return resp, nil
}

func (s *server) Logs(_ context.Context, r *pluginpb.LogsRequest) (*pluginpb.LogsResponse, error) {
	a, err := s.of(r.Key)
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, status.Error(codes.NotFound, "there is no such attempt")
	}
	ended := a.ended()
	most := int64(min(max(r.MaxBytes, 1), 1<<20))
	read := func(stream string, from int64) ([]byte, bool, error) {
		f, err := os.Open(filepath.Join(a.folder(), stream))
		if os.IsNotExist(err) {
			return nil, true, nil
		} else if err != nil {
			return nil, false, status.Error(codes.Internal, err.Error())
		}
		defer f.Close()
		data, err := io.ReadAll(io.NewSectionReader(f, from, most))
		return data, int64(len(data)) < most, err
	}
	out, end1, err := read("stdout", r.StdoutOffset)
	if err != nil {
		return nil, err
	}
	errs, end2, err := read("stderr", r.StderrOffset)
	if err != nil {
		return nil, err
	}
	return &pluginpb.LogsResponse{Stdout: out, Stderr: errs, Eof: ended && end1 && end2}, nil
}

func (s *server) Outputs(ctx context.Context, r *pluginpb.OutputsRequest) (*pluginpb.OutputsResponse, error) {
	a, err := s.of(r.Key)
	if err != nil || a == nil {
		return nil, unknown(err)
	}
	a.turn.Lock()
	defer a.turn.Unlock()
	return &pluginpb.OutputsResponse{}, s.backend.Outputs(ctx, a)
}

func unknown(err error) error {
	if err != nil {
		return err
	}
	return status.Error(codes.NotFound, "there is no such attempt")
}

func (s *server) Stop(ctx context.Context, r *pluginpb.StopRequest) (*pluginpb.StopResponse, error) {
	a, err := s.of(r.Key)
	if err != nil || a == nil || a.ended() {
		return &pluginpb.StopResponse{}, err
	}
	a.turn.Lock()
	defer a.turn.Unlock()
	a.asked = true
	if err := a.Save(); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if !a.known {
		return nil, status.Error(codes.Unavailable, "it is not known yet whether the back end has it")
	}
	err = s.backend.Stop(ctx, a, r.Force)
	if isAbsent(err) {
		err = nil
	}
	if err != nil {
		slog.Warn("can't stop an attempt", "attempt", r.Key, "err", err)
	}
	return &pluginpb.StopResponse{}, err
}

func (s *server) Remove(ctx context.Context, r *pluginpb.RemoveRequest) (*pluginpb.RemoveResponse, error) {
	a, err := s.of(r.Key)
	if err != nil || a == nil {
		return &pluginpb.RemoveResponse{}, err
	}
	if !a.ended() {
		return nil, status.Error(codes.Aborted, "it has not ended")
	}
	a.turn.Lock()
	defer a.turn.Unlock()
	if err := s.backend.Remove(ctx, a); err != nil && !isAbsent(err) {
		return nil, err
	}
	a.all.forget(a)
	return &pluginpb.RemoveResponse{}, nil
}

func (s *server) Suspend(ctx context.Context, r *pluginpb.SuspendRequest) (*pluginpb.SuspendResponse, error) {
	return &pluginpb.SuspendResponse{}, s.halt(r.Key, func(x Suspender, a *Attempt) error { return x.Suspend(ctx, a) })
}

func (s *server) Resume(ctx context.Context, r *pluginpb.ResumeRequest) (*pluginpb.ResumeResponse, error) {
	return &pluginpb.ResumeResponse{}, s.halt(r.Key, func(x Suspender, a *Attempt) error { return x.Resume(ctx, a) })
}

func (s *server) halt(key string, do func(Suspender, *Attempt) error) error {
	x, ok := s.backend.(Suspender)
	if !ok {
		return status.Error(codes.Unimplemented, "this back end can't suspend")
	}
	a, err := s.of(key)
	if err != nil || a == nil {
		return unknown(err)
	}
	if !a.runs() {
		return status.Error(codes.Aborted, "it doesn't run")
	}
	a.turn.Lock()
	defer a.turn.Unlock()
	return do(x, a)
}
