package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/api/apitest"
)

const token = "secret-of-this-test"

const (
	jobA = pcm.JobID("job-aaaaaaaaaaaaaaaa")
	jobB = pcm.JobID("job-aabbbbbbbbbbbbbb")
)

// served is a fake node behind a real server on loopback.
func served(t *testing.T) (*apitest.Node, *httptest.Server) {
	t.Helper()
	n := apitest.New()
	n.AddJob(api.Job{ID: jobA, Name: "first", State: pcm.JobDone, Counts: api.TaskCounts{Total: 3, Done: 3}},
		api.Task{ID: string(jobA) + "/prep/0", Job: jobA, Step: "prep", Index: 0, State: pcm.TaskDone, Attempt: 1},
		api.Task{ID: string(jobA) + "/count/0", Job: jobA, Step: "count", Index: 0, State: pcm.TaskDone, Attempt: 1},
		api.Task{ID: string(jobA) + "/count/1", Job: jobA, Step: "count", Index: 1, State: pcm.TaskFailed, Attempt: 2})
	n.AddJob(api.Job{ID: jobB, Name: "second", State: pcm.JobOpen, Counts: api.TaskCounts{Total: 1}},
		api.Task{ID: string(jobB) + "/run/0", Job: jobB, Step: "run", Index: 0, State: pcm.TaskPlaced, Attempt: 1})
	n.TradeList = []api.Trade{
		{ID: "trd-cccccccccccccccc", Job: jobA, State: "closed"},
		{ID: "trd-dddddddddddddddd", Job: jobB, State: "open"},
	}
	for i := range uint64(5) {
		n.RecordList = append(n.RecordList, api.RecordView{ID: fmt.Sprint(i), Number: i, Command: &pcm.Command{ID: pcm.CommandID{0xab}}})
	}
	n.Output[string(jobA)+"/1/1/stdout"] = []byte("words\n")
	n.Output[string(jobA)+"/1/1/out/result.txt"] = []byte("42\n")
	n.Collected = []any{prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "pcm_test_gauge", Help: "A test's."}, func() float64 { return 7 })}
	srv := httptest.NewServer(api.NewServer(n, api.Config{Token: token, Hosts: []string{"pcm.example:80"}, Version: "test", JobSchema: json.RawMessage(`{"title":"PCM job"}`)}).Handler())
	t.Cleanup(srv.Close)
	return n, srv
}

