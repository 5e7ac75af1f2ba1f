package slurm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/jointcloud/pcm"
)

// rest reaches the controller through slurmrestd, whose answers changed their
// shape with its versions: each field is read in all of them.
type rest struct {
	cfg    Config
	base   string
	client *http.Client

	mu      sync.Mutex
	dialect int // 38 is v0.0.38; 0: not known yet
	token   string
}

// The versions of the API that are spoken, the newest that a server has.
const (
	oldestDialect = 36
	newestDialect = 45
)

func newREST(cfg Config) (*rest, error) {
	if cfg.User == "" {
		if u, err := user.Current(); err == nil {
			cfg.User = u.Username
		} else {
			return nil, pcm.Errorf(pcm.Invalid, "slurm: name the user for slurmrestd: this process's own is not known by name")
		}
	}
	r := &rest{cfg: cfg, base: strings.TrimRight(cfg.URL, "/")}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = nil // the token is for the site's own server
	t.MaxConnsPerHost = maxCommands
	if socket, ok := strings.CutPrefix(cfg.URL, "unix://"); ok {
		r.base = "http://slurmrestd"
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}
	}
	r.client = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return r, nil
}

// credential gives the token, read anew if the last one was refused.
func (r *rest) credential(again bool) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.token != "" && !again {
		return r.token, nil
	}
	text := os.Getenv(r.cfg.TokenEnv)
	if r.cfg.TokenFile != "" {
		f, err := os.Open(r.cfg.TokenFile)
		if err != nil {
			return "", pcm.Errorf(pcm.Unavailable, "can't read the token for slurmrestd: %w", err)
		}
		defer f.Close()
		data, err := io.ReadAll(io.LimitReader(f, 64<<10))
		if err != nil {
			return "", pcm.Errorf(pcm.Unavailable, "can't read the token for slurmrestd: %w", err)
		}
		text = string(data)
	}
	// As 'scontrol token' prints it, too.
	text = strings.TrimPrefix(strings.TrimSpace(text), "SLURM_JWT=")
	if text == "" && !strings.HasPrefix(r.cfg.URL, "unix://") {
		return "", pcm.Errorf(pcm.Unavailable, "there is no token for slurmrestd in %s", firstOf(r.cfg.TokenFile, "$"+r.cfg.TokenEnv))
	}
	r.token = text
	return text, nil
}

func firstOf(words ...string) string {
	for _, w := range words {
		if w != "" {
			return w
		}
	}
	return ""
}

