package plugintest

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/creack/pty"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jointcloud/pcm/adapters/plugin/plugingrpc"
	pb "github.com/jointcloud/pcm/adapters/plugin/pluginpb"
)

// running is a task that runs: its folder, its process group and what it is.
func (s *Server) running(key string) (dir string, pid int, task *pb.StartRequest, err error) {
	if dir, err = s.find(key); err != nil {
		return
	}
	if pid = s.pid(dir); pid == 0 {
		return dir, 0, nil, status.Errorf(codes.Aborted, "attempt %s does not run", key)
	}
	task = new(pb.StartRequest)
	data, err := os.ReadFile(filepath.Join(dir, "task.json"))
	if err == nil {
		err = json.Unmarshal(data, task)
	}
	return
}

func (s *Server) Suspend(_ context.Context, r *pb.SuspendRequest) (*pb.SuspendResponse, error) {
	dir, pid, _, err := s.running(r.Key)
	if err != nil {
		return nil, err
	}
	syscall.Kill(-pid, syscall.SIGSTOP)
	return &pb.SuspendResponse{}, writeFile(filepath.Join(dir, "suspended"), nil)
}

func (s *Server) Resume(_ context.Context, r *pb.ResumeRequest) (*pb.ResumeResponse, error) {
	dir, pid, _, err := s.running(r.Key)
	if err != nil {
		return nil, err
	}
	os.Remove(filepath.Join(dir, "suspended"))
	syscall.Kill(-pid, syscall.SIGCONT)
	return &pb.ResumeResponse{}, nil
}

func (s *Server) Exec(x plugingrpc.Adapter_ExecServer) error {
	first, err := x.Recv()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil || len(start.Command) == 0 {
		return status.Errorf(codes.InvalidArgument, "the first request names no command")
	}
	_, _, task, err := s.running(start.Key)
	if err != nil {
		return err
	}
	program, err := find(start.Command[0], task.Work)
	if err != nil {
		return status.Errorf(codes.NotFound, "program %q not found", start.Command[0])
	}
	cmd := &exec.Cmd{Path: program, Args: start.Command, Dir: task.Work, Env: environment(task)}
	var sending sync.Mutex
	send := func(m *pb.ExecResponse) error {
		sending.Lock()
		defer sending.Unlock()
		return x.Send(m)
	}
	stdout := sender(func(p []byte) error {
		return send(&pb.ExecResponse{Message: &pb.ExecResponse_Stdout{Stdout: p}})
	})
	stderr := sender(func(p []byte) error {
		return send(&pb.ExecResponse{Message: &pb.ExecResponse_Stderr{Stderr: p}})
	})
	var stdin io.WriteCloser
	var terminal *os.File
	var drained sync.WaitGroup
	if start.Tty {
		terminal, err = pty.StartWithSize(cmd, &pty.Winsize{Rows: uint16(start.GetSize().GetRows()), Cols: uint16(start.GetSize().GetColumns())})
		if err != nil {
			return status.Errorf(codes.Unavailable, "%v", err)
		}
		defer terminal.Close()
		stdin = terminal
		drained.Go(func() { io.Copy(stdout, terminal) })
	} else {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Stdout, cmd.Stderr = stdout, stderr
		if stdin, err = cmd.StdinPipe(); err == nil {
			err = cmd.Start()
		}
		if err != nil {
			return status.Errorf(codes.Unavailable, "%v", err)
		}
		if !start.Stdin {
			stdin.Close()
		}
	}
	pid := cmd.Process.Pid
	go func() {
		<-x.Context().Done() // the call's end is the command's
		syscall.Kill(-pid, syscall.SIGKILL)
	}()
	go func() {
		for {
			m, err := x.Recv()
			if err != nil {
				if !start.Tty {
					stdin.Close()
				}
				return
			}
			switch m := m.Message.(type) {
			case *pb.ExecRequest_Stdin:
				stdin.Write(m.Stdin)
			case *pb.ExecRequest_Resize:
				if terminal != nil {
					pty.Setsize(terminal, &pty.Winsize{Rows: uint16(m.Resize.Rows), Cols: uint16(m.Resize.Columns)})
				}
			}
		}
	}()
	cmd.Wait()
	drained.Wait()
	ws, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	code := int32(ws.ExitStatus())
	if ws.Signaled() {
		code = 128 + int32(ws.Signal())
	}
	return send(&pb.ExecResponse{Message: &pb.ExecResponse_ExitCode{ExitCode: code}})
}

