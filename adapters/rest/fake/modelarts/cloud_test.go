package modelarts

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
	"github.com/jointcloud/pcm/adapters/rest/fake/objects"
)

// site is a fake with its object store, both served.
type site struct {
	t     *testing.T
	cloud *Cloud
	store *objects.Store
	url   string
}

func newSite(t *testing.T, o Options) *site {
	t.Helper()
	store, err := objects.Open(objects.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	data := httptest.NewServer(store)
	t.Cleanup(data.Close)
	o.Dir, o.Store, o.StoreURL = t.TempDir(), store, data.URL
	if o.Grace == 0 {
		o.Grace = time.Minute
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(c)
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		c.Close()
	})
	if err := store.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	return &site{t, c, store, srv.URL}
}

// request makes a signed one.
func (s *site) request(method, path string, body any) *http.Request {
	s.t.Helper()
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			s.t.Fatal(err)
		}
	}
	r, err := http.NewRequest(method, s.url+"/v2/"+s.cloud.Project()+path, bytes.NewReader(data))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("X-Sdk-Date", time.Now().UTC().Format(timestamp))
	signed := []string{"host", "x-sdk-date"}
	access, _ := s.cloud.Keys()
	r.Header.Set("Authorization", fmt.Sprintf("%s Access=%s, SignedHeaders=%s, Signature=%s", algorithm, access, strings.Join(signed, ";"), s.cloud.sign(r, signed, hexSum(data))))
	return r
}

func (s *site) send(r *http.Request) (int, map[string]any) {
	s.t.Helper()
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	var v any
	if len(data) > 0 {
		if err := json.Unmarshal(data, &v); err != nil {
			s.t.Fatalf("%s: %v", data, err)
		}
	}
	m, _ := v.(map[string]any)
	return resp.StatusCode, m
}

func (s *site) call(method, path string, body any) (int, map[string]any) {
	s.t.Helper()
	return s.send(s.request(method, path, body))
}

// get is a value by its path, "status.phase".
func get(v any, path string) any {
	for name := range strings.SplitSeq(path, ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[name]
		case []any:
			if len(x) == 0 {
				return nil
			}
			v = x[0].(map[string]any)[name]
		default:
			return nil
		}
	}
	return v
}

type object = map[string]any

// plain is a job that runs a command, changed.
func plain(command string, change func(algorithm object)) object {
	a := object{"engine": object{"image_url": "org/image:1"}, "command": command}
	if change != nil {
		change(a)
	}
	return object{
		"kind": "job", "metadata": object{"name": "job_1"}, "algorithm": a,
		"spec": object{"resource": object{"flavor_id": "modelarts.vm.cpu.2u", "node_count": 1}},
	}
}

// create makes a job and returns its path.
func (s *site) create(spec object) string {
	s.t.Helper()
	code, v := s.call("POST", "/training-jobs", spec)
	if code != 201 || get(v, "status.phase") != "Creating" {
		s.t.Fatalf("create: %d %v", code, v)
	}
	return "/training-jobs/" + get(v, "metadata.id").(string)
}

// until waits for a phase.
func (s *site) until(job, phase string) map[string]any {
	s.t.Helper()
	for end := time.Now().Add(time.Minute); ; <-time.After(10 * time.Millisecond) {
		code, v := s.call("GET", job, nil)
		switch got := get(v, "status.phase"); {
		case code == 200 && got == phase:
			return v
		case code != 200 || time.Now().After(end):
			s.t.Fatalf("no phase %s: %d %v", phase, code, v)
		}
	}
}

func (s *site) log(job string) string {
	s.t.Helper()
	code, v := s.call("GET", job+"/tasks/worker-0/logs/preview", nil)
	if code != 200 {
		s.t.Fatalf("log: %d %v", code, v)
	}
	return v["content"].(string)
}

