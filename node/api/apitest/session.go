package apitest

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"net"
	"path"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// Session implements [api.Node]: tasks that are placed have a command "echo",
// a command "cat" that returns what it is given, and "exit N"; a file for each
// of their outputs; and a service that returns what it is sent.
func (n *Node) Session(ctx context.Context, id pcm.JobID, step, index int, conn io.ReadWriteCloser) error {
	s := api.NewSession(conn)
	defer s.Close()
	var r api.SessionRequest
	err := s.ReadRequest(&r)
	if err == nil {
		err = r.Check()
	}
	at := fmt.Sprintf("%s/%d/%d", id, step, index)
	n.Lock()
	placed := false
	for i, t := range n.tasks[id] {
		placed = placed || t.State == pcm.TaskPlaced && i == index
	}
	n.Unlock()
	if err == nil && !placed {
		err = pcm.Errorf(pcm.Conflict, "task %d/%d does not run", step, index)
	}
	if err != nil {
		s.Fail(err)
		return err
	}
	_, err = api.ServeSession(ctx, s, r, &fakeTask{n, at})
	return err
}

type fakeTask struct {
	n  *Node
	at string
}

func (f *fakeTask) note(format string, args ...any) {
	f.n.Lock()
	defer f.n.Unlock()
	f.n.Operations = append(f.n.Operations, f.at+": "+fmt.Sprintf(format, args...))
}

func (f *fakeTask) Exec(_ context.Context, x api.ExecRequest) (int, error) {
	f.note("exec %s", strings.Join(x.Command, " "))
	switch x.Command[0] {
	case "echo":
		fmt.Fprintln(x.Stdout, strings.Join(x.Command[1:], " "))
	case "cat":
		if x.Stdin != nil {
			_, err := io.Copy(x.Stdout, x.Stdin)
			return 0, err
		}
	case "exit":
		code := 0
		fmt.Sscan(x.Command[1], &code)
		fmt.Fprintln(x.Stderr, "ending")
		return code, nil
	default:
		return 0, pcm.Errorf(pcm.Refused, "no program %s in the task", x.Command[0])
	}
	return 0, nil
}

func (f *fakeTask) CopyOut(_ context.Context, name string, w io.Writer) error {
	f.note("copy out %s", name)
	f.n.Lock()
	files := map[string][]byte{}
	for k, data := range f.n.Output {
		if rest, ok := strings.CutPrefix(k, f.at+"/out/"); ok && (rest == name || name == "." || strings.HasPrefix(rest, name+"/")) {
			files[path.Join(path.Base(name), strings.TrimPrefix(strings.TrimPrefix(rest, name), "/"))] = data
		}
	}
	f.n.Unlock()
	if len(files) == 0 {
		return pcm.Errorf(pcm.NotFound, "the task has no file %s", name)
	}
	tw := tar.NewWriter(w)
	for k, data := range files {
		if err := tw.WriteHeader(&tar.Header{Name: k, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))}); err != nil {
			return err
		}
		if _, err := tw.Write(data); err != nil {
			return err
		}
	}
	return tw.Close()
}

func (f *fakeTask) CopyIn(_ context.Context, folder string, r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return pcm.Errorf(pcm.Invalid, "the archive is broken: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			f.note("copy in folder %s", path.Join(folder, h.Name))
			continue
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			return pcm.Errorf(pcm.Invalid, "the archive is broken: %w", err)
		}
		f.note("copy in %s", path.Join(folder, h.Name))
		f.n.Lock()
		f.n.Output[f.at+"/out/"+path.Join(folder, h.Name)] = data
		f.n.Unlock()
	}
}

func (f *fakeTask) Dial(_ context.Context, port int) (net.Conn, error) {
	f.note("dial %d", port)
	if port != 0 && port != 8080 {
		return nil, pcm.Errorf(pcm.Refused, "the service's port is 8080, not %d", port)
	}
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		io.Copy(far, far)
	}()
	return near, nil
}

func (f *fakeTask) Suspend(_ context.Context, suspend bool) error {
	f.note("suspend %t", suspend)
	return nil
}

func (f *fakeTask) Look(context.Context) (api.Live, error) {
	return api.Live{ID: f.at, State: "running", Since: Now}, nil
}

// Scale implements [api.Node].
func (n *Node) Scale(_ context.Context, id pcm.JobID, step string, count int) error {
	n.Lock()
	defer n.Unlock()
	i, err := n.find(id)
	if err != nil {
		return err
	}
	for k := range n.jobs[i].Services {
		v := &n.jobs[i].Services[k]
		if step != "" && v.Step != step {
			continue
		}
		if count > v.Most {
			return pcm.Errorf(pcm.Invalid, "step 0 can be scaled to 0 to %d, not to %d", v.Most, count)
		}
		v.Scale = count
		return nil
	}
	return pcm.Errorf(pcm.NotFound, "the job has no service %q", step)
}
