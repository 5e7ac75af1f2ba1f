package rest

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
)

// cloud is a job service as small as can be. It really runs its jobs.
type cloud struct {
	machine.Faults
	t    testing.TB
	dir  string
	addr string
	srv  *http.Server
	room *machine.Room

	mu      sync.Mutex
	next    int
	jobs    []*cloudJob
	files   map[string]*cloudFile
	begun   map[string]int                                            // by name
	change  func(name string, list []map[string]any) []map[string]any // name: that is searched for
	calls   atomic.Int64
	instant bool          // jobs end at once, and run nothing
	hold    chan struct{} // creates are carried out when it is closed, whoever has left by then
	held    chan struct{} // told of each that is held

	judge  func(name string) (refused string, full bool) // of jobs that come in a list
	answer func(v map[string]any) map[string]any         // to calls for many jobs
}

type cloudFile struct {
	id, name string
	data     []byte
	there    bool
}

type cloudJob struct {
	ID, Name, Flavor string
	Argv             []string
	Env              map[string]string
	Memory           int64
	Inputs, Outputs  []string
	Collect          string
	Label            string // by which tests know the jobs of arrays

	array  *machine.Place // among those of its array; nil: it has none
	dir    string
	state  string
	why    string
	place  *machine.Place
	proc   *machine.Process
	exit   *machine.Exit
	asked  bool
	ended  chan struct{}
	hidden bool
}

const cloudToken = "secret-token-of-the-test"

func newCloud(t testing.TB, slots int) *cloud {
	t.Helper()
	dir, err := os.MkdirTemp("", "cloud")
	if err != nil {
		t.Fatal(err)
	}
	c := &cloud{t: t, dir: dir, room: machine.NewRoom(slots), files: map[string]*cloudFile{}, begun: map[string]int{}}
	c.listen("127.0.0.1:0")
	t.Cleanup(func() {
		c.srv.Close()
		c.mu.Lock()
		jobs := slices.Clone(c.jobs)
		c.mu.Unlock()
		for _, j := range jobs {
			c.kill(j)
			<-j.ended
		}
		os.RemoveAll(dir)
	})
	return c
}

