package generate

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// jobServer is the service of testdata/openapi/jobs.yaml: it runs jobs as processes.
type jobServer struct {
	t     *testing.T
	dir   string
	slots int

	mu      sync.Mutex
	jobs    map[string]*serverJob // by ID
	files   int
	running int
	queue   []*serverJob
}

type serverJob struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	State    string `json:"state"`
	ExitCode *int   `json:"exit_code"`

	spec struct {
		Name, Size, Files string
		Command           []string
		Environment       map[string]string
	}
	dir string
	pid int
}

func newJobServer(t *testing.T, slots int) *jobServer {
	s := &jobServer{t: t, dir: t.TempDir(), slots: slots, jobs: map[string]*serverJob{}}
	t.Cleanup(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, j := range s.jobs {
			j.signal(syscall.SIGKILL)
		}
	})
	return s
}

func (j *serverJob) signal(sig syscall.Signal) {
	if j.pid != 0 && j.ExitCode == nil {
		syscall.Kill(-j.pid, sig)
	}
}

// ServeHTTP answers strictly: what the document doesn't allow is refused.
func (s *jobServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Header.Get("Authorization") != "Bearer correct horse" {
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	var j *serverJob
	if len(parts) > 1 && parts[0] == "jobs" {
		if j = s.jobs[parts[1]]; j == nil {
			http.NotFound(w, r)
			return
		}
		parts[1] = "{id}"
	}
	switch r.Method + " /" + strings.Join(parts, "/") {
	case "GET /sizes":
		s.say(w, 200, map[string]any{"sizes": []any{map[string]any{"name": "small", "cpu_milli": 64000, "memory_bytes": 64 << 30, "slots": s.slots}}})
	case "POST /files":
		s.files++
		id := "f" + strconv.Itoa(s.files)
		data, err := io.ReadAll(r.Body)
		if err == nil {
			err = os.WriteFile(filepath.Join(s.dir, id), data, 0o600)
		}
		if err != nil || r.Header.Get("Content-Type") != "application/x-tar" || r.ContentLength != int64(len(data)) {
			http.Error(w, "no archive", http.StatusBadRequest)
			return
		}
		s.say(w, 201, map[string]any{"id": id})
	case "GET /jobs":
		found := []*serverJob{}
		for _, name := range r.URL.Query()["name"] {
			for _, j := range s.jobs {
				if j.Name == name {
					found = append(found, j)
				}
			}
		}
		s.say(w, 200, map[string]any{"jobs": found})
	case "POST /jobs":
		s.make(w, r)
	case "GET /jobs/{id}":
		s.say(w, 200, j)
	case "DELETE /jobs/{id}":
		j.signal(syscall.SIGKILL)
		delete(s.jobs, j.ID)
		w.WriteHeader(http.StatusNoContent)
	case "POST /jobs/{id}/signal":
		var body struct{ Signal string }
		sig := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}
		if json.NewDecoder(r.Body).Decode(&body) != nil || sig[body.Signal] == 0 {
			http.Error(w, "no such signal", http.StatusBadRequest)
			return
		}
		if j.State == "QUEUED" {
			code := 143
			j.State, j.ExitCode = "FAILED", &code
		}
		j.signal(sig[body.Signal])
		w.WriteHeader(http.StatusAccepted)
	case "GET /jobs/{id}/output/stdout", "GET /jobs/{id}/output/stderr":
		from, err := strconv.ParseInt(r.URL.Query().Get("from"), 10, 64)
		f, e := os.Open(filepath.Join(j.dir, parts[3]))
		if err != nil || e != nil {
			return // there is none yet
		}
		defer f.Close()
		io.Copy(w, io.NewSectionReader(f, from, 1<<20))
	case "GET /jobs/{id}/files":
		s.outputs(w, r, j)
	default:
		http.Error(w, "no such call", http.StatusMethodNotAllowed)
	}
}

