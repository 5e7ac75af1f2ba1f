package api_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/api/apitest"
)

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

// dialed is a client of a fake node, over TCP.
func dialed(t *testing.T) (*apitest.Node, *api.Client) {
	t.Helper()
	n, srv := served(t)
	c, err := api.Dial(api.Target{API: srv.Listener.Addr().String(), Token: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return n, c
}

func TestClientViews(t *testing.T) {
	n, c := dialed(t)
	ctx := t.Context()
	n.PeerList = []api.Peer{{ID: "12D3KooWx", Name: "beta"}}
	n.OfferList = []api.Offer{{ID: "12D3KooWx/p", Pool: pcm.Pool{ID: "p", Price: pcm.Price{Unit: "credit", PerTask: 1_500_000}}}}
	n.CellList = []api.Cell{{ID: "cell-x", Records: 9}}
	n.BalanceList = []api.Balance{{ID: "a/b/credit", Owed: "1.5"}}
	n.VerdictView = api.Verdict{ID: "cell-x", OK: true, Records: 9}

	if st, err := c.Status(ctx); err != nil || st.Name != "alpha" {
		t.Errorf("%v %v", st, err)
	}
	if err := c.Ready(ctx); err != nil {
		t.Error(err)
	}
	if l, err := c.Peers(ctx); err != nil || len(l.Items) != 1 || l.Items[0].Name != "beta" {
		t.Errorf("%v %v", l, err)
	}
	if l, err := c.Offers(ctx); err != nil || l.Items[0].Pool.Price.PerTask != 1_500_000 {
		t.Errorf("a price does not survive the wire: %v %v", l, err)
	}
	if l, err := c.Cells(ctx); err != nil || l.Items[0].Records != 9 {
		t.Errorf("%v %v", l, err)
	}
	if l, err := c.Balances(ctx); err != nil || l.Items[0].Owed != "1.5" {
		t.Errorf("%v %v", l, err)
	}
	if l, err := c.Jobs(ctx, api.Query{}); err != nil || len(l.Items) != 2 || l.Next != "" {
		t.Errorf("%v %v", l, err)
	}
	if l, err := c.Jobs(ctx, api.Query{Limit: 1}); err != nil || len(l.Items) != 1 || l.Next == "" {
		t.Errorf("%v %v", l, err)
	}
	if l, err := c.Trades(ctx, api.Query{Job: jobB}); err != nil || len(l.Items) != 1 {
		t.Errorf("%v %v", l, err)
	}
	if tr, err := c.Trade(ctx, "ccc"); err != nil || tr.Job != jobA {
		t.Errorf("%v %v", tr, err)
	}
	if l, err := c.Records(ctx, api.Query{Cursor: "1"}); err != nil || len(l.Items) != 4 || l.Items[0].Command.ID[0] != 0xab {
		t.Errorf("%v %v", l, err)
	}
	if v, err := c.Verify(ctx); err != nil || !v.OK {
		t.Errorf("%v %v", v, err)
	}
	if e, err := c.Explain(ctx, "aaa"); err != nil || e.ID != string(jobA) {
		t.Errorf("%v %v", e, err)
	}
	if inv, err := c.Invite(ctx, 0, false); err != nil || inv.Token == "" || n.Invites[0] != "24h0m0s issuer=false" {
		t.Errorf("%v %v %v", inv, err, n.Invites)
	}
}

// A list longer than a page arrives whole and in order.
func TestClientReadsAllPages(t *testing.T) {
	n, c := dialed(t)
	const many = 25_000
	for i := range many {
		n.PeerList = append(n.PeerList, api.Peer{ID: pcm.PeerID(fmt.Sprintf("p%06d", i))})
	}
	l, err := c.Peers(t.Context())
	if err != nil || len(l.Items) != many || l.Next != "" {
		t.Fatalf("%d items, next %q, %v", len(l.Items), l.Next, err)
	}
	for i, p := range l.Items {
		if p.ID != n.PeerList[i].ID {
			t.Fatalf("item %d is %s", i, p.ID)
		}
	}
}

func TestClientErrors(t *testing.T) {
	_, c := dialed(t)
	if _, err := c.Job(t.Context(), "zzz"); pcm.ErrorCode(err) != pcm.NotFound || !strings.Contains(err.Error(), "zzz") {
		t.Errorf("%v", err)
	}
	// Nobody listens.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	c, err = api.Dial(api.Target{API: addr})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = c.Status(t.Context()); pcm.ErrorCode(err) != pcm.Unavailable || !strings.Contains(err.Error(), "no node answers at "+addr+": start one with 'pcm up'") {
		t.Errorf("%v", err)
	}
	// No socket.
	c, err = api.Dial(api.Target{Data: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = c.Status(t.Context()); pcm.ErrorCode(err) != pcm.Unavailable || !strings.Contains(err.Error(), "pcm up") {
		t.Errorf("%v", err)
	}
	// Something else listens.
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "hello", 404) }))
	defer other.Close()
	c, err = api.Dial(api.Target{API: other.Listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = c.Status(t.Context()); pcm.ErrorCode(err) != pcm.NotFound || !strings.Contains(err.Error(), "another program") {
		t.Errorf("%v", err)
	}
	// The caller gave up.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = c.Status(ctx); pcm.ErrorCode(err) != pcm.Unavailable || !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	for _, bad := range []api.Target{{}, {API: "localhost"}, {API: "a:b:c"}, {API: "host:"}} {
		if _, err := api.Dial(bad); pcm.ErrorCode(err) != pcm.Invalid {
			t.Errorf("Dial(%v): %v", bad, err)
		}
	}
}