func (s *site) object(key string) string {
	s.t.Helper()
	r, _, err := s.store.Get("bucket", key)
	if err != nil {
		s.t.Fatalf("%s: %v", key, err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(data)
}

func TestJob(t *testing.T) {
	s := newSite(t, Options{})
	for key, text := range map[string]string{"in/a": "A", "in/sub/b": "B"} {
		if err := s.store.Put("bucket", key, strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	spec := plain(`cat "$data/a" "$MA_MOUNT_PATH/inputs/data_0/sub/b"; echo " $GREETING"; echo oops >&2; mkdir -p "$result/x"; echo made > "$result/x/y"; exit 3`, func(a object) {
		a["inputs"] = []any{object{"name": "data", "access_method": "env", "remote": object{"obs": object{"obs_url": "/bucket/in/"}}}}
		a["outputs"] = []any{object{"name": "result", "access_method": "env", "local_dir": "/home/ma-user/out", "remote": object{"obs": object{"obs_url": "obs://bucket/out/"}}}}
		a["environments"] = object{"GREETING": "hello"}
	})
	spec["spec"].(object)["log_export_path"] = object{"obs_url": "/bucket/log/"}
	job := s.create(spec)
	v := s.until(job, "Failed")
	if get(v, "status.task_statuses.exit_code") != 3.0 || get(v, "spec.resource.flavor_detail.flavor_info.cpu.core_num") != 2.0 {
		t.Errorf("the job: %v", v)
	}
	if got := s.log(job); got != "AB hello\noops\n" {
		t.Errorf("log: %q", got)
	}
	if got := s.object("out/x/y"); got != "made\n" {
		t.Errorf("output: %q", got)
	}
	id := get(v, "metadata.id").(string)
	if got := s.object("log/modelarts-job-" + id + "-worker-0.log"); got != "AB hello\noops\n" {
		t.Errorf("exported log: %q", got)
	}
	_, v = s.call("GET", job+"/tasks/worker-0/logs/url", nil)
	resp, err := http.Get(v["obs_url"].(string))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if data, err := io.ReadAll(resp.Body); err != nil || string(data) != "AB hello\noops\n" {
		t.Errorf("the log by its link: %d %q %v", resp.StatusCode, data, err)
	}
	_, v = s.call("GET", job+"/events?limit=100", nil)
	if text := fmt.Sprint(v); !strings.Contains(text, "[worker-0] Training finished. Exit code 3.") {
		t.Errorf("events: %s", text)
	}
	if code, _ := s.call("DELETE", job, nil); code != 202 {
		t.Errorf("delete: %d", code)
	}
	if code, v := s.call("GET", job, nil); code != 404 || v["error_code"] != "ModelArts.0102" {
		t.Errorf("a deleted job: %d %v", code, v)
	}
	if n := s.cloud.Starts("job_1"); n != 1 {
		t.Errorf("%d starts", n)
	}
}

func TestEnds(t *testing.T) {
	s := newSite(t, Options{Flavors: append(Flavors(), Flavor{ID: "small", Cores: 1, MemoryMB: 64})})
	t.Run("completed", func(t *testing.T) {
		s.until(s.create(plain("true", nil)), "Completed")
	})
	t.Run("terminated", func(t *testing.T) {
		job := s.create(plain(`trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.05; done`, nil))
		for end := time.Now().Add(time.Minute); s.log(job) == ""; <-time.After(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the job prints nothing")
			}
		}
		code, v := s.call("POST", job+"/actions", object{"action_type": "terminate"})
		if code != 202 || get(v, "status.phase") != "Terminating" {
			t.Fatalf("terminate: %d %v", code, v)
		}
		s.until(job, "Terminated")
		if got := s.log(job); !strings.HasPrefix(got, "ready\n") || !strings.HasSuffix(got, "asked\n") {
			t.Errorf("log: %q", got)
		}
		if code, v := s.call("POST", job+"/actions", object{"action_type": "terminate"}); code != 400 || v["error_code"] != "ModelArts.0105" {
			t.Errorf("terminating again: %d %v", code, v)
		}
	})
	t.Run("out of memory", func(t *testing.T) {
		spec := plain(`head -c 400000000 /dev/zero | tail -c 300000000 | sleep 300`, nil)
		spec["spec"].(object)["resource"].(object)["flavor_id"] = "small"
		v := s.until(s.create(spec), "Failed")
		if get(v, "status.task_statuses.exit_code") != 137.0 || get(v, "status.task_statuses.message") != "OOMKilled" {
			t.Errorf("status: %v", v["status"])
		}
	})
	t.Run("input missing", func(t *testing.T) {
		v := s.until(s.create(plain("true", func(a object) {
			a["inputs"] = []any{object{"name": "data", "remote": object{"obs": object{"obs_url": "/bucket/none/"}}}}
		})), "Failed")
		if text := fmt.Sprint(get(v, "status.task_statuses.message")); !strings.Contains(text, "NoSuchKey") {
			t.Errorf("message: %s", text)
		}
	})
	t.Run("boot file", func(t *testing.T) {
		bin := t.TempDir() // not every machine has a python3
		if err := os.WriteFile(filepath.Join(bin, "python3"), []byte("#!/bin/sh\ncat \"$1\"; shift; echo \"$@\"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
		if err := s.store.Put("bucket", "code/main.py", strings.NewReader("the code\n")); err != nil {
			t.Fatal(err)
		}
		engine := Engines()[0].ID
		job := s.create(plain("", func(a object) {
			a["engine"] = object{"engine_id": engine}
			a["code_dir"], a["boot_file"] = "/bucket/code/", "/bucket/code/main.py"
			a["parameters"] = []any{object{"name": "rate", "value": "0.1"}}
		}))
		s.until(job, "Completed")
		if got := s.log(job); got != "the code\n--rate=0.1\n" {
			t.Errorf("log: %q", got)
		}
	})
	for when, command := range map[string]string{"Running": "sleep 300", "Completed": "true"} {
		t.Run("deleted when "+when, func(t *testing.T) {
			job := s.create(plain(command, nil))
			s.until(job, when)
			dir := filepath.Join(s.cloud.o.Dir, "jobs", strings.TrimPrefix(job, "/training-jobs/"))
			there := func(want bool) {
				t.Helper()
				for end := time.Now().Add(time.Minute); ; <-time.After(10 * time.Millisecond) {
					if _, err := os.Stat(dir); os.IsNotExist(err) != want {
						return
					}
					if time.Now().After(end) {
						t.Fatalf("that the job's folder is there is not %t", want)
					}
				}
			}
			there(true) // a moment after the phase
			s.call("DELETE", job, nil)
			there(false)
		})
	}
}

func TestWaiting(t *testing.T) {
	s := newSite(t, Options{Slots: 2})
	release := s.cloud.Fill()
	first, second := s.create(plain("true", nil)), s.create(plain("true", nil))
	v := s.until(first, "Pending")
	if get(v, "status.secondary_phase") != "Queuing" || get(v, "status.start_time") != 0.0 {
		t.Errorf("a waiting job: %v", v["status"])
	}
	s.call("POST", second+"/actions", object{"action_type": "terminate"})
	s.until(second, "Terminated")
	release()
	s.until(first, "Completed")
}

func TestRefusals(t *testing.T) {
	s := newSite(t, Options{Quota: 1})
	for name, c := range map[string]struct {
		change func(spec, algorithm, resource object)
		says   string
	}{
		"kind":      {func(s, a, r object) { delete(s, "kind") }, "kind is required"},
		"metadata":  {func(s, a, r object) { delete(s, "metadata") }, "metadata.name is required"},
		"name":      {func(s, a, r object) { s["metadata"].(object)["name"] = "a.b" }, `"a.b"`},
		"long name": {func(s, a, r object) { s["metadata"].(object)["name"] = strings.Repeat("a", 65) }, "1 to 64"},
		"described": {func(s, a, r object) { s["metadata"].(object)["description"] = strings.Repeat("ä", 257) }, "256"},
		"algorithm": {func(s, a, r object) { delete(s, "algorithm") }, "algorithm is required"},
		"engine":    {func(s, a, r object) { delete(a, "engine") }, "algorithm.engine is required"},
		"command":   {func(s, a, r object) { delete(a, "command") }, "algorithm.command is required"},
		"id":        {func(s, a, r object) { a["id"] = "3f5d6706" }, "algorithm not found"},
		"variable":  {func(s, a, r object) { a["environments"] = object{"A-B": "1"} }, `"A-B"`},
		"input":     {func(s, a, r object) { a["inputs"] = []any{object{"name": "x"}} }, "remote.obs"},
		"input path": {func(s, a, r object) {
			a["inputs"] = []any{object{"name": "x", "local_dir": "/a/../b", "remote": object{"obs": object{"obs_url": "/b/k"}}}}
		}, "/a/../b"},
		"input url": {func(s, a, r object) {
			a["inputs"] = []any{object{"name": "x", "remote": object{"obs": object{"obs_url": "s3://b/k"}}}}
		}, "s3://b/k"},
		"spec":   {func(s, a, r object) { delete(s, "spec") }, "spec.resource is required"},
		"flavor": {func(s, a, r object) { r["flavor_id"] = "none" }, `"none"`},
		"nodes":  {func(s, a, r object) { delete(r, "node_count") }, "node_count is required"},
	} {
		spec := plain("true", nil)
		c.change(spec, spec["algorithm"].(object), spec["spec"].(object)["resource"].(object))
		code, v := s.call("POST", "/training-jobs", spec)
		if text := fmt.Sprint(v["error_msg"]); code != 400 || v["error_code"] == nil || !strings.Contains(text, c.says) {
			t.Errorf("%s: %d %v, want %q", name, code, v, c.says)
		}
	}
	s.until(s.create(plain("sleep 300", nil)), "Running")
	if code, v := s.call("POST", "/training-jobs", plain("true", nil)); code != 400 || v["error_code"] != "ModelArts.0106" {
		t.Errorf("over the quota: %d %v", code, v)
	}
	_, v := s.call("GET", "/training-quotas", nil)
	if get(v, "quotas.used") != 1.0 || get(v, "quotas.quota") != 1.0 {
		t.Errorf("quotas: %v", v)
	}
}

func TestWrongSignatures(t *testing.T) {
	s := newSite(t, Options{})
	for name, change := range map[string]func(r *http.Request){
		"none":           func(r *http.Request) { r.Header.Del("Authorization") },
		"another path":   func(r *http.Request) { r.URL.Path += "x" },
		"another query":  func(r *http.Request) { r.URL.RawQuery = "a=b" },
		"another method": func(r *http.Request) { r.Method = "PUT" },
		"another body": func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(`{"kind":"job"}`)), 14
		},
		"unsigned body": func(r *http.Request) { r.Header.Set("X-Sdk-Content-Sha256", unsigned) },
		"another host":  func(r *http.Request) { r.Host = "example.org" },
		"another key": func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "Access=", "Access=X", 1))
		},
		"an old date": func(r *http.Request) { r.Header.Set("X-Sdk-Date", "20200101T000000Z") },
		"another date": func(r *http.Request) {
			r.Header.Set("X-Sdk-Date", time.Now().Add(2*time.Second).UTC().Format(timestamp))
		},
	} {
		r := s.request("POST", "/training-jobs", plain("true", nil))
		change(r)
		if code, v := s.send(r); code != 401 || v["error_code"] != "APIGW.0301" || v["request_id"] == nil {
			t.Errorf("%s: %d %v", name, code, v)
		}
	}
	if jobs := s.cloud.Jobs(); len(jobs) != 0 {
		t.Errorf("jobs were made all the same: %v", jobs)
	}
}

