package nodetest_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/adaptertest/require"
	"github.com/jointcloud/pcm/ledger/tlog"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

// fsckModule is a checker of logs that others wrote, unmodified.
const fsckModule = "github.com/transparency-dev/tessera/cmd/fsck@v1.0.4"

// fsckProgram builds the checker in a module of its own. Where its sources can't
// be had the public log is not checked by a tool of others.
func fsckProgram(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	run := func(args ...string) ([]byte, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
		return cmd.CombinedOutput()
	}
	if out, err := run("mod", "init", "fsck.test"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := run("get", fsckModule); err != nil {
		require.Missing(t, "fsck", fmt.Errorf("%s can't be fetched: %w\n%s", fsckModule, err, out))
	}
	program, _, _ := strings.Cut(fsckModule, "@")
	if out, err := run("build", "-o", "fsck", program); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return filepath.Join(dir, "fsck")
}

// logPeers starts three peers that serve outsiders.
func logPeers(t *testing.T) (m *nodetest.Mesh, prefix map[string]string) {
	t.Helper()
	m = nodetest.New(t,
		nodetest.Spec{Name: "anna", Config: nodetest.Bare("0.002", 0) + listens},
		nodetest.Spec{Name: "bert", Config: nodetest.Bare("0.001", 0) + listens},
		nodetest.Spec{Name: "carl", Config: nodetest.Buyer + listens},
	)
	prefix = map[string]string{}
	for _, p := range m.Peers {
		prefix[p.Name] = logURL(t, p)
	}
	return m, prefix
}

const listens = "log_listen: 127.0.0.1:0\n"

// logURL is where a peer says that its log is.
func logURL(t *testing.T, p *nodetest.Peer) string {
	t.Helper()
	url := ""
	nodetest.Eventually(t, p.Name+" says where its log is", func(context.Context) error {
		for line := range strings.Lines(p.Tail(1000)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "log" {
				url = f[1]
			}
		}
		if url == "" {
			return fmt.Errorf("it says nothing")
		}
		return nil
	})
	return url
}

func cellOf(t *testing.T, p *nodetest.Peer) pcm.CellID {
	t.Helper()
	st, err := p.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st.Cell
}

func keysOf(t *testing.T, p *nodetest.Peer) (keys []tlog.Key) {
	t.Helper()
	raw, err := p.LogFile(t.Context(), cellOf(t, p), "vkeys", 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		k, err := tlog.ParseKey(line)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	return keys
}

// awaitCheckpoint waits for a checkpoint of at least size records by all of some keys.
func awaitCheckpoint(t *testing.T, p *nodetest.Peer, keys []tlog.Key, size uint64) (c tlog.Checkpoint, note []byte) {
	t.Helper()
	cell := cellOf(t, p)
	nodetest.Eventually(t, "a checkpoint that all have signed", func(ctx context.Context) (err error) {
		if note, err = p.LogFile(ctx, cell, "checkpoint", tlog.MaxCheckpoint); err != nil {
			return err
		}
		var by []tlog.Key
		if c, by, err = tlog.Open(note, keys); err != nil {
			return nodetest.Final(err)
		}
		if len(by) < len(keys) || c.Size < size {
			return fmt.Errorf("%d records, signed by %d of %d", c.Size, len(by), len(keys))
		}
		return nil
	})
	return c, note
}

// TestLogByOthersTool: a tool that others wrote finds the log of a live cell good,
// as each of its peers serves it and with each voter's key as the log's; and an
// outsider's own check, and proofs, need nothing of the servers but the bytes.
func TestLogByOthersTool(t *testing.T) {
	t.Parallel()
	m, prefix := logPeers(t)
	fsck := fsckProgram(t)
	carl := m.Peer("carl")
	job := carl.Done(carl.Send(nodetest.Command(40, "echo $PCM_TASK_INDEX"), "").ID)
	const records = 300 // more than one full tile
	for {
		cells, err := carl.Cells(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if cells.Items[0].Records >= records {
			break
		}
		carl.Done(carl.Send(nodetest.Command(1, "true"), "").ID)
	}
	var keys []tlog.Key
	nodetest.Eventually(t, "all voters have keys", func(context.Context) error {
		if keys = keysOf(t, carl); len(keys) != 3 {
			return fmt.Errorf("%d have", len(keys))
		}
		return nil
	})
	c, _ := awaitCheckpoint(t, carl, keys, records)

	// While the log grows, so that partial tiles are asked for that are no longer the last.
	ctx, stop := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	busy.Go(func() {
		for ctx.Err() == nil {
			j, err := carl.Submit(ctx, api.Submission{ID: pcm.NewJobID(), Spec: nodetest.Command(1, "true")})
			if err == nil {
				nodetest.Await(ctx, func(ctx context.Context) error {
					if got, err := carl.Job(ctx, string(j.ID)); err != nil || !api.Settled(got) {
						return fmt.Errorf("%v", err)
					}
					return nil
				})
			}
		}
	})
	dir := t.TempDir()
	for _, p := range m.Peers {
		for i, k := range keys {
			file := filepath.Join(dir, fmt.Sprintf("key%d", i))
			if err := os.WriteFile(file, []byte(k.String()), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.CommandContext(t.Context(), fsck, "--ui=false", "--logtostderr", "--storage_url", prefix[p.Name], "--public_key", file).CombinedOutput()
			// It ends with status 0 whatever it finds.
			if err != nil || !bytes.Contains(out, []byte("Successfully fsck'd log")) || bytes.Contains(out, []byte("fsck failed")) {
				t.Errorf("%s with key %d: %v\n%s", p.Name, i, err, out)
			}
		}
	}
	stop()
	busy.Wait()

	keyFile := filepath.Join(dir, "keys")
	r := carl.PCM("ledger", "vkeys")
	if err := os.WriteFile(keyFile, []byte(r.Stdout), 0o600); err != nil || strings.Count(r.Stdout, "\n") != 3 {
		t.Fatalf("%v: %q", err, r.Stdout)
	}
	outsider := &nodetest.Process{Binary: carl.Binary, Name: "outsider", Dir: filepath.Join(dir, "outsider"), Log: filepath.Join(dir, "log")}
	st, err := carl.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it goes on from what it saw
		r, err := outsider.CLI(t.Context(), "ledger", "verify", "-o", "json", "--from", prefix["bert"], "--mesh", string(st.Mesh), "--vkey", keyFile)
		var v api.Verdict
		if err != nil || r.Code != 0 || json.Unmarshal([]byte(r.Stdout), &v) != nil || !v.OK || v.Records < c.Size || len(v.Checkpoint.Signers) != 3 {
			t.Fatalf("an outsider finds: %v, %+v", err, r)
		}
	}
	// What it saw is replaced by a checkpoint that a voter did sign, of another history.
	seen := filepath.Join(outsider.Dir, "seen", string(c.Origin[len("pcm.jointcloud/"):])+".checkpoint")
	if err := os.WriteFile(seen, falseHead(t, m.Peer("bert"), c), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err = outsider.CLI(t.Context(), "ledger", "verify", "--from", prefix["anna"])
	if err != nil || r.Code != 1 || !strings.Contains(r.Stdout, "two histories") {
		t.Errorf("a second history: %v, %+v", err, r)
	}
	if kept, _ := filepath.Glob(filepath.Join(outsider.Dir, "evidence", "*", "*")); len(kept) != 2 {
		t.Errorf("evidence: %v", kept)
	}

	trades, err := carl.Trades(t.Context(), api.Query{Job: job.ID})
	if err != nil || len(trades.Items) == 0 {
		t.Fatal(err)
	}
	proof := filepath.Join(dir, "proof")
	if r := carl.PCM("ledger", "proof", string(trades.Items[0].ID), "-f", proof); r.Code != 0 {
		t.Fatalf("proof: %+v", r)
	}
	m.Peer("anna").PCM("down")
	r, err = outsider.CLI(t.Context(), "ledger", "verify-proof", proof, "--vkey", keyFile)
	if err != nil || r.Code != 0 || !strings.Contains(r.Stdout, "award") || !strings.Contains(r.Stdout, "settle") {
		t.Errorf("verify-proof: %v, %+v", err, r)
	}
	if r, _ := outsider.CLI(t.Context(), "ledger", "verify-proof", proof); r.Code != 1 || !strings.Contains(r.Stdout, "--vkey") {
		t.Errorf("verify-proof without keys: %+v", r)
	}
	raw, err := os.ReadFile(proof)
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(raw, []byte("extra ")) + 100
	raw[i] ^= 3 // another letter of base64
	if err := os.WriteFile(proof, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if r, _ := outsider.CLI(t.Context(), "ledger", "verify-proof", proof, "--vkey", keyFile); r.Code == 0 {
		t.Errorf("a changed proof is good: %+v", r)
	}
}

// falseHead signs another root with a peer's note key: what a voter does that lies.
func falseHead(t *testing.T, p *nodetest.Peer, c tlog.Checkpoint) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(p.Dir, "note.key"))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(p.Dir, "note.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("note.key: %v, %v", info.Mode(), err)
	}
	seed, err := hex.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	key, err := pcm.KeyFromSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	cell, _ := c.Cell()
	c.Root[7] ^= 1
	return tlog.NewSigner(cell, key).Sign(c)
}

// TestVoterThatLostItsMemory: a voter whose note of what it signed is gone signs
// again, with the same key, when the others have shown what was signed. A voter
// that signed another history raises the alarm at all who hear of it, signs
// nothing more, and the others go on without it.
func TestVoterThatLostItsMemory(t *testing.T) {
	t.Parallel()
	m := nodetest.New(t,
		nodetest.Spec{Name: "anna", Config: nodetest.Bare("0.001", 0)},
		nodetest.Spec{Name: "bert", Config: nodetest.Bare("0.002", 0)},
		nodetest.Spec{Name: "carl", Config: nodetest.Buyer},
	)
	anna, bert, carl := m.Peer("anna"), m.Peer("bert"), m.Peer("carl")
	var keys []tlog.Key
	nodetest.Eventually(t, "all voters have keys", func(context.Context) error {
		if keys = keysOf(t, carl); len(keys) != 3 {
			return fmt.Errorf("%d have", len(keys))
		}
		return nil
	})
	c, _ := awaitCheckpoint(t, carl, keys, 1)
	signed := filepath.Join(bert.Dir, "checkpoints", "signed")

	bert.Kill()
	if err := os.Remove(signed); err != nil {
		t.Fatal(err)
	}
	bert.Up()
	carl.Done(carl.Send(nodetest.Command(1, "true"), "").ID)
	again, _ := awaitCheckpoint(t, carl, keys, c.Size+1)
	var last tlog.Checkpoint
	nodetest.Eventually(t, "bert notes what it signed", func(context.Context) error {
		raw, err := os.ReadFile(signed)
		if err != nil {
			return err
		}
		if last, err = tlog.ParseCheckpoint(raw); err != nil {
			return nodetest.Final(err)
		}
		if last.Size < c.Size {
			return fmt.Errorf("%d records", last.Size)
		}
		return nil
	})

	bert.Kill()
	forged := falseHead(t, bert, again)
	if err := os.WriteFile(signed, forged, 0o600); err != nil {
		t.Fatal(err)
	}
	bert.Up()
	carl.Done(carl.Send(nodetest.Command(1, "true"), "").ID)
	for _, p := range []*nodetest.Peer{bert, m.Leader()} {
		nodetest.Eventually(t, p.Name+" raises the alarm", func(ctx context.Context) error {
			if _, err := p.LogFile(ctx, cellOf(t, p), "checkpoint", tlog.MaxCheckpoint); err != nil && pcm.ErrorCode(err) != pcm.Unavailable {
				return err
			}
			st, err := p.Status(ctx)
			if err != nil {
				return err
			}
			if !strings.Contains(strings.Join(st.Warnings, "\n"), "ALARM") {
				return fmt.Errorf("it warns of %q", st.Warnings)
			}
			return nil
		})
		kept, err := filepath.Glob(filepath.Join(p.Dir, "evidence", "*", "a.checkpoint"))
		if err != nil || len(kept) != 1 {
			t.Fatalf("evidence of %s: %v, %v", p.Name, kept, err)
		}
		if raw, err := os.ReadFile(kept[0]); err != nil || !bytes.Equal(raw, forged) {
			t.Errorf("evidence of %s: %s, %v", p.Name, raw, err)
		}
	}
	rest := awaySigner(t, bert, keys)
	head, note := awaitCheckpoint(t, anna, rest, again.Size+1)
	if _, by, err := tlog.Open(note, keys); err != nil || len(by) != 2 {
		t.Errorf("at %d records %d have signed, %v", head.Size, len(by), err)
	}
	if raw, err := os.ReadFile(signed); err != nil || !bytes.Equal(raw, forged) {
		t.Errorf("bert has signed since: %s, %v", raw, err)
	}
}

// awaySigner is some keys without that of one peer.
func awaySigner(t *testing.T, p *nodetest.Peer, keys []tlog.Key) (rest []tlog.Key) {
	t.Helper()
	probe := falseHead(t, p, tlog.Checkpoint{Origin: pcm.LogOrigin(cellOf(t, p)), Size: 1})
	for _, k := range keys {
		if _, by, err := tlog.Open(probe, []tlog.Key{k}); err == nil && len(by) == 0 {
			rest = append(rest, k)
		}
	}
	if len(rest) != len(keys)-1 {
		t.Fatalf("%d of %d keys are others'", len(rest), len(keys))
	}
	return rest
}

// TestLogListener: outsiders get the log with the right headers, and nothing else.
func TestLogListener(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it starts real peers")
	}
	m := nodetest.New(t, nodetest.Spec{Name: "anna", Config: nodetest.Bare("0.001", 0) + listens})
	anna := m.Peer("anna")
	prefix := logURL(t, anna)
	keys := keysOf(t, anna)
	nodetest.Eventually(t, "the voter has a key", func(context.Context) error {
		if keys = keysOf(t, anna); len(keys) != 1 {
			return fmt.Errorf("none")
		}
		return nil
	})
	c, _ := awaitCheckpoint(t, anna, keys, 1)
	site := prefix[:strings.Index(prefix, "/v1/")]
	do := func(method, url string, header http.Header, body string) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = header
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	partial := fmt.Sprintf("tile/0/000.p/%d", min(c.Size, 255))
	for _, want := range []struct {
		method, url, body string
		status            int
		contentType, keep string
	}{
		{"GET", prefix + "checkpoint", "", 200, "text/plain; charset=utf-8", "no-cache"},
		{"GET", prefix + "vkeys", "", 200, "text/plain; charset=utf-8", "no-cache"},
		{"GET", prefix + partial, "", 200, "application/octet-stream", "public, max-age=31536000, immutable"},
		{"HEAD", prefix + partial, "", 200, "application/octet-stream", "public, max-age=31536000, immutable"},
		{"GET", prefix + strings.Replace(partial, "/0/", "/entries/", 1), "", 200, "application/octet-stream", "public, max-age=31536000, immutable"},
		{"GET", prefix + "tile/0/000", "", 404, "application/json", "no-store"},
		{"GET", prefix + "tile/0/999.p/1", "", 404, "application/json", "no-store"},
		{"GET", prefix + "tile/0/0.p/1", "", 404, "application/json", "no-store"},
		{"GET", prefix + "tile/entries/x999/x999/x999/x999/x999/x999/999", "", 404, "application/json", "no-store"},
		{"GET", prefix + "tile/../checkpoint", "", 200, "text/plain; charset=utf-8", "no-cache"}, // clients clean paths
		{"GET", site + "/v1/cells/cell-aaaaaaaaaaaaaaaa/log/checkpoint", "", 404, "application/json", "no-store"},
		{"GET", site + "/v1/status", "", 404, "application/json", "no-store"},
		{"GET", site + "/metrics", "", 404, "application/json", "no-store"},
		{"GET", site + "/", "", 404, "application/json", "no-store"},
		{"POST", site + "/v1/down", "", 404, "application/json", "no-store"},
		{"POST", prefix + "checkpoint", "", 405, "application/json", "no-store"},
		{"GET", prefix + "checkpoint", "a body", 400, "application/json", "no-store"},
	} {
		r := do(want.method, want.url, http.Header{}, want.body)
		if r.StatusCode != want.status || r.Header.Get("Content-Type") != want.contentType || r.Header.Get("Cache-Control") != want.keep {
			t.Errorf("%s %s: %s, %q, %q", want.method, want.url, r.Status, r.Header.Get("Content-Type"), r.Header.Get("Cache-Control"))
		}
	}
	nodetest.Eventually(t, "a checkpoint that stays", func(context.Context) error {
		tag := do("GET", prefix+"checkpoint", http.Header{}, "").Header.Get("ETag")
		if r := do("GET", prefix+"checkpoint", http.Header{"If-None-Match": {tag}}, ""); tag == "" || r.StatusCode != http.StatusNotModified {
			return fmt.Errorf("with tag %s: %s", tag, r.Status)
		}
		return nil
	})
}
