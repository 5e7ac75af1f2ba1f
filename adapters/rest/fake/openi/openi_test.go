package openi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
)

// user is a client of the platform.
type user struct {
	t     *testing.T
	cloud *Cloud
	url   string
	token string
}

func begin(t *testing.T, o Options) *user {
	t.Helper()
	o.Dir = t.TempDir()
	c := New(o)
	s := httptest.NewServer(c)
	t.Cleanup(func() { s.Close(); c.Close() })
	u := &user{t: t, cloud: c, url: s.URL}
	u.logIn()
	return u
}

func (u *user) logIn() {
	u.t.Helper()
	u.token = u.do("POST", "/v1/authmanage/token", map[string]any{"username": "pcm", "password": "secret"}, 200)["token"].(string)
}

// do makes a call, and gives the payload or the error.
func (u *user) do(method, path string, body any, status int) map[string]any {
	u.t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		u.t.Fatal(err)
	}
	req, err := http.NewRequest(method, u.url+path, bytes.NewReader(data))
	if err != nil {
		u.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+u.token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		u.t.Fatal(err)
	}
	defer res.Body.Close()
	var out struct {
		Success        bool
		Payload, Error map[string]any
	}
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
		u.t.Fatal(err)
	}
	if res.StatusCode != status || out.Success != (status == 200) {
		u.t.Fatalf("%s %s: status %d, %v; expected %d", method, path, res.StatusCode, out, status)
	}
	if out.Success {
		return out.Payload
	}
	return out.Error
}

func order(name, command string) map[string]any {
	return map[string]any{"name": name, "imageId": DefaultImage, "config": []any{map[string]any{
		"taskNumber": 1, "resourceSpecId": "spec-cpu-1", "command": command, "envs": map[string]string{"GREETING": "hello world"},
	}}}
}

func (u *user) create(name, command string) string {
	u.t.Helper()
	return u.do("POST", "/v1/trainmanage/trainjob", order(name, command), 200)["jobId"].(string)
}

func (u *user) show(id string) map[string]any {
	u.t.Helper()
	return u.do("GET", "/v1/trainmanage/trainjob/"+id, nil, 200)["trainJob"].(map[string]any)
}

func (u *user) wait(id string, s State) map[string]any {
	u.t.Helper()
	end := time.After(time.Minute)
	for {
		j := u.show(id)
		if State(j["status"].(float64)) == s {
			return j
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-end:
			u.t.Fatalf("job is %v, and never becomes %d", j, s)
		}
	}
}

func (u *user) log(id string) (text string) {
	u.t.Helper()
	for offset := 0.0; ; {
		part := u.do("GET", fmt.Sprintf("/v1/trainmanage/trainjob/%s/log?offset=%.0f&size=7", id, offset), nil, 200)
		text += part["content"].(string)
		if next := part["nextOffset"].(float64); next == offset {
			return text
		} else {
			offset = next
		}
	}
}

func upload(t *testing.T, url, data string, status int) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPut, url, strings.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != status {
		t.Fatalf("put: status %d, expected %d", res.StatusCode, status)
	}
}

func fetch(t *testing.T, url string) (string, int) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data), res.StatusCode
}