// version of the API that both sides speak.
func (r *rest) negotiate(ctx context.Context) (int, error) {
	r.mu.Lock()
	d := r.dialect
	r.mu.Unlock()
	if d != 0 {
		return d, nil
	}
	for d = newestDialect; d >= oldestDialect; d-- {
		resp, err := r.send(ctx, http.MethodGet, fmt.Sprintf("/slurm/v0.0.%d/ping", d), nil)
		if err != nil {
			return 0, err
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound {
			continue
		}
		if resp.StatusCode == http.StatusOK {
			r.mu.Lock()
			r.dialect = d
			r.mu.Unlock()
		}
		return d, nil // what is wrong shows with the request itself
	}
	return 0, pcm.Errorf(pcm.Unavailable, "slurmrestd at %s speaks no version of its API from v0.0.%d to v0.0.%d", r.cfg.URL, oldestDialect, newestDialect)
}

func (r *rest) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	for again := false; ; again = true {
		token, err := r.credential(again)
		if err != nil {
			return nil, err
		}
		req, err := http.NewRequestWithContext(ctx, method, r.base+path, bytes.NewReader(body))
		if err != nil {
			return nil, pcm.Errorf(pcm.Internal, "request to slurmrestd: %w", err)
		}
		req.Header.Set("X-SLURM-USER-NAME", r.cfg.User)
		if token != "" {
			req.Header.Set("X-SLURM-USER-TOKEN", token)
		}
		if len(body) > 0 {
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := r.client.Do(req)
		if err != nil {
			return nil, pcm.Errorf(pcm.Unavailable, "slurmrestd does not answer: %w", err)
		}
		// A refused token is 401 by the standard, 500 by 22.05, 511 by 24.11.
		switch resp.StatusCode {
		case http.StatusUnauthorized, http.StatusInternalServerError, http.StatusNetworkAuthenticationRequired:
			if fresh, err := r.peek(); !again && err == nil && fresh != token {
				resp.Body.Close()
				continue
			}
		}
		return resp, nil
	}
}

// peek tells whether there is another token by now.
func (r *rest) peek() (string, error) {
	fresh := &rest{cfg: r.cfg}
	return fresh.credential(true)
}

// restErrors is what every answer may hold.
type restErrors struct {
	Errors []struct {
		Error       string  `json:"error"`
		Description string  `json:"description"`
		Number      flexInt `json:"error_number"`
		Errno       flexInt `json:"errno"`
	} `json:"errors"`
}

func (e restErrors) text() string {
	var all []string
	for _, one := range e.Errors {
		t := firstOf(one.Error, one.Description)
		if one.Error != "" && one.Description != "" && one.Description != one.Error {
			t = one.Error + ": " + one.Description
		}
		all = append(all, t)
	}
	return oneLine(strings.Join(all, "; "))
}

// call sends a request and reads its answer into out. path is that behind the version.
func (r *rest) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	d, err := r.negotiate(ctx)
	if err != nil {
		return err
	}
	var body []byte
	if in != nil {
		if body, err = json.Marshal(in); err != nil {
			return pcm.Errorf(pcm.Internal, "request to slurmrestd: %w", err)
		}
	}
	resp, err := r.send(ctx, method, fmt.Sprintf("/slurm/v0.0.%d%s", d, path), body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return pcm.Errorf(pcm.Unavailable, "slurmrestd's answer was cut short: %w", err)
	}
	var errs restErrors
	bad := json.Unmarshal(data, &errs)
	said := errs.text()
	switch {
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusNetworkAuthenticationRequired:
		return pcm.Errorf(pcm.Unavailable, "slurmrestd does not accept the token for user %s (HTTP %d %s): make a new one with 'scontrol token'", r.cfg.User, resp.StatusCode, said)
	case strings.Contains(strings.ToLower(said), "invalid job id"):
		return pcm.Errorf(pcm.NotFound, "Slurm: %s", said)
	case said != "" && !transient(said) && resp.StatusCode < 500 || said != "" && !transient(said) && method == http.MethodPost:
		return pcm.Errorf(pcm.Refused, "%s", said)
	case said != "" || resp.StatusCode != http.StatusOK:
		return pcm.Errorf(pcm.Unavailable, "slurmrestd: HTTP %d: %s", resp.StatusCode, firstOf(said, oneLine(string(data[:min(len(data), 200)]))))
	case bad != nil:
		return pcm.Errorf(pcm.Unavailable, "slurmrestd's answer is no JSON: %w", bad)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return pcm.Errorf(pcm.Unavailable, "slurmrestd's answer to %s has a form that is not known here: %w", path, err)
	}
	return nil
}

// number in the form of this dialect.
func number(d int, n int64) any {
	if d < 40 {
		return n
	}
	return map[string]any{"set": true, "infinite": false, "number": n}
}

func (r *rest) submit(ctx context.Context, b batch) (int64, error) {
	neg, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	d, err := r.negotiate(neg)
	cancel()
	if err != nil {
		return 0, err
	}
	env := []string{"PATH=" + taskPath}
	j := map[string]any{
		"name": b.Name, "comment": b.Comment, "current_working_directory": b.Dir, "requeue": false,
		"standard_output": "/dev/null", "standard_error": "/dev/null", "standard_input": "/dev/null",
		"tasks": 1, "cpus_per_task": b.cpus(), "environment": env,
	}
	if d < 39 {
		j["environment"] = map[string]string{"PATH": taskPath}
		j["nodes"] = 1
	} else {
		j["minimum_nodes"], j["maximum_nodes"] = 1, 1
	}
	for k, v := range map[string]string{
		"partition": b.Partition, "account": r.cfg.Account, "qos": r.cfg.QOS, "constraints": r.cfg.Constraint,
		"reservation": r.cfg.Reservation, "array": b.array(),
	} {
		if v != "" {
			j[k] = v
		}
	}
	if g := b.gres(); g != "" {
		if d < 39 {
			j["gres"] = g
		} else {
			j["tres_per_node"] = "gres/" + g
		}
	}
	if mb := b.megabytes(); mb > 0 {
		j["memory_per_node"] = number(d, mb)
	}
	if b.Minutes > 0 {
		j["time_limit"] = number(d, b.Minutes)
	}
	in := map[string]any{"job": j, "script": b.Script}
	if d >= 40 { // where the script moved to; the outer one is deprecated
		j["script"] = b.Script
		delete(in, "script")
	}
	var out struct {
		JobID flexInt `json:"job_id"`
	}
	if err := r.call(ctx, http.MethodPost, "/job/submit", in, &out); err != nil {
		return 0, err
	}
	if out.JobID.N <= 0 {
		return 0, pcm.Errorf(pcm.Unavailable, "slurmrestd took the job, but gave no number for it")
	}
	return out.JobID.N, nil
}