// request sends one request with the token, unless header says otherwise ("-" leaves it out).
func request(t *testing.T, srv *httptest.Server, method, path, body string, header map[string]string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequest(method, srv.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	for k, v := range header {
		switch {
		case k == "Host":
			req.Host = v
		case v == "-":
			req.Header.Del(k)
		default:
			req.Header.Set(k, v)
		}
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(raw), resp.Header
}

const goodSpec = `{"spec":{"steps":[{"command":["true"]}]}}`

func TestRequests(t *testing.T) {
	_, srv := served(t)
	for _, tt := range []struct {
		name, method, path, body string
		status                   int
		has                      []string // in the answer
	}{
		{"health", "GET", "/healthz", "", 200, []string{`"ok":true`, `"version":"test"`}},
		{"ready", "GET", "/readyz", "", 200, []string{`"ok":true`}},
		{"status", "GET", "/v1/status", "", 200, []string{`"name":"alpha"`, `"id":"12D3`}},
		{"empty list", "GET", "/v1/peers", "", 200, []string{`{"items":[],"next":""}`}},
		{"jobs", "GET", "/v1/jobs", "", 200, []string{`"next":""`, `"name":"first"`, `"name":"second"`}},
		{"jobs by state", "GET", "/v1/jobs?state=open", "", 200, []string{`"items":[{"id":"` + string(jobB)}},
		{"jobs by wrong state", "GET", "/v1/jobs?state=opn", "", 400, []string{`"code":"invalid"`, "query.state", "open, done, failed, cancelled"}},
		{"first page", "GET", "/v1/jobs?limit=1", "", 200, []string{`"next":"` + string(jobB) + `"`, `"name":"second"`}},
		{"second page", "GET", "/v1/jobs?limit=1&cursor=" + string(jobB), "", 200, []string{`"next":""`, `"name":"first"`}},
		{"page after what is gone", "GET", "/v1/jobs?cursor=job-gone", "", 409, []string{`"code":"conflict"`, "start again"}},
		{"limit of nought", "GET", "/v1/jobs?limit=0", "", 400, []string{"query.limit"}},
		{"unknown parameter", "GET", "/v1/jobs?sort=age", "", 400, []string{`"code":"invalid"`, "sort"}},
		{"job", "GET", "/v1/jobs/" + string(jobA), "", 200, []string{`"name":"first"`, `"total":3`}},
		{"job by prefix", "GET", "/v1/jobs/job-aab", "", 200, []string{`"name":"second"`}},
		{"job by prefix without kind", "GET", "/v1/jobs/aab", "", 200, []string{`"name":"second"`}},
		{"ambiguous job", "GET", "/v1/jobs/aa", "", 400, []string{`"code":"invalid"`, string(jobA), string(jobB), "give more"}},
		{"unknown prefix", "GET", "/v1/jobs/zzz", "", 404, []string{`"code":"not_found"`, "zzz", "pcm job list"}},
		{"kind alone is no prefix", "GET", "/v1/jobs/job-", "", 404, []string{"not_found"}},
		{"unknown job", "GET", "/v1/jobs/job-zzzzzzzzzzzzzzzz", "", 404, []string{`"code":"not_found"`}},
		{"tasks", "GET", "/v1/jobs/aaa/tasks", "", 200, []string{"/prep/0", "/count/0", "/count/1"}},
		{"tasks by state", "GET", "/v1/jobs/aaa/tasks?state=failed", "", 200, []string{`"items":[{"id":"` + string(jobA) + `/count/1"`}},
		{"task", "GET", "/v1/jobs/aaa/tasks/count/1", "", 200, []string{`"attempt":2`}},
		{"unknown task", "GET", "/v1/jobs/aaa/tasks/count/9", "", 404, []string{"prep, count"}},
		{"negative task", "GET", "/v1/jobs/aaa/tasks/count/-1", "", 400, []string{"path.index"}},
		{"logs", "GET", "/v1/jobs/aaa/tasks/count/1/logs", "", 200, []string{"words\n"}},
		{"logs of no stream", "GET", "/v1/jobs/aaa/tasks/count/1/logs?stream=stdin", "", 400, []string{"query.stream"}},
		{"output", "GET", "/v1/jobs/aaa/tasks/count/1/output", "", 200, []string{"out/result.txt", "42\n"}},
		{"no output", "GET", "/v1/jobs/aaa/tasks/prep/0/output", "", 404, []string{`"code":"not_found"`, "no results yet"}},
		{"explain", "GET", "/v1/jobs/aaa/explain", "", 200, []string{string(jobA)}},
		{"trades of a job", "GET", "/v1/trades?job=aab", "", 200, []string{`"items":[{"id":"trd-dddd`}},
		{"trade by prefix", "GET", "/v1/trades/ccc", "", 200, []string{"trd-cccccccccccccccc"}},
		{"unknown trade", "GET", "/v1/trades/x", "", 404, []string{`no trade \"x\"`}},
		{"records", "GET", "/v1/records?limit=2", "", 200, []string{`"next":"2"`, `"number":1`, `"id":"ab000000000000000000000000000000"`}},
		{"last records", "GET", "/v1/records?limit=2&cursor=3", "", 200, []string{`"next":""`, `"number":3`, `"number":4`}},
		{"records beyond the end", "GET", "/v1/records?cursor=99", "", 200, []string{`{"items":[],"next":""}`}},
		{"records from nowhere", "GET", "/v1/records?cursor=x", "", 400, []string{"query.cursor"}},
		{"verify", "POST", "/v1/ledger/verify", "", 200, []string{`"ok":false`}},
		{"metrics", "GET", "/metrics", "", 200, []string{"pcm_test_gauge 7", "process_resident_memory_bytes", "go_goroutines"}},
		{"schema", "GET", "/v1/schema/job", "", 200, []string{`PCM job`}},
		{"openapi", "GET", "/openapi.json", "", 200, []string{`"openapi":"3.1.0"`}},
		{"nothing there", "GET", "/v1/nothing", "", 404, []string{`"code":"not_found"`, "/v1/nothing"}},
		{"root", "GET", "/", "", 404, []string{"openapi.json"}},
		{"wrong method", "DELETE", "/v1/jobs/aaa", "", 405, []string{`"code":"invalid"`, "GET"}},

		{"submit", "POST", "/v1/jobs", `{"id":"job-eeeeeeeeeeeeeeee","spec":{"name":"new","steps":[{"command":["true"],"count":2}]}}`, 200, []string{`"name":"new"`, `"total":2`, "job-eeeeeeeeeeeeeeee"}},
		{"submit again", "POST", "/v1/jobs", `{"id":"job-eeeeeeeeeeeeeeee","spec":{"name":"new","steps":[{"command":["true"],"count":2}]}}`, 200, []string{"job-eeeeeeeeeeeeeeee"}},
		{"submit without name", "POST", "/v1/jobs", goodSpec, 200, []string{`"name":"job"`}},
		{"submit nothing", "POST", "/v1/jobs", ``, 400, []string{`"code":"invalid"`, "body"}},
		{"submit no JSON", "POST", "/v1/jobs", `spec: {}`, 400, []string{`"code":"invalid"`}},
		{"submit unknown field", "POST", "/v1/jobs", `{"spec":{"steps":[{"comand":["true"]}]}}`, 400, []string{"body.spec.steps[0]", "unexpected property"}},
		{"submit negative count", "POST", "/v1/jobs", `{"spec":{"steps":[{"command":["true"],"count":-1}]}}`, 400, []string{"body.spec.steps[0].count"}},
		{"submit wrong unit", "POST", "/v1/jobs", `{"spec":{"steps":[{"command":["true"],"resources":{"memory":"64 bananas"}}]}}`, 400, []string{"steps[0].resources", "64 bananas", "64MiB"}},
		{"submit wrong ID", "POST", "/v1/jobs", `{"id":"job-1","spec":{"steps":[{"command":["true"]}]}}`, 400, []string{"job-1"}},
		{"submit relative base", "POST", "/v1/jobs", `{"base":"here","spec":{"steps":[{"command":["true"]}]}}`, 400, []string{"not an absolute path"}},
		{"submit relative input without base", "POST", "/v1/jobs", `{"spec":{"steps":[{"command":["true"],"inputs":[{"source":"data"}]}]}}`, 400, []string{"give base"}},
		{"submit relative module without base", "POST", "/v1/jobs", `{"spec":{"steps":[{"module":"a.wasm"}]}}`, 400, []string{"give base"}},
		{"explain spec", "POST", "/v1/explain", goodSpec, 200, []string{"dry-run"}},
		{"explain bad spec", "POST", "/v1/explain", `{"spec":{"steps":[]}}`, 400, []string{"body.spec.steps"}},
		{"cancel ended", "POST", "/v1/jobs/aaa/cancel", `{}`, 409, []string{`"code":"conflict"`, "done"}},
		{"cancel", "POST", "/v1/jobs/aab/cancel", `{"reason":"enough"}`, 200, []string{`"state":"cancelled"`, `"reason":"enough"`}},
		{"invite", "POST", "/v1/invites", `{"valid_for":"2h","issuer":true}`, 200, []string{`"token":"pcm1.TOKEN"`, "14:00:00"}},
		{"invite for too long", "POST", "/v1/invites", `{"valid_for":"721h"}`, 400, []string{"at most 720h"}},
		{"invite for nonsense", "POST", "/v1/invites", `{"valid_for":"long"}`, 400, []string{"not a length of time"}},
		{"join without a token", "POST", "/v1/join", `{"token":"hello"}`, 400, []string{"not a token"}},
		{"leave", "POST", "/v1/leave", ``, 200, []string{`"id":"12D3`}},
		{"down", "POST", "/v1/down", ``, 200, []string{"ending"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, body, header := request(t, srv, tt.method, tt.path, tt.body, nil)
			if status != tt.status {
				t.Errorf("status %d, want %d: %s", status, tt.status, body)
			}
			for _, want := range tt.has {
				if !strings.Contains(body, want) {
					t.Errorf("answer lacks %q: %s", want, body)
				}
			}
			if status >= 400 {
				var e api.ErrorBody
				if err := json.Unmarshal([]byte(body), &e); err != nil || e.Fault.Code == "" || e.Fault.Message == "" {
					t.Errorf("an error has not its one form: %v: %s", err, body)
				}
			}
			if header.Get("X-Content-Type-Options") != "nosniff" || header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("headers: %v", header)
			}
		})
	}
}

// What curl -d sends without a header is told what to send.
func TestContentType(t *testing.T) {
	_, srv := served(t)
	status, body, _ := request(t, srv, "POST", "/v1/explain", goodSpec, map[string]string{"Content-Type": "application/x-www-form-urlencoded"})
	if status != 400 && status != 415 || !strings.Contains(body, "Content-Type: application/json") {
		t.Errorf("status %d: %s", status, body)
	}
	if status, body, _ := request(t, srv, "POST", "/v1/explain", goodSpec, map[string]string{"Content-Type": "application/json; charset=utf-8"}); status != 200 {
		t.Errorf("status %d: %s", status, body)
	}
}

// Each code has its status, and the message arrives.
func TestErrorCodes(t *testing.T) {
	n, srv := served(t)
	for code, want := range map[pcm.Code]int{
		pcm.Invalid: 400, pcm.Unauthorized: 401, pcm.Forbidden: 403, pcm.NotFound: 404, pcm.Conflict: 409, pcm.TooLarge: 413,
		pcm.Refused: 422, pcm.Busy: 429, pcm.Internal: 500, pcm.Unavailable: 503,
	} {
		n.Lock()
		n.Err = fmt.Errorf("looking: %w", pcm.Errorf(code, "because of %s", code))
		n.Unlock()
		status, body, _ := request(t, srv, "GET", "/v1/status", "", nil)
		if status != want || !strings.Contains(body, fmt.Sprintf("%q", code)) || !strings.Contains(body, "because of") {
			t.Errorf("%s: status %d, want %d: %s", code, status, want, body)
		}
	}
	n.Lock()
	n.Err = errors.New("disk on fire")
	n.Unlock()
	if status, body, _ := request(t, srv, "GET", "/v1/status", "", nil); status != 500 || !strings.Contains(body, "internal") {
		t.Errorf("an error without a code: %d %s", status, body)
	}
}

func TestNotReady(t *testing.T) {
	n, srv := served(t)
	n.Lock()
	n.StatusView.Ready, n.StatusView.Reason = false, "no leader"
	n.Unlock()
	if status, body, _ := request(t, srv, "GET", "/readyz", "", nil); status != 503 || !strings.Contains(body, "no leader") {
		t.Errorf("%d %s", status, body)
	}
	if status, _, _ := request(t, srv, "GET", "/healthz", "", nil); status != 200 {
		t.Errorf("a node that is not ready is not dead: %d", status)
	}
}

// Who may do what over TCP.
func TestGuard(t *testing.T) {
	_, srv := served(t)
	own := srv.Listener.Addr().String()
	_, port, _ := net.SplitHostPort(own)
	none := map[string]string{"Authorization": "-"}
	for _, tt := range []struct {
		name, method, path string
		header             map[string]string
		status             int
		has                string
	}{
		{"view without token", "GET", "/v1/status", none, 200, ""},
		{"health without token", "GET", "/healthz", none, 200, ""},
		{"events without token", "GET", "/v1/changes?job=zzz", none, 404, ""},
		{"head without token", "HEAD", "/v1/status", none, 200, ""},
		{"logs without token", "GET", "/v1/jobs/aaa/tasks/count/1/logs", none, 401, "token"},
		{"output without token", "GET", "/v1/jobs/aaa/tasks/count/1/output", none, 401, "token"},
		{"rules without token", "GET", "/v1/rules", none, 401, "token"},
		{"reload of rules without token", "POST", "/v1/rules/reload", none, 401, "token"},
		{"submit without token", "POST", "/v1/jobs", none, 401, "PCM_TOKEN"},
		{"down without token", "POST", "/v1/down", none, 401, "token"},
		{"unknown path without token", "POST", "/v1/x", none, 401, "token"},
		{"wrong token", "POST", "/v1/down", map[string]string{"Authorization": "Bearer nonsense"}, 401, "wrong"},
		{"wrong token for a view", "GET", "/v1/status", map[string]string{"Authorization": "Bearer nonsense"}, 401, "wrong"},
		{"empty token", "POST", "/v1/down", map[string]string{"Authorization": "Bearer "}, 401, "wrong"},
		{"token of another scheme", "POST", "/v1/down", map[string]string{"Authorization": "Basic " + token}, 401, "wrong"},
		{"token", "POST", "/v1/down", nil, 200, ""},

		{"host localhost", "GET", "/v1/status", map[string]string{"Host": "localhost:" + port}, 200, ""},
		{"host configured", "GET", "/v1/status", map[string]string{"Host": "pcm.example:80"}, 200, ""},
		{"host in capitals", "GET", "/v1/status", map[string]string{"Host": "LOCALHOST:" + port}, 200, ""},
		{"host rebound", "GET", "/v1/status", map[string]string{"Host": "evil.example:" + port}, 403, "evil.example"},
		{"host rebound with token", "POST", "/v1/down", map[string]string{"Host": "evil.example:" + port}, 403, "evil.example"},
		{"host without port", "GET", "/v1/status", map[string]string{"Host": "127.0.0.1"}, 403, "127.0.0.1"},
		{"host of another port", "GET", "/v1/status", map[string]string{"Host": "127.0.0.1:1"}, 403, "127.0.0.1:1"},
		{"host of another address", "GET", "/v1/status", map[string]string{"Host": "127.0.0.2:" + port}, 403, "127.0.0.2"},

		{"own origin", "POST", "/v1/down", map[string]string{"Origin": "http://" + own}, 200, ""},
		{"foreign origin", "POST", "/v1/down", map[string]string{"Origin": "http://evil.example"}, 403, "evil.example"},
		{"foreign origin reading", "GET", "/v1/status", map[string]string{"Origin": "http://localhost:3000"}, 403, "localhost:3000"},
		{"null origin", "POST", "/v1/down", map[string]string{"Origin": "null"}, 403, "null"},
		{"https origin", "POST", "/v1/down", map[string]string{"Origin": "https://" + own}, 403, "https"},
		{"cross-site picture", "GET", "/v1/status", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403, "another site"},
		{"same-site script", "GET", "/v1/status", map[string]string{"Sec-Fetch-Site": "same-site"}, 403, "another site"},
		{"typed into the address bar", "GET", "/v1/status", map[string]string{"Sec-Fetch-Site": "none"}, 200, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, body, header := request(t, srv, tt.method, tt.path, "", tt.header)
			if status != tt.status || !strings.Contains(body, tt.has) {
				t.Errorf("%d, want %d with %q: %s", status, tt.status, tt.has, body)
			}
			if status == 401 && header.Get("WWW-Authenticate") == "" {
				t.Error("401 without WWW-Authenticate")
			}
		})
	}
}