func TestToken(t *testing.T) {
	dir := t.TempDir()
	if tok, err := api.ReadToken(dir); tok != "" || err != nil {
		t.Errorf("%q %v", tok, err)
	}
	first, err := api.EnsureToken(dir)
	if err != nil || len(first) != 64 {
		t.Fatalf("%q %v", first, err)
	}
	if again, err := api.EnsureToken(dir); again != first || err != nil {
		t.Errorf("%q %v", again, err)
	}
	info, err := os.Stat(filepath.Join(dir, api.TokenFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, api.TokenFile), []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := api.EnsureToken(dir); err == nil {
		t.Error("an empty token was taken")
	}
}

func TestSocketMode(t *testing.T) {
	dir := t.TempDir()
	for range 2 { // the second finds what the first left
		l, err := api.ListenUnix(dir)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(dir, api.SocketFile))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v %v", info.Mode(), err)
		}
		l.Close()
	}
}

// A followed log arrives piece by piece, while the task runs, and ends with it.
func TestFollowLogs(t *testing.T) {
	n, c := dialed(t)
	rc, err := c.Logs(t.Context(), string(jobB), "run", 0, "stdout", true)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	buf := make([]byte, 64)
	for _, piece := range []string{"one\n", "two\n"} {
		n.Write(jobB, 0, 0, "stdout", piece)
		if k, err := io.ReadFull(rc, buf[:len(piece)]); err != nil || string(buf[:k]) != piece {
			t.Fatalf("%q %v", buf[:k], err)
		}
	}
	n.End(jobB, pcm.JobDone, "")
	if k, err := rc.Read(buf); k != 0 || err != io.EOF {
		t.Errorf("%d %v", k, err)
	}
}

// A client that goes away takes its followed log with it.
func TestFollowLogsClientGone(t *testing.T) {
	n, c := dialed(t)
	n.ClosedLogs = make(chan string, 1)
	ctx, cancel := context.WithCancel(t.Context())
	rc, err := c.Logs(ctx, string(jobB), "run", 0, "stderr", true)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if key := <-n.ClosedLogs; key != string(jobB)+"/0/0/stderr" {
		t.Error(key)
	}
	if _, err := rc.Read(make([]byte, 1)); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("%v", err)
	}
}

func TestOutput(t *testing.T) {
	n, c := dialed(t)
	rc, err := c.Output(t.Context(), string(jobA), "count", 1)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	tr := tar.NewReader(rc)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if got := strings.Join(names, " "); got != "out/result.txt stdout" {
		t.Error(got)
	}
	// Cut short after the first byte: the reason arrives, and no end of file.
	n.FetchErr = pcm.Errorf(pcm.Unavailable, "the seller went away")
	rc, err = c.Output(t.Context(), string(jobA), "count", 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, rc); pcm.ErrorCode(err) != pcm.Unavailable || !strings.Contains(err.Error(), "seller went away") {
		t.Errorf("%v", err)
	}
}

func TestChanges(t *testing.T) {
	n, c := dialed(t)
	all, err := c.Changes(t.Context(), api.ChangeFilter{})
	if err != nil {
		t.Fatal(err)
	}
	some, err := c.Changes(t.Context(), api.ChangeFilter{Kinds: []string{"ended", "lost"}, Job: jobB})
	if err != nil {
		t.Fatal(err)
	}
	n.Change(api.Change{Kind: "offer", Text: "line one\nline two"})
	n.Change(api.Change{Kind: "ended", Job: jobA})
	n.Change(api.Change{Kind: "start", Job: jobB})
	n.Change(api.Change{Kind: "ended", Job: jobB, State: "done"})
	var kinds []string
	for ch, err := range all {
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, ch.Kind)
		if ch.Kind == "offer" && ch.Text != "line one\nline two" {
			t.Errorf("%q", ch.Text)
		}
		if len(kinds) == 4 {
			break
		}
	}
	if got := strings.Join(kinds, " "); got != "offer ended start ended" {
		t.Error(got)
	}
	for ch, err := range some {
		if err != nil || ch.Kind != "ended" || ch.Job != jobB || ch.State != "done" {
			t.Errorf("%+v %v", ch, err)
		}
		break
	}
}

// A reader that the node cut off is told so, and nothing is passed over in silence.
func TestChangesTooSlow(t *testing.T) {
	n, c := dialed(t)
	n.SlowAfter = 0
	changes, err := c.Changes(t.Context(), api.ChangeFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for n.Subscribers() > 0 { // the server takes some of them, but not all
		n.Change(api.Change{Kind: "offer"})
	}
	var last error
	for _, err := range changes {
		last = err
	}
	if pcm.ErrorCode(last) != pcm.Busy {
		t.Errorf("%v", last)
	}
}

func TestWaitJob(t *testing.T) {
	n, c := dialed(t)
	done := make(chan error, 1)
	go func() {
		j, err := c.WaitJob(t.Context(), jobB, api.Settled)
		if err == nil && j.State != pcm.JobFailed {
			err = fmt.Errorf("state %s", j.State)
		}
		done <- err
	}()
	<-n.Subscribed()
	n.Change(api.Change{Kind: "start", Job: jobB})
	n.End(jobB, pcm.JobFailed, "exit code 3")
	if err := <-done; err != nil {
		t.Error(err)
	}
	// One that has ended already.
	if j, err := c.WaitJob(t.Context(), jobA, api.Ended); err != nil || j.State != pcm.JobDone {
		t.Errorf("%v %v", j, err)
	}
	// One that there isn't.
	if _, err := c.WaitJob(t.Context(), "job-zzzzzzzzzzzzzzzz", api.Ended); pcm.ErrorCode(err) != pcm.NotFound {
		t.Errorf("%v", err)
	}
}