// sender is a writer of messages.
type sender func([]byte) error

func (s sender) Write(p []byte) (int, error) {
	for i := 0; i < len(p); i += 32 << 10 {
		if err := s(append([]byte(nil), p[i:min(len(p), i+32<<10)]...)); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

func (s *Server) CopyOut(r *pb.CopyOutRequest, out plugingrpc.Adapter_CopyOutServer) error {
	_, _, task, err := s.running(r.Key)
	if err != nil {
		return err
	}
	name := path.Clean(r.Path)
	if !filepath.IsLocal(name) {
		return status.Errorf(codes.InvalidArgument, "path %q leads out of the working folder", r.Path)
	}
	root, err := os.OpenRoot(task.Work)
	if err != nil {
		return status.Errorf(codes.Unavailable, "%v", err)
	}
	defer root.Close()
	if _, err := root.Stat(name); err != nil {
		return status.Errorf(codes.NotFound, "there is no %s", r.Path)
	}
	w := tar.NewWriter(sender(func(p []byte) error { return out.Send(&pb.CopyOutResponse{Data: p}) }))
	err = fs.WalkDir(root.FS(), name, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := root.Stat(p)
		if err != nil || !info.Mode().IsRegular() && !info.IsDir() || d.Type() == fs.ModeSymlink && info.IsDir() {
			return nil // links that lead out, devices, links to folders
		}
		h, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		h.Name = path.Join(path.Base(name), strings.TrimPrefix(strings.TrimPrefix(p, name), "/"))
		if err := w.WriteHeader(h); err != nil || info.IsDir() {
			return err
		}
		f, err := root.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.CopyN(w, f, h.Size)
		return err
	})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return status.Errorf(codes.Unavailable, "%v", err)
	}
	return nil
}

func (s *Server) CopyIn(in plugingrpc.Adapter_CopyInServer) error {
	first, err := in.Recv()
	if err != nil {
		return err
	}
	_, _, task, err := s.running(first.Key)
	if err != nil {
		return err
	}
	folder := path.Clean(first.Folder)
	if !filepath.IsLocal(folder) {
		return status.Errorf(codes.InvalidArgument, "folder %q leads out of the working folder", first.Folder)
	}
	root, err := os.OpenRoot(task.Work)
	if err != nil {
		return status.Errorf(codes.Unavailable, "%v", err)
	}
	defer root.Close()
	if err := root.MkdirAll(folder, 0o700); err != nil {
		return status.Errorf(codes.FailedPrecondition, "folder %q: %v", first.Folder, err)
	}
	data := first.Data
	r := tar.NewReader(receiver(func(p []byte) (int, error) {
		for len(data) == 0 {
			m, err := in.Recv()
			if err != nil {
				return 0, err
			}
			data = m.Data
		}
		n := copy(p, data)
		data = data[n:]
		return n, nil
	}))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return in.SendAndClose(&pb.CopyInResponse{})
		}
		if err == nil && !filepath.IsLocal(h.Name) {
			err = fmt.Errorf("entry %q leads out", h.Name)
		}
		if err == nil {
			err = unpack(root, path.Join(folder, h.Name), h, r)
		}
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "%v", err)
		}
	}
}

func unpack(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o700)
	case tar.TypeReg:
		if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
			return err
		}
		f, err := root.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, fs.FileMode(h.Mode).Perm()|0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Close())
	}
	return fmt.Errorf("%s is neither file nor folder", name)
}

type receiver func([]byte) (int, error)

func (r receiver) Read(p []byte) (int, error) { return r(p) }

func (s *Server) Dial(x plugingrpc.Adapter_DialServer) error {
	first, err := x.Recv()
	if err != nil {
		return err
	}
	if _, _, _, err := s.running(first.Key); err != nil {
		return err
	}
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(first.Port))))
	if err != nil {
		return status.Errorf(codes.Unavailable, "%v", err)
	}
	defer c.Close()
	if err := x.Send(&pb.DialResponse{}); err != nil {
		return err
	}
	go func() {
		for {
			m, err := x.Recv()
			if err == nil {
				_, err = c.Write(m.Data)
			}
			if err != nil {
				c.(*net.TCPConn).CloseWrite()
				return
			}
		}
	}()
	go func() { <-x.Context().Done(); c.Close() }()
	io.Copy(sender(func(p []byte) error { return x.Send(&pb.DialResponse{Data: p}) }), c)
	return nil
}