// A server without a token lets nobody in by an empty one.
func TestNoTokenConfigured(t *testing.T) {
	srv := httptest.NewServer(api.NewServer(apitest.New(), api.Config{}).Handler())
	defer srv.Close()
	if status, body, _ := request(t, srv, "POST", "/v1/down", "", map[string]string{"Authorization": "Bearer "}); status != 401 {
		t.Errorf("%d %s", status, body)
	}
}

func TestLargeBody(t *testing.T) {
	n, srv := served(t)
	big := `{"spec":{"name":"` + strings.Repeat("x", 10<<20) + `"}}`
	status, body, _ := request(t, srv, "POST", "/v1/jobs", big, nil)
	if status != 413 || !strings.Contains(body, "too_large") || !strings.Contains(body, "10MiB") {
		t.Errorf("a spec of 10 MiB: %d %.300s", status, body)
	}
	// Without a length stated ahead, too.
	req, err := http.NewRequest("POST", srv.URL+"/v1/jobs", io.MultiReader(strings.NewReader(big)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := srv.Client().Do(req)
	if err == nil { // the server may cut the connection before all is sent
		defer resp.Body.Close()
		if resp.StatusCode != 413 {
			t.Errorf("chunked: %d", resp.StatusCode)
		}
	}
	if len(n.Submitted) != 0 {
		t.Error("it was submitted all the same")
	}
	// JSON of a good spec near its bound passes.
	args := strings.Repeat(`"`+strings.Repeat("y", 1000)+`",`, 1000)
	if status, body, _ := request(t, srv, "POST", "/v1/jobs", `{"spec":{"steps":[{"command":[`+args+`"z"]}]}}`, nil); status != 200 {
		t.Errorf("a spec of 1 MB: %d %.300s", status, body)
	}
}

// panicky is a node with a bug.
type panicky struct{ *apitest.Node }

func (panicky) Status(context.Context) (api.Status, error) { panic("a bug") }

func TestPanicIsAnAnswer(t *testing.T) {
	srv := httptest.NewServer(api.NewServer(panicky{apitest.New()}, api.Config{Token: token}).Handler())
	defer srv.Close()
	for range 2 { // the server lives on
		if status, body, _ := request(t, srv, "GET", "/v1/status", "", nil); status != 500 || !strings.Contains(body, "internal") {
			t.Errorf("%d %s", status, body)
		}
	}
}

// Serve ends soon after its context although streams are open, and answers over both listeners until then.
func TestServe(t *testing.T) {
	n := apitest.New()
	dir := t.TempDir() + "/" + strings.Repeat("long", 40) // too long for a socket's address
	mkdir(t, dir)
	unix, err := api.ListenUnix(dir)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- api.NewServer(n, api.Config{Token: token}).Serve(ctx, unix, tcp) }()

	overUnix, err := api.Dial(api.Target{Data: dir})
	if err != nil {
		t.Fatal(err)
	}
	overTCP, err := api.Dial(api.Target{API: tcp.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := overUnix.Down(ctx); err != nil {
		t.Errorf("the unix socket needs no token: %v", err)
	}
	if _, err := overTCP.Down(ctx); pcm.ErrorCode(err) != pcm.Unauthorized {
		t.Errorf("TCP without token: %v", err)
	}
	if _, err := overTCP.Status(ctx); err != nil {
		t.Error(err)
	}
	changes, err := overTCP.Changes(t.Context(), api.ChangeFilter{})
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if d := time.Since(begun); d > 2*time.Second {
		t.Errorf("it took %s to end", d)
	}
	for _, err := range changes {
		if pcm.ErrorCode(err) != pcm.Unavailable {
			t.Errorf("the stream ended with %v", err)
		}
	}
	if _, err := overUnix.Status(t.Context()); pcm.ErrorCode(err) != pcm.Unavailable || !strings.Contains(err.Error(), "pcm up") {
		t.Errorf("after the end: %v", err)
	}
}
