// Package plugintest is a whole plug-in, written with the gRPC library that its
// authors would use: it runs tasks as processes of this machine. Tests of the host
// run it, and spoil it.
package plugintest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jointcloud/pcm/adapters/plugin/plugingrpc"
	pb "github.com/jointcloud/pcm/adapters/plugin/pluginpb"
)

// Words with which the program runs itself: as the plug-in, and as the keeper of one task.
const (
	WordPlugin = "plugin"
	WordKeeper = "keeper"
)

// Server is the plug-in.
type Server struct {
	plugingrpc.UnimplementedAdapterServer
	State string // PCM_PLUGIN_STATE
	Nonce string
	Self  []string // runs this program as a keeper, with a folder after it

	mu    sync.Mutex
	greet *pb.HandshakeRequest
	own   map[string]bool // keepers that are our children, by key
}

// Open makes the plug-in of this process's environment. What it ran before goes on.
func Open() (*Server, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &Server{State: os.Getenv("PCM_PLUGIN_STATE"), Nonce: os.Getenv("PCM_PLUGIN_NONCE"), Self: []string{exe, WordKeeper}, own: map[string]bool{}}
	return s, os.MkdirAll(filepath.Join(s.State, "tasks"), 0o700)
}

// Serve serves on the socket of this process's environment until SIGTERM.
func Serve(adapter plugingrpc.AdapterServer, opts ...grpc.ServerOption) error {
	l, err := net.Listen("unix", os.Getenv("PCM_PLUGIN_SOCKET"))
	if err != nil {
		return err
	}
	g := grpc.NewServer(append(opts, grpc.WaitForHandlers(false))...)
	plugingrpc.RegisterAdapterServer(g, adapter)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() { <-ctx.Done(); g.Stop() }()
	return g.Serve(l)
}

func (s *Server) Handshake(_ context.Context, r *pb.HandshakeRequest) (*pb.HandshakeResponse, error) {
	if r.VersionMin > 1 || r.VersionMax < 1 {
		return nil, status.Errorf(codes.FailedPrecondition, "this plug-in speaks version 1, not %d to %d", r.VersionMin, r.VersionMax)
	}
	s.mu.Lock()
	s.greet = r
	s.mu.Unlock()
	return &pb.HandshakeResponse{
		Version: 1, Nonce: s.Nonce, About: "processes, for tests",
		Roles: []pb.Role{pb.Role_ROLE_SUSPEND, pb.Role_ROLE_EXEC, pb.Role_ROLE_COPY, pb.Role_ROLE_DIAL, pb.Role_ROLE_RANK},
	}, nil
}

// Greeting is the last handshake.
func (s *Server) Greeting() *pb.HandshakeRequest { s.mu.Lock(); defer s.mu.Unlock(); return s.greet }

func (s *Server) Pools(context.Context, *pb.PoolsRequest) (*pb.PoolsResponse, error) {
	return &pb.PoolsResponse{Pools: []*pb.Pool{{
		Id: "local", Capacity: &pb.Resources{CpuMilli: int64(runtime.NumCPU()) * 1000, MemoryBytes: 8 << 30}, Slots: 64,
		Labels: map[string]string{"os": runtime.GOOS, "arch": runtime.GOARCH}, Features: []pb.Feature{pb.Feature_FEATURE_COMMAND, pb.Feature_FEATURE_NETWORK},
	}}}, nil
}

func (s *Server) folder(key string) string { return filepath.Join(s.State, "tasks", key) }

// find is the folder of an attempt that is known.
func (s *Server) find(key string) (string, error) {
	dir := s.folder(key)
	if key == "" || strings.ContainsAny(key, "/\\") {
		return "", status.Errorf(codes.InvalidArgument, "%q is not a key", key)
	}
	if _, err := os.Stat(filepath.Join(dir, "task.json")); err != nil {
		return "", status.Errorf(codes.NotFound, "no attempt %s here", key)
	}
	return dir, nil
}