func (c *cloud) listen(addr string) {
	c.t.Helper()
	var l net.Listener
	var err error
	for end := time.Now().Add(30 * time.Second); ; {
		if l, err = net.Listen("tcp", addr); err == nil || time.Now().After(end) {
			break
		}
		<-time.After(10 * time.Millisecond)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.addr = l.Addr().String()
	c.srv = &http.Server{Handler: c.Wrap(http.HandlerFunc(c.serve)), ReadHeaderTimeout: time.Minute}
	go c.srv.Serve(l)
}

// restart ends the service hard and starts it again. Jobs run on.
func (c *cloud) restart() {
	c.srv.Close()
	c.listen(c.addr)
}

func (c *cloud) url() string { return "http://" + c.addr }

func answerJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func (c *cloud) serve(w http.ResponseWriter, r *http.Request) {
	c.calls.Add(1)
	if id, ok := strings.CutPrefix(r.URL.Path, "/data/"); ok {
		c.serveData(w, r, id)
		return
	}
	if r.Header.Get("Authorization") != "Bearer "+cloudToken {
		answerJSON(w, 401, map[string]any{"error": "who are you?"})
		return
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v1/"), "/")
	switch {
	case parts[0] == "flavors":
		all, _ := c.room.Use()
		answerJSON(w, 200, map[string]any{"flavors": []any{
			map[string]any{"name": "std.4", "class": "cpu.medium", "cpus": 4, "mib": 32768, "gpus": 0, "card": "", "count": all, "region": "north"},
			map[string]any{"name": "gpu.a100", "cpus": 8, "mib": 65536, "gpus": 2, "card": "NVIDIA-A100-SXM4-80GB", "count": 1, "region": "north"},
		}})
	case parts[0] == "files":
		c.serveFiles(w, r, parts)
	case parts[0] == "batch" || parts[0] == "arrays":
		c.serveMany(w, r, parts[0])
	case len(parts) == 1:
		c.serveJobs(w, r)
	default:
		c.serveJob(w, r, parts)
	}
}

func (c *cloud) serveData(w http.ResponseWriter, r *http.Request, id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.files[id]
	switch {
	case f == nil || r.Method == "GET" && !f.there:
		answerJSON(w, 404, map[string]any{"error": "no file " + id})
	case r.Method == "PUT":
		f.data, _ = io.ReadAll(r.Body)
		f.there = true
	default:
		w.Write(f.data)
	}
}

func (c *cloud) serveFiles(w http.ResponseWriter, r *http.Request, parts []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case r.Method == "POST" && len(parts) == 1:
		var q struct{ Name string }
		json.NewDecoder(r.Body).Decode(&q)
		c.next++
		f := &cloudFile{id: fmt.Sprintf("f%d", c.next), name: q.Name}
		c.files[f.id] = f
		answerJSON(w, 200, map[string]any{"id": f.id, "put": c.url() + "/data/" + f.id})
	case r.Method == "GET":
		for _, f := range c.files {
			if f.name == r.URL.Query().Get("name") && f.there {
				answerJSON(w, 200, map[string]any{"get": c.url() + "/data/" + f.id})
				return
			}
		}
		answerJSON(w, 404, map[string]any{"error": "no such file"})
	case r.Method == "DELETE":
		delete(c.files, parts[1])
		answerJSON(w, 200, map[string]any{})
	default:
		answerJSON(w, 200, map[string]any{})
	}
}

func (c *cloud) serveJobs(w http.ResponseWriter, r *http.Request) {
	if r.Method == "POST" {
		j := &cloudJob{ended: make(chan struct{}), state: "queued"}
		if err := json.NewDecoder(r.Body).Decode(j); err != nil || j.Name == "" || len(j.Argv) == 0 {
			answerJSON(w, 400, map[string]any{"error": fmt.Sprintf("a job needs name and argv: %v", err)})
			return
		}
		c.wait()
		c.mu.Lock()
		c.next++
		j.ID = fmt.Sprintf("j%06d", c.next)
		j.dir = filepath.Join(c.dir, j.ID, "work")
		c.jobs = append(c.jobs, j)
		j.place = c.room.Enter(1)
		c.mu.Unlock()
		go c.run(j)
		answerJSON(w, 201, map[string]any{"id": j.ID})
		return
	}
	c.mu.Lock()
	list := []map[string]any{}
	q := r.URL.Query()
	limit, _ := strconv.Atoi(q.Get("limit"))
	for _, j := range c.jobs {
		if !j.hidden && j.ID > q.Get("after") && (q.Get("name") == "" || j.Name == q.Get("name")) && (limit == 0 || len(list) < limit) {
			list = append(list, j.view())
		}
	}
	change := c.change
	c.mu.Unlock()
	if change != nil {
		list = append([]map[string]any{}, change(q.Get("name"), list)...)
	}
	answerJSON(w, 200, map[string]any{"jobs": list})
}

// wait keeps a create from being carried out while creates are held.
func (c *cloud) wait() {
	c.mu.Lock()
	hold, held := c.hold, c.held
	c.mu.Unlock()
	if hold != nil {
		held <- struct{}{}
		<-hold
	}
}

func (j *cloudJob) label() string { return cmp.Or(j.Label, j.Name) }

// serveMany makes the jobs of a list, each for itself, or an array, whose jobs have
// its name and their place, and of which no more run at once than its width.
func (c *cloud) serveMany(w http.ResponseWriter, r *http.Request, kind string) {
	var q struct {
		Name        string
		Size, Width int
		Jobs        []*cloudJob
	}
	err := json.NewDecoder(r.Body).Decode(&q)
	if err != nil || len(q.Jobs) == 0 || kind == "arrays" && (q.Name == "" || q.Size != len(q.Jobs) || q.Width < 1) {
		answerJSON(w, 400, map[string]any{"error": fmt.Sprintf("it makes no sense: %v", err)})
		return
	}
	c.wait()
	c.mu.Lock()
	results := []any{}
	c.next++
	id := fmt.Sprintf("j%06d", c.next)
	room := machine.NewRoom(q.Width)
	for i, j := range q.Jobs {
		if kind == "batch" {
			if c.judge != nil {
				if why, full := c.judge(j.Name); why != "" {
					results = append(results, map[string]any{"name": j.Name, "error": why, "full": full})
					continue
				}
			}
			c.next++
			j.ID, j.place = fmt.Sprintf("j%06d", c.next), c.room.Enter(1)
			results = append(results, map[string]any{"name": j.Name, "id": j.ID})
		} else {
			j.ID, j.Name, j.array = fmt.Sprintf("%s.%03d", id, i), fmt.Sprintf("%s.%d", q.Name, i), room.Enter(1)
		}
		j.ended, j.state, j.dir = make(chan struct{}), "queued", filepath.Join(c.dir, j.ID, "work")
		c.jobs = append(c.jobs, j)
		go c.run(j)
	}
	answer := c.answer
	c.mu.Unlock()
	said := map[string]any{"results": results}
	if kind == "arrays" {
		said = map[string]any{"id": id}
	}
	if answer != nil {
		said = answer(said)
	}
	answerJSON(w, 201, said)
}

// view is what is told of a job. c.mu is held.
func (j *cloudJob) view() map[string]any {
	v := map[string]any{"id": j.ID, "name": j.Name, "state": j.state}
	if j.why != "" {
		v["why"] = j.why
	}
	if j.exit != nil {
		v["code"], v["seconds"] = j.exit.Code, j.exit.Ended.Sub(j.exit.Began).Seconds()
		v["cpu"], v["memory"] = j.exit.CPU.Seconds(), j.exit.Memory
	}
	return v
}

func (c *cloud) serveJob(w http.ResponseWriter, r *http.Request, parts []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.jobs, func(j *cloudJob) bool { return j.ID == parts[1] && !j.hidden })
	if i < 0 {
		answerJSON(w, 404, map[string]any{"error": "no job " + parts[1]})
		return
	}
	j := c.jobs[i]
	word := r.Method
	if len(parts) > 2 {
		word = parts[2]
	}
	switch word {
	case "GET":
		answerJSON(w, 200, j.view())
		return
	case "DELETE":
		select {
		case <-j.ended:
			c.jobs = slices.Delete(c.jobs, i, i+1)
			os.RemoveAll(filepath.Dir(j.dir))
		default:
			answerJSON(w, 409, map[string]any{"error": "it runs"})
			return
		}
	case "logs":
		from, _ := strconv.ParseInt(r.URL.Query().Get("from"), 10, 64)
		data, _ := machine.ReadAt(filepath.Join(filepath.Dir(j.dir), parts[3]), from, 4<<20)
		w.Header().Set("Content-Type", "text/plain")
		w.Write(data)
		return
	case "stop", "kill":
		j.asked = true
		if j.state == "queued" {
			c.over(j, "killed")
		} else if j.proc != nil && word == "stop" {
			j.proc.Stop(time.Hour)
		} else if j.proc != nil {
			j.proc.Kill()
		}
	case "pause", "resume":
		if j.proc == nil || j.exit != nil {
			answerJSON(w, 409, map[string]any{"error": "it doesn't run"})
			return
		}
		j.proc.Pause(word == "pause")
		j.state = map[string]string{"pause": "paused", "resume": "running"}[word]
	}
	answerJSON(w, 200, map[string]any{})
}

