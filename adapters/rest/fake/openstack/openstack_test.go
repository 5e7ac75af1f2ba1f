package openstack

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
)

// user is a client of the cloud. It knows Keystone's address only.
type user struct {
	t       *testing.T
	cloud   *Cloud
	url     string
	token   string
	compute string // from the catalogue
	version string
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

func password(user, password, project string) map[string]any {
	domain := map[string]any{"name": "Default"}
	return map[string]any{"auth": map[string]any{
		"identity": map[string]any{"methods": []string{"password"}, "password": map[string]any{"user": map[string]any{"name": user, "password": password, "domain": domain}}},
		"scope":    map[string]any{"project": map[string]any{"name": project, "domain": map[string]any{"id": "default"}}},
	}}
}

// ask makes a call and gives status, header and body.
func (u *user) ask(method, url string, body any) (int, http.Header, map[string]any) {
	u.t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		u.t.Fatal(err)
	}
	req, err := http.NewRequest(method, url, bytes.NewReader(data))
	if err != nil {
		u.t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", u.token)
	if u.version != "" {
		req.Header.Set("OpenStack-API-Version", "compute "+u.version)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		u.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		u.t.Fatal(err)
	}
	var out map[string]any
	if len(text) > 0 {
		if err := json.Unmarshal(text, &out); err != nil {
			u.t.Fatalf("%s: %v", text, err)
		}
	}
	return res.StatusCode, res.Header, out
}

func (u *user) logIn() {
	u.t.Helper()
	status, header, body := u.ask("POST", u.url+"/identity/v3/auth/tokens", password("pcm", "secret", "demo"))
	if status != 201 {
		u.t.Fatalf("status %d: %v", status, body)
	}
	u.token = header.Get("X-Subject-Token")
	for _, s := range body["token"].(map[string]any)["catalog"].([]any) {
		s := s.(map[string]any)
		for _, e := range s["endpoints"].([]any) {
			e := e.(map[string]any)
			if s["type"] == "compute" && e["interface"] == "public" && e["region"] == "RegionOne" {
				u.compute = e["url"].(string)
			}
		}
	}
	if u.token == "" || u.compute == "" {
		u.t.Fatalf("no token, or no endpoint: %v", body)
	}
}

func (u *user) do(method, path string, body any, status int) map[string]any {
	u.t.Helper()
	got, _, out := u.ask(method, u.compute+path, body)
	if got != status {
		u.t.Fatalf("%s %s: status %d, %v; expected %d", method, path, got, out, status)
	}
	return out
}

func order(name, script string) map[string]any {
	return map[string]any{"server": map[string]any{
		"name": name, "flavorRef": "1", "imageRef": DefaultImage, "networks": "auto",
		"user_data": base64.StdEncoding.EncodeToString([]byte("#!/bin/sh\n" + script)), "metadata": map[string]string{"pcm": name},
	}}
}

func (u *user) create(name, script string) string {
	u.t.Helper()
	return u.do("POST", "/servers", order(name, script), 202)["server"].(map[string]any)["id"].(string)
}

func (u *user) wait(id, status string) map[string]any {
	u.t.Helper()
	end := time.After(time.Minute)
	for {
		s := u.do("GET", "/servers/"+id, nil, 200)["server"].(map[string]any)
		if s["status"] == status {
			return s
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-end:
			u.t.Fatalf("the server is %v, and never becomes %s\n%s", s, status, u.console(id, nil))
		}
	}
}

func (u *user) console(id string, lines any) string {
	u.t.Helper()
	return u.do("POST", "/servers/"+id+"/action", map[string]any{"os-getConsoleOutput": map[string]any{"length": lines}}, 200)["output"].(string)
}

// says waits until the console ends with the text.
func (u *user) says(id, text string) {
	u.t.Helper()
	u.wait(id, active)
	end := time.After(time.Minute)
	for !strings.HasSuffix(u.console(id, nil), text) {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-end:
			u.t.Fatalf("the console never says %q:\n%s", text, u.console(id, nil))
		}
	}
}

func (u *user) act(id, name string, status int) {
	u.t.Helper()
	u.do("POST", "/servers/"+id+"/action", map[string]any{name: nil}, status)
}