func (r *rest) jobs(ctx context.Context) ([]job, error) {
	var out struct {
		Jobs []restJob `json:"jobs"`
	}
	if err := r.call(ctx, http.MethodGet, "/jobs", nil, &out); err != nil {
		return nil, err
	}
	var all []job
	for _, j := range out.Jobs {
		if j.UserName == "" || j.UserName == r.cfg.User {
			all = append(all, j.open())
		}
	}
	return all, nil
}

func (r *rest) end(ctx context.Context, ref jobRef) (job, error) {
	var out struct {
		Jobs []restJob `json:"jobs"`
	}
	if err := r.call(ctx, http.MethodGet, "/job/"+strconv.FormatInt(ref.ID, 10), nil, &out); err != nil {
		return job{}, err
	}
	for _, j := range out.Jobs {
		if o := j.open(); o.Name == ref.Name && o.ID == ref.ID && o.Index == ref.Index {
			return o, nil
		}
	}
	return job{}, pcm.Errorf(pcm.NotFound, "Slurm knows no job %s called %s any more", ref, ref.Name)
}

func (r *rest) signal(ctx context.Context, ref jobRef, sig string) error {
	// Number and name can't be checked in one request.
	var out struct {
		Jobs []restJob `json:"jobs"`
	}
	if err := r.call(ctx, http.MethodGet, "/job/"+strconv.FormatInt(ref.ID, 10), nil, &out); err != nil {
		return err
	}
	if !slices.ContainsFunc(out.Jobs, func(j restJob) bool { return j.Name == ref.Name }) {
		return pcm.Errorf(pcm.NotFound, "job %s is not %s any more: Slurm gave its number to another", ref, ref.Name)
	}
	path := "/job/" + ref.String()
	if sig != "" {
		path += "?signal=" + url.QueryEscape("SIG"+sig)
	}
	return r.call(ctx, http.MethodDelete, path, nil, nil)
}

func (r *rest) suspend(context.Context, jobRef, bool) error {
	return pcm.Errorf(pcm.Refused, "slurmrestd can't suspend jobs: its API has no such request; reach Slurm by its commands")
}

func (r *rest) partitions(ctx context.Context) ([]partition, error) {
	var out struct {
		Partitions []restPartition `json:"partitions"`
	}
	if err := r.call(ctx, http.MethodGet, "/partitions", nil, &out); err != nil {
		return nil, err
	}
	var all []partition
	for _, p := range out.Partitions {
		all = append(all, p.open())
	}
	return all, nil
}

func (r *rest) nodes(ctx context.Context) ([]node, error) {
	var out struct {
		Nodes []restNode `json:"nodes"`
	}
	if err := r.call(ctx, http.MethodGet, "/nodes", nil, &out); err != nil {
		return nil, err
	}
	var all []node
	for _, n := range out.Nodes {
		all = append(all, n.open())
	}
	return all, nil
}

func (r *rest) version(ctx context.Context) (string, error) {
	var out struct {
		Meta struct {
			Old struct {
				Release string `json:"release"`
			} `json:"Slurm"`
		} `json:"meta"`
	}
	// Field names are matched without their case: "slurm" of newer ones, too.
	err := r.call(ctx, http.MethodGet, "/ping", nil, &out)
	return out.Meta.Old.Release, err
}