func (s *jobServer) say(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func (s *jobServer) make(w http.ResponseWriter, r *http.Request) {
	j := &serverJob{State: "QUEUED"}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&j.spec); err != nil || j.spec.Size != "small" || len(j.spec.Command) == 0 || j.spec.Name == "" {
		http.Error(w, fmt.Sprintf("that is no job: %+v, %v", j.spec, err), http.StatusBadRequest)
		return
	}
	for _, other := range s.jobs {
		if other.Name == j.spec.Name {
			http.Error(w, "there is one of that name", http.StatusConflict)
			return
		}
	}
	s.files++
	j.Name, j.ID = j.spec.Name, "j?"+strconv.Itoa(s.files) // which has to be escaped in a path
	j.dir = filepath.Join(s.dir, "job"+strconv.Itoa(s.files))
	s.jobs[j.ID] = j
	s.queue = append(s.queue, j)
	s.next()
	s.say(w, 201, j)
}

// next begins what there is room for.
func (s *jobServer) next() {
	for s.running < s.slots && len(s.queue) > 0 {
		j := s.queue[0]
		s.queue = s.queue[1:]
		if j.ExitCode != nil || s.jobs[j.ID] == nil {
			continue
		}
		if cmd, err := s.begin(j); err != nil {
			code := 255
			j.State, j.ExitCode = "FAILED", &code
		} else {
			s.running++
			j.State, j.pid = "RUNNING", cmd.Process.Pid
			go s.wait(j, cmd)
		}
	}
}

func (s *jobServer) begin(j *serverJob) (*exec.Cmd, error) {
	work := filepath.Join(j.dir, "work")
	if err := os.MkdirAll(work, 0o700); err != nil {
		return nil, err
	}
	if j.spec.Files != "" {
		if out, err := exec.Command("tar", "-xf", filepath.Join(s.dir, filepath.Base(j.spec.Files)), "-C", work).CombinedOutput(); err != nil {
			s.t.Logf("%v: %s", err, out)
			return nil, err
		}
	}
	args := []string{"-i", "HOME=" + work, "PATH=/usr/local/bin:/usr/bin:/bin"}
	for k, v := range j.spec.Environment {
		args = append(args, k+"="+v)
	}
	cmd := exec.Command("env", append(args, j.spec.Command...)...)
	cmd.Dir = work
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdout, err := os.Create(filepath.Join(j.dir, "stdout"))
	if err != nil {
		return nil, err
	}
	defer stdout.Close()
	stderr, err := os.Create(filepath.Join(j.dir, "stderr"))
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	return cmd, cmd.Start()
}

func (s *jobServer) wait(j *serverJob, cmd *exec.Cmd) {
	cmd.Wait()
	syscall.Kill(-j.pid, syscall.SIGKILL) // what it left behind
	s.mu.Lock()
	defer s.mu.Unlock()
	code := cmd.ProcessState.ExitCode()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		code = 128 + int(status.Signal())
	}
	j.ExitCode, j.State = &code, "FAILED"
	if code == 0 {
		j.State = "SUCCEEDED"
	}
	s.running--
	s.next()
}

// outputs packs what is there of the paths; nothing is taken from elsewhere by way of links.
func (s *jobServer) outputs(w http.ResponseWriter, r *http.Request, j *serverJob) {
	work, err := filepath.EvalSymlinks(filepath.Join(j.dir, "work"))
	most, e := strconv.ParseInt(r.URL.Query().Get("most"), 10, 64)
	if err != nil || e != nil {
		http.Error(w, "it never ran", http.StatusBadRequest)
		return
	}
	args := []string{"-cf", "-", "-C", work, "--"}
	none := len(args)
	for _, path := range r.URL.Query()["path"] {
		up, err := filepath.EvalSymlinks(filepath.Join(work, filepath.Dir(path)))
		if _, e := os.Lstat(filepath.Join(work, path)); err != nil || e != nil || up != work && !strings.HasPrefix(up, work+"/") {
			continue
		}
		args = append(args, "./"+path)
	}
	if len(args) == none {
		return
	}
	out, err := exec.Command("tar", args...).Output()
	if err != nil {
		s.t.Logf("tar: %v", err)
	}
	w.Write(out[:min(int64(len(out)), most)])
}
