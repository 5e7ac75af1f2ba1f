package openi

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
)

// State is a job's, as a number.
type State int

// The states.
const (
	Preparing State = 10
	Pending   State = 20
	Running   State = 30
	Stopping  State = 35
	Stopped   State = 40
	Succeeded State = 50
	Failed    State = 60
)

func (s State) over() bool { return s >= Stopped }

var namePattern = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,63}$`)

func validName(s string) bool     { return namePattern.MatchString(s) }
func contains(s, key string) bool { return strings.Contains(strings.ToLower(s), strings.ToLower(key)) }

// request is what a job is made of.
type request struct {
	Name      string `json:"name"`
	Desc      string `json:"desc"`
	ImageID   string `json:"imageId"`
	ImageURL  string `json:"imageUrl"`
	DatasetID string `json:"datasetId"`
	Pool      string `json:"resourcePool"`
	Config    []struct {
		TaskNumber     int               `json:"taskNumber"`
		ResourceSpecID string            `json:"resourceSpecId"`
		Command        string            `json:"command"`
		Envs           map[string]string `json:"envs"`
		Parameters     []struct {
			Key   string `json:"key"`
			Value string `json:"value"`
		} `json:"parameters"`
	} `json:"config"`
}

type job struct {
	id   string
	in   request
	spec Spec
	made time.Time

	mu      sync.Mutex
	state   State
	message string
	process *machine.Process
	began   time.Time
	ended   time.Time
	exit    machine.Exit
	stop    chan struct{} // closed when it is to end
	asked   bool
	deleted bool          // or to be killed: what is begun later, ends at once
	gone    chan struct{} // closed when nothing of it runs
}

func (c *Cloud) createJob(r *http.Request) (any, error) {
	var in request
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if !validName(in.Name) {
		return nil, invalid("name: 1 to 64 letters, digits, - and _, beginning with a letter")
	}
	if in.ImageID == "" && in.ImageURL == "" {
		return nil, invalid("imageId or imageUrl is required")
	}
	if in.ImageID != "" && in.ImageID != DefaultImage {
		return nil, invalid(fmt.Sprintf("imageId: there is no %q", in.ImageID))
	}
	if len(in.Config) != 1 || in.Config[0].TaskNumber != 1 {
		return nil, invalid("config: one entry with taskNumber 1; distributed jobs are not supported here")
	}
	cfg := in.Config[0]
	if strings.TrimSpace(cfg.Command) == "" {
		return nil, invalid("config[0].command is required")
	}
	at := slices.IndexFunc(c.o.Specs, func(s Spec) bool { return s.ID == cfg.ResourceSpecID })
	if at < 0 {
		return nil, invalid(fmt.Sprintf("config[0].resourceSpecId: there is no %q", cfg.ResourceSpecID))
	}
	for name := range cfg.Envs {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return nil, invalid(fmt.Sprintf("config[0].envs: %q is no name", name))
		}
	}
	j := &job{id: newID(), in: in, spec: c.o.Specs[at], made: time.Now(), state: Preparing, stop: make(chan struct{}), gone: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.datasets[in.DatasetID]; in.DatasetID != "" && !ok {
		return nil, notFound("data set " + in.DatasetID)
	}
	if c.closed || len(c.jobs) >= maxJobs {
		return nil, &failure{http.StatusForbidden, codeFull, "too many jobs: delete some"}
	}
	c.jobs[j.id] = j
	c.order = append(c.order, j)
	c.running.Add(1)
	go c.run(j)
	return map[string]any{"jobId": j.id}, nil
}

// run takes a job to its end.
func (c *Cloud) run(j *job) {
	defer c.running.Done()
	defer close(j.gone)
	cards := c.cards.Enter(j.spec.GPU)
	defer cards.Leave()
	room := c.room.Enter(j.spec.CPU)
	defer room.Leave()
	for _, place := range []*machine.Place{cards, room} {
		select {
		case <-place.Ready():
			continue
		default:
			j.set(Pending, "Insufficient resources in common-pool: the job waits for "+j.spec.Name)
		}
		select {
		case <-place.Ready():
		case <-j.stop:
			j.end(Stopped, "stopped before it ran", machine.Exit{})
			return
		}
	}
	p, err := c.begin(j)
	if err != nil {
		j.end(Failed, "the job couldn't be started: "+err.Error(), machine.Exit{Code: 1})
		return
	}
	j.mu.Lock()
	j.process = p
	if j.state != Stopping {
		j.state, j.message = Running, ""
	}
	j.began = time.Now()
	killed := j.deleted
	j.mu.Unlock()
	if killed {
		p.Kill()
	}
	select {
	case <-p.Done():
	case <-j.stop:
		p.Stop(c.o.Grace)
	}
	exit := p.Wait()
	switch {
	case exit.OutOfMemory:
		j.end(Failed, "OOMKilled: the task held more than "+gib(j.spec.Memory), exit)
	case exit.Stopped:
		j.end(Stopped, "stopped by the user", exit)
	case exit.Code != 0:
		j.end(Failed, "the task ended with code "+strconv.Itoa(exit.Code), exit)
	default:
		j.end(Succeeded, "", exit)
	}
}

// begin makes the job's folder and starts its command there. Where the real
// platform mounts /dataset and /model, the two folders are in the working folder,
// and two variables name them.
func (c *Cloud) begin(j *job) (*machine.Process, error) {
	dir, output := filepath.Join(c.o.Dir, "job", j.id), c.folder(placeOutput, j.id)
	data := filepath.Join(dir, "dataset")
	for _, d := range []string{data, output} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	if j.in.DatasetID != "" {
		if err := os.CopyFS(data, os.DirFS(c.folder(placeDataset, j.in.DatasetID))); err != nil {
			return nil, err
		}
	}
	if err := os.Symlink(output, filepath.Join(dir, "model")); err != nil {
		return nil, err
	}
	cfg := j.in.Config[0]
	command := cfg.Command
	for _, p := range cfg.Parameters {
		command += " " + quote("--"+p.Key+"="+p.Value)
	}
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "OCTOPUS_JOB_ID=" + j.id,
		"OCTOPUS_DATASET_DIR=" + data, "OCTOPUS_OUTPUT_DIR=" + output,
	}
	if j.spec.GPU > 0 {
		env = append(env, "NVIDIA_VISIBLE_DEVICES=all")
	}
	for name, value := range cfg.Envs {
		env = append(env, name+"="+value)
	}
	c.mu.Lock()
	c.starts[j.in.Name]++
	c.mu.Unlock()
	return machine.Run(machine.Spec{
		Dir: dir, Command: []string{"/bin/sh", "-c", command}, Env: env, Memory: j.spec.Memory, Output: c.logPath(j),
	})
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (c *Cloud) logPath(j *job) string { return filepath.Join(c.o.Dir, "job", j.id+".log") }

func (j *job) set(s State, message string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.state < Stopping {
		j.state, j.message = s, message
	}
}

func (j *job) end(s State, message string, e machine.Exit) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.state, j.message, j.exit, j.ended = s, message, e, time.Now()
}

// ask asks the job to end; false if it has.
func (j *job) ask() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.state.over() {
		return false
	}
	if !j.asked {
		j.asked = true
		close(j.stop)
	}
	j.state, j.message = Stopping, "the job is being stopped"
	return true
}

// kill ends the job without asking.
func (j *job) kill() {
	j.ask()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.deleted = true
	if j.process != nil {
		j.process.Kill()
	}
}

func (c *Cloud) find(id string) (*job, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if j, ok := c.jobs[id]; ok {
		return j, nil
	}
	return nil, notFound("train job " + id)
}

// view is a job as the platform tells of it. Times are seconds of the Unix clock, 0 before.
func (j *job) view() map[string]any {
	j.mu.Lock()
	defer j.mu.Unlock()
	seconds := func(t time.Time) int64 {
		if t.IsZero() {
			return 0
		}
		return t.Unix()
	}
	v := map[string]any{
		"id": j.id, "name": j.in.Name, "desc": j.in.Desc, "status": j.state, "message": j.message,
		"resourcePool": "common-pool", "resourceSpecId": j.spec.ID, "price": j.spec.Price, "datasetId": j.in.DatasetID,
		"createdAt": j.made.Unix(), "startedAt": seconds(j.began), "completedAt": seconds(j.ended),
	}
	task := map[string]any{"name": "task0", "status": j.state}
	if j.state.over() && !j.began.IsZero() {
		task["exitCode"] = j.exit.Code
		v["runMs"] = j.exit.Ended.Sub(j.exit.Began).Milliseconds()
		v["cpuMs"] = j.exit.CPU.Milliseconds()
		v["maxMemory"] = j.exit.Memory
	}
	v["tasks"] = []any{task}
	return v
}

func (c *Cloud) showJob(r *http.Request) (any, error) {
	j, err := c.find(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	return map[string]any{"trainJob": j.view()}, nil
}

// listJobs lists the newest first, filtered by a part of the name and by states.
func (c *Cloud) listJobs(r *http.Request) (any, error) {
	q := r.URL.Query()
	var states []string
	if s := q.Get("status"); s != "" {
		states = strings.Split(s, "|")
	}
	c.mu.Lock()
	all := slices.Clone(c.order)
	c.mu.Unlock()
	slices.Reverse(all)
	found := all[:0]
	for _, j := range all {
		j.mu.Lock()
		state := strconv.Itoa(int(j.state))
		j.mu.Unlock()
		if contains(j.in.Name, q.Get("searchKey")) && (states == nil || slices.Contains(states, state)) {
			found = append(found, j)
		}
	}
	part, err := page(r, found)
	list := []any{}
	for _, j := range part {
		list = append(list, j.view())
	}
	return map[string]any{"totalSize": len(found), "trainJobs": list}, err
}

func (c *Cloud) stopJob(r *http.Request) (any, error) {
	j, err := c.find(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	if !j.ask() {
		return nil, &failure{http.StatusConflict, codeState, "the job has ended"}
	}
	return map[string]any{"stoppedAt": time.Now().Unix()}, nil
}

// deleteJobs forgets jobs, and kills those that run.
func (c *Cloud) deleteJobs(r *http.Request) (any, error) {
	var in struct {
		JobIDs []string `json:"jobIds"`
	}
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if len(in.JobIDs) == 0 || len(in.JobIDs) > maxPage {
		return nil, invalid("jobIds: 1 to " + strconv.Itoa(maxPage))
	}
	for _, id := range in.JobIDs {
		j, err := c.find(id)
		if err != nil {
			return nil, err
		}
		c.forget(j)
	}
	return map[string]any{"deletedAt": time.Now().Unix()}, nil
}

func (c *Cloud) forget(j *job) {
	j.kill()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.jobs, j.id)
	c.order = slices.DeleteFunc(c.order, func(o *job) bool { return o == j })
	go func() {
		<-j.gone
		_ = os.RemoveAll(filepath.Join(c.o.Dir, "job", j.id))
		_ = os.RemoveAll(c.folder(placeOutput, j.id))
		_ = os.Remove(c.logPath(j))
	}()
}

// jobLog gives a part of the log: at most size bytes from offset, cut between characters.
func (c *Cloud) jobLog(r *http.Request) (any, error) {
	j, err := c.find(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	offset, err := number(r, "offset", 0)
	if err != nil {
		return nil, err
	}
	size, err := number(r, "size", 64<<10)
	if err != nil || size < utf8.UTFMax || size > maxLogPart {
		return nil, invalid("size: 4 to " + strconv.Itoa(maxLogPart))
	}
	j.mu.Lock()
	over := j.state.over()
	j.mu.Unlock()
	data, total := machine.ReadAt(c.logPath(j), int64(offset), size)
	for cut := 1; cut < utf8.UTFMax && len(data) == size && cut < len(data); cut++ {
		if last := data[len(data)-cut]; utf8.RuneStart(last) {
			if !utf8.FullRune(data[len(data)-cut:]) {
				data = data[:len(data)-cut]
			}
			break
		}
	}
	next := int64(offset) + int64(len(data))
	return map[string]any{"content": string(data), "offset": offset, "nextOffset": next, "totalSize": total, "complete": over && next >= total}, nil
}

// Starts tells how often jobs of this name have begun to run, forgotten ones too.
func (c *Cloud) Starts(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.starts[name]
}

// Fill takes all that there is, as soon as it is free, and keeps what is submitted
// meanwhile waiting until release is called.
func (c *Cloud) Fill() (release func()) {
	cards, _ := c.cards.Use()
	all, _ := c.room.Use()
	places := []*machine.Place{c.room.Enter(all), c.cards.Enter(cards)}
	return sync.OnceFunc(func() {
		for _, p := range places {
			p.Leave()
		}
	})
}

// Forget loses the jobs of this name: they are ended, and nobody knows of them.
func (c *Cloud) Forget(name string) {
	c.mu.Lock()
	all := slices.Clone(c.order)
	c.mu.Unlock()
	for _, j := range all {
		if j.in.Name == name {
			c.forget(j)
		}
	}
}