// A server runs its user data once, shows it on its console, and is off when the
// script has powered it off.
func TestServer(t *testing.T) {
	u := begin(t, Options{})
	id := u.create("job.1", "echo one; echo two >&2; pwd; poweroff; echo never")
	s := u.wait(id, shutoff)
	if s["OS-EXT-STS:power_state"] != 4.0 || s["OS-EXT-STS:vm_state"] != "stopped" || s["OS-EXT-STS:task_state"] != nil || s["metadata"].(map[string]any)["pcm"] != "job.1" || s["OS-SRV-USG:launched_at"] == nil {
		t.Errorf("%v", s)
	}
	if got := u.console(id, nil); !strings.Contains(got, "Linux version") || !strings.Contains(got, "one\ntwo\n/") || strings.Contains(got, "never") {
		t.Errorf("console:\n%s", got)
	}
	if got := u.console(id, 2); !strings.HasPrefix(got, "two\n") {
		t.Errorf("its last lines: %q", got)
	}
	u.act(id, "os-start", 202)
	u.wait(id, active)
	u.act(id, "os-stop", 202)
	u.wait(id, shutoff)
	if u.cloud.Starts("job.1") != 1 {
		t.Error("user data ran more than once")
	}
	u.do("DELETE", "/servers/"+id, nil, 204)
	u.do("GET", "/servers/"+id, nil, 404)
	u.do("DELETE", "/servers/"+id, nil, 404)
	// Without powering off it stands idle.
	id = u.create("idle", "echo done")
	u.says(id, "done\n")
	u.wait(id, active)
}

func TestConsoleKeepsItsEnd(t *testing.T) {
	u := begin(t, Options{})
	id := u.create("loud", "yes 0123456789abcde | head -n 20000; echo end")
	u.says(id, "end\n")
	if got := u.console(id, nil); len(got) != maxConsole {
		t.Errorf("%d bytes", len(got))
	}
}

func TestPowerAndPause(t *testing.T) {
	u := begin(t, Options{})
	id := u.create("graceful", "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
	u.says(id, "ready\n")
	u.act(id, "pause", 202)
	u.wait(id, paused)
	u.act(id, "os-stop", 409)
	u.act(id, "unpause", 202)
	u.act(id, "unpause", 409)
	u.act(id, "suspend", 202)
	u.wait(id, suspended)
	u.act(id, "resume", 202)
	u.act(id, "os-stop", 202)
	u.wait(id, shutoff)
	if got := u.console(id, nil); !strings.HasSuffix(got, "bye\n") {
		t.Errorf("console:\n%s", got)
	}
	u.act(id, "dance", 400)
	deaf := u.create("deaf", "trap '' TERM; echo $$; while :; do sleep 0.05; done")
	u.says(deaf, "\n")
	u.do("DELETE", "/servers/"+deaf, nil, 204)
	end := time.After(time.Minute)
	for entries := []os.DirEntry{nil, nil}; len(entries) > 1; {
		entries, _ = os.ReadDir(u.cloud.o.Dir)
		select {
		case <-time.After(10 * time.Millisecond):
		case <-end:
			t.Fatal("what was deleted is still there")
		}
	}
}

// A guest's kernel kills one process, and the others go on.
func TestOutOfMemory(t *testing.T) {
	u := begin(t, Options{Flavors: []Flavor{{ID: "1", Name: "tiny", VCPUs: 1, RAM: 64}}})
	const hungry = `for i in 1 2 3; do (sh -c 'x=$(head -c 30000000 /dev/zero | tr "\0" x); sleep 300'; echo "code $?") & done; wait`
	for name, quiet := range map[string]bool{"loud": false, "quiet": true} {
		script := hungry
		if quiet {
			script = "dmesg -n 1; " + hungry
		}
		id := u.create(name, script)
		u.wait(id, active)
		end := time.After(time.Minute)
		for !strings.Contains(u.console(id, nil), "code 137\n") {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-end:
				t.Fatalf("nothing is killed:\n%s", u.console(id, nil))
			}
		}
		if got := u.console(id, nil); strings.Contains(got, "Out of memory: Killed process") == quiet {
			t.Errorf("%s: console:\n%s", name, got)
		}
		u.do("DELETE", "/servers/"+id, nil, 204)
	}
}