// over ends a job that doesn't run. c.mu is held.
func (c *cloud) over(j *cloudJob, state string) {
	select {
	case <-j.ended:
	default:
		j.state = state
		if j.place != nil {
			j.place.Leave()
		}
		if j.array != nil {
			j.array.Leave()
		}
		close(j.ended)
	}
}

func (c *cloud) kill(j *cloudJob) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if j.proc != nil {
		j.proc.Kill()
	} else {
		c.over(j, "killed")
	}
}

func (c *cloud) run(j *cloudJob) {
	if j.array != nil {
		select {
		case <-j.array.Ready():
		case <-j.ended:
			return
		}
		c.mu.Lock()
		select {
		case <-j.ended:
			c.mu.Unlock()
			return
		default:
		}
		j.place = c.room.Enter(1)
		c.mu.Unlock()
	}
	select {
	case <-j.place.Ready():
	case <-j.ended:
		return
	}
	c.mu.Lock()
	if c.instant {
		j.exit = &machine.Exit{}
		c.begun[j.label()]++
		c.over(j, "done")
		c.mu.Unlock()
		return
	}
	proc, err := c.begin(j)
	if err != nil {
		j.why = err.Error()
		c.over(j, "broken")
	}
	c.mu.Unlock()
	if proc == nil {
		return
	}
	exit := proc.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	j.exit = &exit
	if f := c.files[j.Collect]; f != nil && len(j.Outputs) > 0 {
		f.data, f.there = collect(j.dir, j.Outputs), true
	}
	switch {
	case exit.OutOfMemory:
		c.over(j, "oom")
	case exit.Code == 0:
		c.over(j, "done")
	case j.asked:
		c.over(j, "killed")
	default:
		c.over(j, "failed")
	}
}