func TestSearch(t *testing.T) {
	s := newSite(t, Options{})
	for i := range 5 {
		spec := plain("true", nil)
		spec["metadata"].(object)["name"] = fmt.Sprintf("job-%d", i)
		s.until(s.create(spec), "Completed")
	}
	names := func(in object) string {
		t.Helper()
		code, v := s.call("POST", "/training-job-searches", in)
		if code != 200 {
			t.Fatalf("search %v: %d %v", in, code, v)
		}
		var out []string
		for _, item := range v["items"].([]any) {
			out = append(out, get(item, "metadata.name").(string))
		}
		return fmt.Sprintf("%v %v", out, v["count"])
	}
	filter := func(key, op string, values ...string) object {
		return object{"filters": []any{object{"key": key, "operator": op, "value": values}}}
	}
	for _, c := range []struct {
		in   object
		want string
	}{
		{object{}, "[job-4 job-3 job-2 job-1 job-0] 5"},
		{object{"order": "asc", "limit": 2, "offset": 1}, "[job-2 job-3] 5"}, // the second page
		{object{"limit": 2, "offset": 2}, "[job-0] 5"},
		{object{"limit": 2, "offset": 3}, "[] 5"},
		{filter("name", "like", "-3"), "[job-3] 1"},
		{filter("name", "in", "job-1", "job-2", "job-9"), "[job-2 job-1] 2"},
		{filter("phase", "not", "Completed"), "[] 0"},
		{filter("phase", "in", ""), "[job-4 job-3 job-2 job-1 job-0] 5"},
		{filter("create_time", "between", "0", "1"), "[] 0"},
	} {
		if got := names(c.in); got != c.want {
			t.Errorf("search %v: %s, want %s", c.in, got, c.want)
		}
	}
	for _, in := range []object{{"limit": 51}, {"limit": 0}, {"offset": -1}, filter("x", "in", "y"), filter("name", "is", "y")} {
		if code, v := s.call("POST", "/training-job-searches", in); code != 400 {
			t.Errorf("search %v: %d %v", in, code, v)
		}
	}
	_, v := s.call("GET", "/training-job-flavors?flavor_type=GPU", nil)
	if get(v, "flavors.flavor_info.gpu.product_name") != "NVIDIA-V100" || v["total_count"] != 1.0 {
		t.Errorf("flavors: %v", v)
	}
}

