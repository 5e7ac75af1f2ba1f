package api_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/api/apitest"
)

// sessionNode serves a fake with one running task.
func sessionNode(t *testing.T) (*apitest.Node, *api.Client, string) {
	t.Helper()
	n := apitest.New()
	n.AddJob(api.Job{ID: "job-livelivelivelive", State: pcm.JobOpen}, api.Task{Job: "job-livelivelivelive", Step: "web", State: pcm.TaskPlaced})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.NewServer(n, api.Config{Token: "secret", Version: "1"}).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	c, err := api.Dial(api.Target{API: l.Addr().String(), Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	return n, c, l.Addr().String()
}

func TestSessionOverHTTP(t *testing.T) {
	n, c, addr := sessionNode(t)
	var out bytes.Buffer
	big := strings.Repeat("line\n", 200_000)
	code, err := c.Exec(t.Context(), "live", "web", 0, api.ExecRequest{Command: []string{"cat"}, Stdin: strings.NewReader(big), Stdout: &out})
	if err != nil || code != 0 || out.String() != big {
		t.Fatalf("code %d, %d bytes of %d, %v", code, out.Len(), len(big), err)
	}
	if code, err = c.Exec(t.Context(), "live", "web", 0, api.ExecRequest{Command: []string{"exit", "9"}}); code != 9 || err != nil {
		t.Errorf("code %d, %v", code, err)
	}
	// What is not read of standard input does not cut the answer off.
	code, err = c.Exec(t.Context(), "live", "web", 0, api.ExecRequest{Command: []string{"exit", "4"}, Stdin: strings.NewReader(big)})
	if code != 4 || err != nil {
		t.Errorf("code %d, %v", code, err)
	}
	conn, err := c.DialTask(t.Context(), "live", "web", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go conn.Write([]byte("ping"))
	got := make([]byte, 4)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "ping" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := c.DialTask(t.Context(), "live", "web", 0, 22); pcm.ErrorCode(err) != pcm.Refused {
		t.Errorf("another port: %v", err)
	}
	if err := c.Suspend(t.Context(), "live", "web", 0, true); err != nil {
		t.Error(err)
	}
	if v, err := c.Look(t.Context(), "live", "web", 0); err != nil || v.State != "running" {
		t.Errorf("%+v, %v", v, err)
	}
	n.Lock()
	if did := strings.Join(n.Operations, "\n"); !strings.Contains(did, "suspend true") {
		t.Errorf("did %s", did)
	}
	n.Unlock()
	// A source that breaks is not taken for the whole.
	broken := errors.New("the disk is gone")
	if err := c.CopyIn(t.Context(), "live", "web", 0, ".", io.MultiReader(strings.NewReader("x"), failing{broken})); !errors.Is(err, broken) {
		t.Errorf("a broken source: %v", err)
	}
	if _, err := c.Exec(t.Context(), "live", "web", 1, api.ExecRequest{Command: []string{"cat"}}); pcm.ErrorCode(err) != pcm.NotFound {
		t.Errorf("no such task: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	hangs, w := io.Pipe()
	defer w.Close()
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := c.Exec(ctx, "live", "web", 0, api.ExecRequest{Command: []string{"cat"}, Stdin: hangs}); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("interrupted: %v", err)
	}
	// Without the token, from another site, or without an upgrade there is no session.
	for name, c := range map[string]struct {
		header map[string]string
		status int
	}{
		"no token":   {map[string]string{"Upgrade": api.SessionProtocol}, http.StatusUnauthorized},
		"other site": {map[string]string{"Upgrade": api.SessionProtocol, "Authorization": "Bearer secret", "Origin": "http://evil.example"}, http.StatusForbidden},
		"no upgrade": {map[string]string{"Authorization": "Bearer secret"}, http.StatusUpgradeRequired},
	} {
		req, err := http.NewRequest(http.MethodGet, "http://"+addr+"/v1/jobs/live/tasks/web/0/session", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Connection", "Upgrade")
		for k, v := range c.header {
			req.Header.Set(k, v)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%s: %s, want %d", name, resp.Status, c.status)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// What a hostile side sends ends the session, and nothing else.
func TestSessionFrames(t *testing.T) {
	for name, raw := range map[string][]byte{
		"unknown kind":      {99, 0, 0, 0},
		"kind 0":            {0, 0, 0, 0},
		"oversized frame":   {3, 0xff, 0xff, 0xff},
		"cut short":         {3, 0, 0, 9, 'x'},
		"nothing":           {},
		"no request":        {3, 0, 0, 1, 'x'},
		"a request of junk": {1, 0, 0, 1, 0xff},
	} {
		near, far := net.Pipe()
		s := api.NewSession(far)
		go func() {
			near.Write(raw)
			near.Close()
		}()
		var r api.SessionRequest
		if err := s.ReadRequest(&r); err == nil {
			t.Errorf("%s was taken: %+v", name, r)
		}
		s.Close()
	}
}