func TestRefusals(t *testing.T) {
	u := begin(t, Options{Cores: 2, GPUs: 1})
	for name, spoil := range map[string]func(map[string]any){
		"no name":        func(s map[string]any) { delete(s, "name") },
		"unknown image":  func(s map[string]any) { s["imageRef"] = "none" },
		"unknown flavor": func(s map[string]any) { s["flavorRef"] = "9" },
		"user data":      func(s map[string]any) { s["user_data"] = "#!/bin/sh" },
		"much user data": func(s map[string]any) { s["user_data"] = strings.Repeat("AAAA", 20000) },
		"metadata":       func(s map[string]any) { s["metadata"] = map[string]string{"x": strings.Repeat("x", 256)} },
	} {
		in := order("x", "true")
		spoil(in["server"].(map[string]any))
		if out := u.do("POST", "/servers", in, 400); out["badRequest"].(map[string]any)["message"] == "" {
			t.Errorf("%s: %v", name, out)
		}
	}
	u.create("a", "true")
	u.create("b", "true")
	if out := u.do("POST", "/servers", order("c", "true"), 403); !strings.Contains(out["forbidden"].(map[string]any)["message"].(string), "Quota exceeded for cores: Requested 1, but already used 2 of 2") {
		t.Errorf("%v", out)
	}
	absolute := u.do("GET", "/limits", nil, 200)["limits"].(map[string]any)["absolute"].(map[string]any)
	if absolute["totalCoresUsed"] != 2.0 || absolute["maxTotalCores"] != 2.0 || absolute["totalInstancesUsed"] != 2.0 {
		t.Errorf("%v", absolute)
	}
	u.do("GET", "/nowhere", nil, 404)
	u.do("GET", "/servers/detail?marker=none", nil, 400)
	u.version = "2.37"
	in := order("x", "true")
	delete(in["server"].(map[string]any), "networks")
	u.do("POST", "/servers", in, 400)
}

func TestNoValidHost(t *testing.T) {
	u := begin(t, Options{GPUs: 1})
	in := order("gpu", "true")
	in["server"].(map[string]any)["flavorRef"] = "3"
	u.do("POST", "/servers", in, 202)
	id := u.do("POST", "/servers", in, 202)["server"].(map[string]any)["id"].(string)
	if s := u.wait(id, failed); !strings.Contains(s["fault"].(map[string]any)["message"].(string), "No valid host") {
		t.Errorf("%v", s)
	}
	if flavors := u.do("GET", "/flavors/detail", nil, 200)["flavors"].([]any); len(flavors) != 3 || flavors[2].(map[string]any)["extra_specs"] != nil {
		t.Errorf("%v", flavors)
	}
	u.version = "2.61"
	if flavors := u.do("GET", "/flavors/detail", nil, 200)["flavors"].([]any); flavors[2].(map[string]any)["extra_specs"].(map[string]any)["pci_passthrough:alias"] != "a100:1" {
		t.Errorf("%v", flavors)
	}
}

func TestTokens(t *testing.T) {
	u := begin(t, Options{TokenTTL: time.Hour, AppID: "app", AppSecret: "hush"})
	tokens := u.url + "/identity/v3/auth/tokens"
	for _, bad := range []map[string]any{
		password("pcm", "wrong", "demo"), password("nobody", "secret", "demo"), password("pcm", "secret", "other"),
	} {
		if status, header, out := u.ask("POST", tokens, bad); status != 401 || header.Get("X-Subject-Token") != "" || out["error"] == nil {
			t.Errorf("%v: status %d, %v", bad, status, out)
		}
	}
	unscoped := password("pcm", "secret", "")
	delete(unscoped["auth"].(map[string]any), "scope")
	status, header, out := u.ask("POST", tokens, unscoped)
	if status != 201 || out["token"].(map[string]any)["catalog"] != nil {
		t.Errorf("unscoped: status %d, %v", status, out)
	}
	u.token = header.Get("X-Subject-Token")
	u.do("GET", "/limits", nil, 401)
	app := func(secret string) map[string]any {
		return map[string]any{"auth": map[string]any{"identity": map[string]any{
			"methods": []string{"application_credential"}, "application_credential": map[string]any{"id": "app", "secret": secret},
		}}}
	}
	if status, _, _ := u.ask("POST", tokens, app("loud")); status != 401 {
		t.Errorf("a wrong secret: status %d", status)
	}
	status, header, out = u.ask("POST", tokens, app("hush"))
	if status != 201 || out["token"].(map[string]any)["catalog"] == nil {
		t.Fatalf("status %d: %v", status, out)
	}
	u.token = header.Get("X-Subject-Token")
	u.do("GET", "/limits", nil, 200)
	u.cloud.LogOut()
	u.do("GET", "/limits", nil, 401)
	if status, _, out := u.ask("GET", u.url+"/identity/v3", nil); status != 200 || out["version"] == nil {
		t.Errorf("version: %d, %v", status, out)
	}
}