// A job has its data, its variables and its outputs, and says how it ended.
func TestJob(t *testing.T) {
	u := begin(t, Options{})
	set := u.do("POST", "/v1/datasetmanage/dataset", map[string]any{"name": "in-1"}, 200)["id"].(string)
	link := u.do("POST", "/v1/datasetmanage/dataset/"+set+"/file", map[string]any{"path": "a/b.txt"}, 200)["uploadUrl"].(string)
	upload(t, link, "beta", 200)
	upload(t, strings.Replace(link, "b.txt", "c.txt", 1), "other", 403)
	u.do("POST", "/v1/datasetmanage/dataset/"+set+"/file", map[string]any{"path": "../x"}, 400)
	in := order("run-1", `cat "$OCTOPUS_DATASET_DIR/a/b.txt"; echo " $GREETING é"; mkdir model/d; echo out >model/d/f; ln -s /etc/hostname model/leak; exit 3`)
	in["datasetId"] = set
	id := u.do("POST", "/v1/trainmanage/trainjob", in, 200)["jobId"].(string)
	j := u.wait(id, Failed)
	task := j["tasks"].([]any)[0].(map[string]any)
	if task["exitCode"] != 3.0 || !strings.Contains(j["message"].(string), "code 3") || j["startedAt"].(float64) == 0 || j["completedAt"].(float64) == 0 {
		t.Errorf("%v", j)
	}
	if got := u.log(id); got != "beta hello world é\n" {
		t.Errorf("log %q", got)
	}
	files := u.do("GET", "/v1/trainmanage/trainjob/"+id+"/output", nil, 200)["files"].([]any)
	if len(files) != 1 || files[0].(map[string]any)["path"] != "d/f" {
		t.Fatalf("files: %v", files)
	}
	url := files[0].(map[string]any)["downloadUrl"].(string)
	if got, _ := fetch(t, url); got != "out\n" {
		t.Errorf("output %q", got)
	}
	if _, status := fetch(t, url+"x"); status != 403 {
		t.Errorf("a forged signature: status %d", status)
	}
	// What leads out of the folder is not handed out.
	url = u.do("POST", "/v1/trainmanage/trainjob/"+id+"/output", map[string]any{"path": "leak", "method": "GET"}, 200)["url"].(string)
	if got, status := fetch(t, url); status != 404 {
		t.Errorf("a link that leads out: status %d, %q", status, got)
	}
	u.do("DELETE", "/v1/trainmanage/trainjob", map[string]any{"jobIds": []string{id}}, 200)
	u.do("GET", "/v1/trainmanage/trainjob/"+id, nil, 404)
	u.do("DELETE", "/v1/datasetmanage/dataset/"+set, nil, 200)
	u.do("DELETE", "/v1/datasetmanage/dataset/"+set, nil, 404)
}

func TestRefusals(t *testing.T) {
	u := begin(t, Options{TokenTTL: time.Hour})
	for name, spoil := range map[string]func(map[string]any){
		"name with a dot": func(j map[string]any) { j["name"] = "trd-x.0.1" },
		"no image":        func(j map[string]any) { delete(j, "imageId") },
		"unknown image":   func(j map[string]any) { j["imageId"] = "none" },
		"no config":       func(j map[string]any) { delete(j, "config") },
		"unknown spec":    func(j map[string]any) { j["config"].([]any)[0].(map[string]any)["resourceSpecId"] = "spec-x" },
		"no command":      func(j map[string]any) { j["config"].([]any)[0].(map[string]any)["command"] = " " },
	} {
		in := order("x", "true")
		spoil(in)
		if e := u.do("POST", "/v1/trainmanage/trainjob", in, 400); e["code"] != float64(codeInvalid) || e["message"] == "" {
			t.Errorf("%s: %v", name, e)
		}
	}
	in := order("x", "true")
	in["datasetId"] = "none"
	u.do("POST", "/v1/trainmanage/trainjob", in, 404)
	u.do("GET", "/v1/nowhere", nil, 404)
	u.do("GET", "/v1/trainmanage/trainjob?pageIndex=0", nil, 400)
	u.do("POST", "/v1/authmanage/token", map[string]any{"username": "pcm", "password": "wrong"}, 401)
	u.cloud.LogOut()
	if e := u.do("GET", "/v1/trainmanage/trainjob", nil, 401); e["code"] != float64(codeToken) {
		t.Errorf("an old token: %v", e)
	}
}

func TestTokens(t *testing.T) {
	u := begin(t, Options{TokenTTL: time.Nanosecond, Token: "for-ever"})
	u.do("GET", "/v1/trainmanage/trainjob", nil, 401)
	u.token = "for-ever"
	u.do("GET", "/v1/trainmanage/trainjob", nil, 200)
}

func TestStop(t *testing.T) {
	u := begin(t, Options{})
	id := u.create("graceful", `trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done`)
	u.wait(id, Running)
	for u.log(id) != "ready\n" {
		u.wait(id, Running)
	}
	u.do("POST", "/v1/trainmanage/trainjob/"+id+"/stop", nil, 200)
	u.wait(id, Stopped)
	if got := u.log(id); !strings.HasSuffix(got, "bye\n") {
		t.Errorf("log %q", got)
	}
	u.do("POST", "/v1/trainmanage/trainjob/"+id+"/stop", nil, 409)
	// One that hears nothing is ended by its deletion.
	id = u.create("deaf", `trap '' TERM; while :; do sleep 0.05; done`)
	u.wait(id, Running)
	u.do("POST", "/v1/trainmanage/trainjob/"+id+"/stop", nil, 200)
	u.wait(id, Stopping)
	u.do("DELETE", "/v1/trainmanage/trainjob", map[string]any{"jobIds": []string{id}}, 200)
	end := time.After(time.Minute)
	for taken := 1; taken > 0; _, taken = u.cloud.room.Use() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-end:
			t.Fatal("what was deleted runs on")
		}
	}
	for left := []string{"?"}; len(left) > 0; {
		left, _ = filepath.Glob(filepath.Join(u.cloud.o.Dir, "*", id+"*"))
		select {
		case <-time.After(10 * time.Millisecond):
		case <-end:
			t.Fatalf("of what was deleted there is %q", left)
		}
	}
}