func TestFaults(t *testing.T) {
	s := newSite(t, Options{})
	s.cloud.Faults.Next(1, "POST", machine.Fault{Drop: true})
	if resp, err := http.DefaultClient.Do(s.request("POST", "/training-jobs", plain("sleep 300", nil))); err == nil {
		resp.Body.Close()
		t.Error("the answer came")
	}
	jobs := s.cloud.Jobs()
	if len(jobs) != 1 {
		t.Fatalf("jobs: %v", jobs)
	}
	path := "/training-jobs/" + jobs[0].ID
	s.until(path, "Running")
	s.cloud.Jump(jobs[0].ID, abnormal, "Lost")
	if _, v := s.call("GET", path, nil); get(v, "status.secondary_phase") != "Lost" {
		t.Errorf("status: %v", v["status"])
	}
	s.cloud.Forget(jobs[0].ID)
	if code, _ := s.call("GET", path, nil); code != 404 {
		t.Errorf("a forgotten job: %d", code)
	}
	now := time.Now()
	slow := newSite(t, Options{Rate: 1, Now: func() time.Time { return now }})
	busy := 0
	for range 5 {
		if code, v := slow.call("GET", "/training-quotas", nil); code == 429 && v["error_code"] == "APIGW.0308" {
			busy++
		}
	}
	if busy != 4 {
		t.Errorf("of 5 calls at once, %d are refused", busy)
	}
}

func TestServiceLog(t *testing.T) {
	s := newSite(t, Options{ServiceLog: true})
	job := s.create(plain("echo mine", nil))
	s.until(job, "Completed")
	if got := s.log(job); !strings.HasPrefix(got, "[ModelArts Service Log]") || !strings.Contains(got, "\nmine\n[ModelArts Service Log]") {
		t.Errorf("log: %q", got)
	}
}