func TestPagesAndFaults(t *testing.T) {
	u := begin(t, Options{})
	for i := range 5 {
		u.create(fmt.Sprintf("trd-a.%d.1", i), "true")
	}
	u.create("other", "true")
	seen := map[string]bool{}
	for next := u.compute + "/servers/detail?limit=2&name=" + "%5Etrd-a%5C."; next != ""; {
		status, _, out := u.ask("GET", next, nil)
		if status != 200 {
			t.Fatalf("status %d: %v", status, out)
		}
		for _, s := range out["servers"].([]any) {
			seen[s.(map[string]any)["name"].(string)] = true
		}
		next = ""
		if links, ok := out["servers_links"].([]any); ok {
			next = links[0].(map[string]any)["href"].(string)
		}
	}
	if len(seen) != 5 || seen["other"] {
		t.Errorf("%v", seen)
	}
	release := u.cloud.Fill()
	u.do("POST", "/servers", order("late", "true"), 403)
	release()
	u.cloud.Faults.Next(1, "POST /compute", machine.Fault{Drop: true})
	data, err := json.Marshal(order("lost", "true"))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest("POST", u.compute+"/servers", bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", u.token)
	if res, err := http.DefaultClient.Do(req); err == nil {
		res.Body.Close()
		t.Fatalf("answered: %s", res.Status)
	}
	list := u.do("GET", "/servers/detail?name=lost", nil, 200)["servers"].([]any)
	if len(list) != 1 {
		t.Fatalf("%v", list)
	}
	u.cloud.Forget("lost")
	u.do("GET", "/servers/"+list[0].(map[string]any)["id"].(string), nil, 404)
}

// One call makes as many servers as the quota allows, up to its count, each with its
// place in its name and in its metadata.
func TestManyServers(t *testing.T) {
	u := begin(t, Options{Cores: 5, GPUs: 1})
	many := func(name string, counts map[string]any) map[string]any {
		in := order(name, "cloud-init query ds.meta_data.launch_index; cloud-init query x || poweroff")
		for k, v := range counts {
			in["server"].(map[string]any)[k] = v
		}
		return in
	}
	names := func(pattern string) (all []string) {
		for _, s := range u.do("GET", "/servers/detail?name="+url.QueryEscape(pattern), nil, 200)["servers"].([]any) {
			all = append(all, s.(map[string]any)["name"].(string))
		}
		slices.Sort(all)
		return all
	}
	for _, bad := range []map[string]any{{"min_count": 0}, {"max_count": -1}, {"min_count": 3, "max_count": 2}} {
		u.do("POST", "/servers", many("bad", bad), 400)
	}
	first := u.do("POST", "/servers", many("a", map[string]any{"max_count": 3}), 202)["server"].(map[string]any)["id"].(string)
	if s := u.wait(first, shutoff); s["name"] != "a-1" || !strings.Contains(u.console(first, nil), "final stage\n0\n") {
		t.Errorf("%v: %s", s, u.console(first, nil))
	}
	if got := names("^a(-[0-9]+)?$"); !slices.Equal(got, []string{"a-1", "a-2", "a-3"}) {
		t.Errorf("%v", got)
	}
	u.do("POST", "/servers", many("b", map[string]any{"min_count": 3}), 403)
	u.do("POST", "/servers", many("b", map[string]any{"min_count": 1, "max_count": 9}), 202)
	if got := names("^b"); !slices.Equal(got, []string{"b-1", "b-2"}) {
		t.Errorf("of nine there is room for %v", got)
	}
	u.do("DELETE", "/servers/"+first, nil, 204)
	u.do("POST", "/servers", many("c", map[string]any{"max_count": 9}), 202)
	if got := names("^[ac]"); !slices.Equal(got, []string{"a-2", "a-3", "c"}) {
		t.Errorf("one of nine is called as it was said: %v", got)
	}
}

// A call for more servers than there are hosts for makes none that run.
func TestNoHostForAll(t *testing.T) {
	u := begin(t, Options{GPUs: 1})
	in := order("gpu", "true")
	in["server"].(map[string]any)["flavorRef"], in["server"].(map[string]any)["max_count"] = "3", 2
	id := u.do("POST", "/servers", in, 202)["server"].(map[string]any)["id"].(string)
	u.wait(id, failed)
}