func TestQueueAndPages(t *testing.T) {
	u := begin(t, Options{CPU: 2, GPU: 1})
	release := u.cloud.Fill()
	var ids []string
	for i := range 5 {
		ids = append(ids, u.create(fmt.Sprintf("many-%d", i), "true"))
	}
	if j := u.wait(ids[0], Pending); !strings.Contains(j["message"].(string), "Insufficient resources") {
		t.Errorf("it doesn't say why it waits: %v", j)
	}
	pools := u.do("GET", "/v1/resourcemanage/resourcepool", nil, 200)["resourcePools"].([]any)
	if p := pools[0].(map[string]any); p["capacity"].(map[string]any)["cpu"] != "2" || p["allocated"].(map[string]any)["nvidia.com/gpu"] != "1" {
		t.Errorf("pool: %v", p)
	}
	u.do("POST", "/v1/trainmanage/trainjob/"+ids[4]+"/stop", nil, 200)
	u.wait(ids[4], Stopped)
	seen := map[string]bool{}
	for index := 1; ; index++ {
		list := u.do("GET", fmt.Sprintf("/v1/trainmanage/trainjob?searchKey=MANY&pageIndex=%d&pageSize=2", index), nil, 200)
		if list["totalSize"] != 5.0 {
			t.Fatalf("%v", list)
		}
		part := list["trainJobs"].([]any)
		if len(part) == 0 {
			break
		}
		for _, j := range part {
			seen[j.(map[string]any)["id"].(string)] = true
		}
	}
	if len(seen) != 5 {
		t.Errorf("%d of 5 jobs are listed", len(seen))
	}
	if n := u.do("GET", "/v1/trainmanage/trainjob?status=40|50", nil, 200)["totalSize"]; n != 1.0 {
		t.Errorf("%v jobs have ended", n)
	}
	release()
	for _, id := range ids[:4] {
		u.wait(id, Succeeded)
	}
	if u.cloud.Starts("many-0") != 1 || u.cloud.Starts("many-4") != 0 {
		t.Error("starts are counted wrongly")
	}
	u.cloud.Forget("many-0")
	u.do("GET", "/v1/trainmanage/trainjob/"+ids[0], nil, 404)
	if images := u.do("GET", "/v1/imagemanage/image", nil, 200)["images"].([]any); len(images) != 1 || images[0].(map[string]any)["id"] != DefaultImage {
		t.Errorf("images: %v", images)
	}
	specs := u.do("GET", "/v1/resourcemanage/resourcespec?pageSize=100", nil, 200)["resourceSpecs"].([]any)
	if len(specs) != 3 || specs[2].(map[string]any)["resourceQuantity"].(map[string]any)["nvidia.com/gpu"] != "1" {
		t.Errorf("specs: %v", specs)
	}
}

// The answer of a create may be lost: the job is there, and is found by its name.
func TestLostAnswer(t *testing.T) {
	u := begin(t, Options{})
	u.cloud.Faults.Next(1, "POST /v1/trainmanage", machine.Fault{Drop: true})
	data, err := json.Marshal(order("lost", "true"))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest("POST", u.url+"/v1/trainmanage/trainjob", bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+u.token)
	if res, err := http.DefaultClient.Do(req); err == nil {
		res.Body.Close()
		t.Fatalf("answered: %s", res.Status)
	}
	list := u.do("GET", "/v1/trainmanage/trainjob?searchKey=lost", nil, 200)["trainJobs"].([]any)
	if len(list) != 1 {
		t.Fatalf("%v", list)
	}
	u.wait(list[0].(map[string]any)["id"].(string), Succeeded)
}

func TestOutOfMemory(t *testing.T) {
	u := begin(t, Options{Specs: []Spec{{ID: "spec-cpu-1", CPU: 1, Memory: 64 << 20}}})
	id := u.create("hungry", `x=$(head -c 100000000 /dev/zero | tr '\0' x); sleep 300`)
	j := u.wait(id, Failed)
	if !strings.Contains(j["message"].(string), "OOMKilled") || j["tasks"].([]any)[0].(map[string]any)["exitCode"] != 137.0 {
		t.Errorf("%v", j)
	}
}