// begin begins to run a job. c.mu is held.
func (c *cloud) begin(j *cloudJob) (*machine.Process, error) {
	select {
	case <-j.ended:
		return nil, nil
	default:
	}
	c.begun[j.label()]++
	if err := os.MkdirAll(j.dir, 0o755); err != nil {
		return nil, err
	}
	for _, id := range j.Inputs {
		f := c.files[id]
		if f == nil || !f.there {
			return nil, errors.New("no input " + id)
		}
		if err := extract(f.data, j.dir); err != nil {
			return nil, err
		}
	}
	env := []string{"PATH=/usr/bin:/bin", "HOME=" + j.dir}
	for k, v := range j.Env {
		env = append(env, k+"="+v)
	}
	base := filepath.Dir(j.dir)
	proc, err := machine.Run(machine.Spec{
		Dir: j.dir, Env: env, Output: filepath.Join(base, "stdout"), Memory: j.Memory,
		Command: append([]string{"/bin/sh", "-c", `exec "$@" 2>"$0"`, filepath.Join(base, "stderr")}, j.Argv...),
	})
	j.proc, j.state = proc, "running"
	return proc, err
}

func extract(data []byte, dir string) error {
	in := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(name, 0o755)
		case tar.TypeSymlink:
			err = os.Symlink(h.Linkname, name)
		default:
			var all []byte
			if all, err = io.ReadAll(in); err == nil {
				err = machine.WriteFile(name, all, os.FileMode(h.Mode))
			}
		}
		if err != nil {
			return err
		}
	}
}

func collect(dir string, outputs []string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, o := range outputs {
		filepath.Walk(filepath.Join(dir, o), func(p string, info os.FileInfo, err error) error {
			if err != nil {
				return nil
			}
			link, _ := os.Readlink(p)
			h, err := tar.FileInfoHeader(info, link)
			if err != nil {
				return nil
			}
			h.Name, _ = filepath.Rel(dir, p)
			w.WriteHeader(h)
			if info.Mode().IsRegular() {
				data, _ := os.ReadFile(p)
				w.Write(data)
			}
			return nil
		})
	}
	w.Close()
	return buf.Bytes()
}