func (s *Server) Start(_ context.Context, r *pb.StartRequest) (*pb.StartResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir := s.folder(r.Key)
	if _, err := s.find(r.Key); err != nil {
		if len(r.Command) == 0 {
			return nil, status.Errorf(codes.FailedPrecondition, "only commands run here")
		}
		data, err := json.Marshal(r)
		if err == nil {
			err = os.MkdirAll(dir, 0o700)
		}
		if err == nil {
			if err = lay(r.Inputs, r.Work); err != nil {
				os.RemoveAll(dir)
				return nil, status.Errorf(codes.FailedPrecondition, "an input can't be laid out: %v", err)
			}
			err = writeFile(filepath.Join(dir, "task.json"), data)
		}
		if err != nil {
			return nil, status.Errorf(codes.Unavailable, "%v", err)
		}
	} else if s.keeperOf(dir) != 0 || exists(filepath.Join(dir, "end.json")) {
		return &pb.StartResponse{}, nil
	}
	if exists(filepath.Join(dir, "begun")) { // its keeper was lost: never twice
		return &pb.StartResponse{}, nil
	}
	cmd := exec.Command(s.Self[0], append(slices.Clone(s.Self[1:]), dir)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it outlives us
	if err := cmd.Start(); err != nil {
		return nil, status.Errorf(codes.Unavailable, "%v", err)
	}
	if err := writeFile(filepath.Join(dir, "keeper"), []byte(fmt.Sprint(cmd.Process.Pid, " ", birth(cmd.Process.Pid)))); err != nil {
		cmd.Process.Kill()
		return nil, status.Errorf(codes.Unavailable, "%v", err)
	}
	go cmd.Wait()
	return &pb.StartResponse{NativeId: fmt.Sprint(cmd.Process.Pid)}, nil
}

// keeperOf is the living keeper of a task; 0 if there is none.
func (s *Server) keeperOf(dir string) int {
	data, err := os.ReadFile(filepath.Join(dir, "keeper"))
	var pid int
	var born string
	if err != nil {
		return 0
	}
	if fmt.Sscan(string(data), &pid, &born); pid > 1 && born != "" && birth(pid) == born {
		return pid
	}
	return 0
}

// view is what is known of an attempt now.
func (s *Server) view(key string) *pb.Status {
	dir := s.folder(key)
	var task pb.StartRequest
	if data, err := os.ReadFile(filepath.Join(dir, "task.json")); err != nil || json.Unmarshal(data, &task) != nil {
		return nil
	}
	st := &pb.Status{Key: key, Fence: task.Fence, State: pb.State_STATE_PENDING, Native: "waits"}
	s.mu.Lock() // while Start has a keeper begin, its file isn't there yet
	alive, begun := s.keeperOf(dir) != 0, exists(filepath.Join(dir, "begun"))
	s.mu.Unlock()
	var e ended
	data, err := os.ReadFile(filepath.Join(dir, "end.json"))
	// Sizes are read after the end: what comes before it is all there is.
	out, errs := size(filepath.Join(dir, "stdout")), size(filepath.Join(dir, "stderr"))
	st.StdoutBytes, st.StderrBytes = &out, &errs
	switch {
	case err == nil && json.Unmarshal(data, &e) == nil:
		st.State, st.Native, st.Outcome, st.ExitCode, st.Reason = pb.State_STATE_ENDED, "done", e.Outcome, e.Code, e.Reason
		st.StartedMs, st.EndedMs, st.CpuMs, st.MemoryBytes = e.Started, e.Ended, e.CPU, e.Memory
	case !alive && begun:
		st.State, st.Native, st.Outcome, st.ExitCode, st.Reason = pb.State_STATE_ENDED, "lost", pb.Outcome_OUTCOME_SITE, 137, "the keeper of its process was lost"
	case exists(filepath.Join(dir, "suspended")):
		st.State, st.Native = pb.State_STATE_SUSPENDED, "stopped"
	case exists(filepath.Join(dir, "pid")):
		st.State, st.Native = pb.State_STATE_RUNNING, "runs"
	}
	return st
}

func (s *Server) keys() []string {
	entries, err := os.ReadDir(filepath.Join(s.State, "tasks"))
	if err != nil {
		return nil
	}
	var keys []string
	for _, e := range entries {
		if exists(filepath.Join(s.State, "tasks", e.Name(), "task.json")) {
			keys = append(keys, e.Name())
		}
	}
	return keys
}

func (s *Server) Watch(r *pb.WatchRequest, out plugingrpc.Adapter_WatchServer) error {
	last := map[string]string{}
	first, spoke := true, time.Now()
	for {
		var msg pb.WatchResponse
		now := s.keys()
		for _, key := range now {
			if st := s.view(key); st != nil && last[key] != st.String() {
				last[key] = st.String()
				if msg.Statuses = append(msg.Statuses, st); len(msg.Statuses) == 1000 {
					if err := out.Send(&msg); err != nil {
						return err
					}
					msg.Statuses = nil
				}
			}
		}
		msg.SnapshotComplete, first = first, false
		if msg.SnapshotComplete || len(msg.Statuses) > 0 || time.Since(spoke) > time.Duration(r.HeartbeatMs)*time.Millisecond/2 {
			if err := out.Send(&msg); err != nil {
				return err
			}
			spoke = time.Now()
		}
		select {
		case <-time.After(30 * time.Millisecond):
		case <-out.Context().Done():
			return nil
		}
	}
}

func (s *Server) List(_ context.Context, r *pb.ListRequest) (*pb.ListResponse, error) {
	var res pb.ListResponse
	for _, key := range s.keys() {
		if key <= r.After {
			continue
		}
		if len(res.Statuses) == 1000 {
			res.More = true
			break
		}
		if st := s.view(key); st != nil {
			res.Statuses = append(res.Statuses, st)
		}
	}
	return &res, nil
}

func (s *Server) Logs(_ context.Context, r *pb.LogsRequest) (*pb.LogsResponse, error) {
	dir, err := s.find(r.Key)
	if err != nil {
		return nil, err
	}
	st := s.view(r.Key)
	var res pb.LogsResponse
	if res.Stdout, err = part(filepath.Join(dir, "stdout"), r.StdoutOffset, r.MaxBytes); err == nil {
		res.Stderr, err = part(filepath.Join(dir, "stderr"), r.StderrOffset, r.MaxBytes)
	}
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "%v", err)
	}
	res.Eof = st != nil && st.State == pb.State_STATE_ENDED &&
		r.StdoutOffset+int64(len(res.Stdout)) >= *st.StdoutBytes && r.StderrOffset+int64(len(res.Stderr)) >= *st.StderrBytes
	return &res, nil
}

// part reads from a file that may not be there yet.
func part(name string, offset int64, most uint32) ([]byte, error) {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf := make([]byte, min(most, 1<<20))
	n, _ := f.ReadAt(buf, offset)
	return buf[:n], nil
}

func (s *Server) Outputs(_ context.Context, r *pb.OutputsRequest) (*pb.OutputsResponse, error) {
	_, err := s.find(r.Key) // tasks work where their outputs are wanted
	return &pb.OutputsResponse{}, err
}

func (s *Server) Stop(_ context.Context, r *pb.StopRequest) (*pb.StopResponse, error) {
	dir, err := s.find(r.Key)
	if err != nil {
		return &pb.StopResponse{}, nil
	}
	word, sig := "term", syscall.SIGTERM
	if r.Force {
		word, sig = "kill", syscall.SIGKILL
	}
	if err := writeFile(filepath.Join(dir, word), nil); err != nil {
		return nil, status.Errorf(codes.Unavailable, "%v", err)
	}
	if pid := s.pid(dir); pid > 0 {
		syscall.Kill(-pid, sig)
		syscall.Kill(-pid, syscall.SIGCONT)
	}
	return &pb.StopResponse{}, nil
}

// pid is the leader of a running task's process group; 0 if it doesn't run.
func (s *Server) pid(dir string) int {
	data, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil || exists(filepath.Join(dir, "end.json")) || s.keeperOf(dir) == 0 {
		return 0
	}
	var pid int
	fmt.Sscan(string(data), &pid)
	return pid
}

func (s *Server) Remove(_ context.Context, r *pb.RemoveRequest) (*pb.RemoveResponse, error) {
	dir, err := s.find(r.Key)
	if err != nil {
		return &pb.RemoveResponse{}, nil
	}
	if st := s.view(r.Key); st != nil && st.State != pb.State_STATE_ENDED {
		return nil, status.Errorf(codes.Aborted, "attempt %s has not ended", r.Key)
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, status.Errorf(codes.Unavailable, "%v", err)
	}
	return &pb.RemoveResponse{}, nil
}

func (s *Server) Rank(_ context.Context, r *pb.RankRequest) (*pb.RankResponse, error) {
	var res pb.RankResponse
	for _, c := range r.Candidates {
		res.Scores = append(res.Scores, &pb.Score{Id: c.Id, Score: float64(c.Room), Reason: fmt.Sprintf("room for %d", c.Room)})
	}
	return &res, nil
}

func exists(name string) bool { _, err := os.Lstat(name); return err == nil }

func size(name string) int64 {
	if info, err := os.Stat(name); err == nil {
		return info.Size()
	}
	return 0
}

// writeFile writes a file whose readers see all of it or nothing.
func writeFile(name string, data []byte) error {
	tmp := name + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

// birth names a process together with its number; "" when it is gone.
func birth(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	i := strings.LastIndexByte(string(data), ')')
	if err != nil || i < 0 {
		return ""
	}
	fields := strings.Fields(string(data[i+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}
