package nodetest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jointcloud/pcm/ledger/tlog"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

func ownCell(ctx context.Context, p *nodetest.Peer) (api.Cell, error) {
	cells, err := p.Cells(ctx)
	if err != nil || len(cells.Items) == 0 {
		return api.Cell{}, fmt.Errorf("no cell: %w", err)
	}
	return cells.Items[0], nil
}

func verdictOf(t *testing.T, p *nodetest.Process, args ...string) (v api.Verdict, r nodetest.Result) {
	t.Helper()
	r, err := p.CLI(t.Context(), append([]string{"ledger", "verify", "-o", "json"}, args...)...)
	if err != nil || json.Unmarshal([]byte(r.Stdout), &v) != nil {
		t.Fatalf("verify %v: %v, %+v", args, err, r)
	}
	return v, r
}

// TestKeep: a cell agrees to keep its records for some seconds. Peers with an archive
// move older ones there, the one without keeps them and says so. The ledger verifies
// from a base, and with the archive from the founding, by us and by others' tool; killed
// peers go on. Without its archive a peer says what it lacks, and where that is.
func TestKeep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	archive := filepath.Join(dir, "archive")
	with := listens + "ledger_archive: " + archive + "\n"
	m := nodetest.New(t,
		nodetest.Spec{Name: "anna", Config: nodetest.Bare("0.002", 0) + with},
		nodetest.Spec{Name: "bert", Config: nodetest.Bare("0.001", 0) + with}, // the same folder
		nodetest.Spec{Name: "carl", Config: nodetest.Buyer + listens},
	)
	anna, bert, carl := m.Peer("anna"), m.Peer("bert"), m.Peer("carl")
	var keys []tlog.Key
	nodetest.Eventually(t, "all voters have keys", func(context.Context) error {
		if keys = keysOf(t, carl); len(keys) != 3 {
			return fmt.Errorf("%d have", len(keys))
		}
		return nil
	})
	nodetest.Eventually(t, "two of three accounts agree on how long to keep", func(ctx context.Context) error {
		for _, p := range []*nodetest.Peer{anna, bert} {
			if s, err := p.SetCell(ctx, "keep", "4s"); err != nil {
				return err
			} else if s.Value == "4s" {
				return nil
			}
		}
		return fmt.Errorf("not yet")
	})
	first := carl.Done(carl.Send(nodetest.Command(40, "echo $PCM_TASK_INDEX"), "").ID)
	const removed = 512
	nodetest.Eventually(t, "two bundles are removed", func(ctx context.Context) error {
		carl.Done(carl.Send(nodetest.Command(20, "true"), "").ID)
		for _, p := range []*nodetest.Peer{anna, bert} {
			if c, err := ownCell(ctx, p); err != nil || c.Removed < removed {
				return fmt.Errorf("%s has removed %d of %d: %v", p.Name, c.Removed, c.Records, err)
			}
		}
		return nil
	})
	if c, err := ownCell(t.Context(), carl); err != nil || c.Removed != 0 {
		t.Errorf("carl, without an archive, has removed %d: %v", c.Removed, err)
	}
	if r := carl.PCM("doctor"); !strings.Contains(r.Stdout, "ledger_archive") {
		t.Errorf("carl's doctor: %+v", r)
	}
	if r := anna.PCM("cell", "status"); !strings.Contains(r.Stdout, archive) {
		t.Errorf("anna's cell: %+v", r)
	}
	if len(carl.PCM("ledger", "verify").Stdout) == 0 {
		t.Error("carl verifies nothing")
	}

	// A kill at whatever it does, and it goes on; the archive stays whole.
	for range 2 {
		anna.Kill()
		anna.Up()
		carl.Done(carl.Send(nodetest.Command(20, "true"), "").ID)
	}
	nodetest.Eventually(t, "anna verifies from a base", func(ctx context.Context) error {
		v, err := anna.Verify(ctx)
		if err != nil || !v.OK || v.Base == nil || v.Base.Removed < removed {
			return fmt.Errorf("%v: %+v", err, v)
		}
		return nil
	})
	keyFile := filepath.Join(dir, "keys")
	if err := os.WriteFile(keyFile, []byte(carl.PCM("ledger", "vkeys").Stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, r := verdictOf(t, anna.Process, "--archive", archive); !v.OK || v.Base != nil || v.Records < removed {
		t.Errorf("from the founding: %+v", r)
	}
	c, _ := awaitCheckpoint(t, carl, keys, removed)
	fsck := fsckProgram(t)
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte(keys[0].String()), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), fsck, "--ui=false", "--logtostderr", "--storage_url", logURL(t, anna), "--public_key", key).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("Successfully fsck'd log")) || bytes.Contains(out, []byte("fsck failed")) {
		t.Errorf("fsck: %v\n%s", err, out)
	}
	trades, err := carl.Trades(t.Context(), api.Query{Job: first.ID})
	if err != nil || len(trades.Items) == 0 {
		t.Fatal(err)
	}
	trade, proof := string(trades.Items[0].ID), filepath.Join(dir, "proof")
	if r := anna.PCM("ledger", "proof", trade, "-f", proof); r.Code != 0 {
		t.Errorf("a proof from the archive: %+v", r)
	}
	if r := carl.PCM("ledger", "verify-proof", proof, "--vkey", keyFile); r.Code != 0 {
		t.Errorf("it is not good: %+v", r)
	}

	// Without its archive.
	before := logURL(t, anna)
	if r := anna.PCM("down"); r.Code != 0 {
		t.Fatalf("%+v", r)
	}
	<-anna.Ended()
	anna.Up("--ledger-archive", "")
	m.AwaitWhole()
	url := before
	nodetest.Eventually(t, "anna's log is served again", func(context.Context) error {
		if url = logURL(t, anna); url == before {
			return fmt.Errorf("still at %s", url)
		}
		return nil
	})
	for path, want := range map[string]int{"tile/entries/000": 503, "tile/0/000": 200, "tile/entries/999": 404, "base": 200, "checkpoint": 200} {
		resp, err := http.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %s, want %d", path, resp.Status, want)
		}
	}
	outsider := func(name string) *nodetest.Process {
		return &nodetest.Process{Binary: carl.Binary, Name: name, Dir: filepath.Join(dir, name), Log: filepath.Join(dir, name+".log")}
	}
	if v, r := verdictOf(t, outsider("one"), "--from", url, "--vkey", keyFile); !v.OK || v.Base == nil || v.Records < c.Size {
		t.Errorf("from the base, with keys: %+v", r)
	}
	if v, r := verdictOf(t, outsider("two"), "--from", url); v.OK || r.Code != 1 || !strings.Contains(v.Problem, "--vkey") {
		t.Errorf("from the base, without keys: %+v", r)
	}
	if v, r := verdictOf(t, outsider("three"), "--from", url, "--archive", archive); !v.OK || v.Base != nil {
		t.Errorf("from the founding, with the archive: %+v", r)
	}
	if v, r := verdictOf(t, outsider("three"), "--from", url); !v.OK || v.Base == nil {
		t.Errorf("from the base, by who saw the log before: %+v", r)
	}
	if r := anna.PCM("ledger", "proof", trade, "-f", proof); r.Code == 0 || !strings.Contains(r.Stderr, "--archive") {
		t.Errorf("a proof without the archive: %+v", r)
	}
	if r := anna.PCM("ledger", "proof", trade, "-f", proof, "--archive", archive); r.Code != 0 {
		t.Errorf("a proof with the archive: %+v", r)
	}
	some, all := anna.PCM("ledger", "export"), anna.PCM("ledger", "export", "--archive", archive)
	if some.Code != 0 || all.Code != 0 || !strings.Contains(some.Stderr, "--archive") || strings.HasPrefix(some.Stdout, `{"id":"0"`) || !strings.HasPrefix(all.Stdout, `{"id":"0"`) {
		t.Errorf("export: %d and %d bytes, %q", len(some.Stdout), len(all.Stdout), some.Stderr)
	}
	if r := anna.PCM("ledger", "records"); r.Code == 0 || !strings.Contains(r.Stderr, "removed here") {
		t.Errorf("records: %+v", r)
	}
	// A bundle of the archive that was changed is not served as true.
	bundle := filepath.Join(archive, string(cellOf(t, bert)), "tile", "entries", "000")
	raw, err := os.ReadFile(bundle)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(bundle, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(logURL(t, bert) + "tile/entries/000")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 503 {
		t.Errorf("a changed bundle: %s", resp.Status)
	}
}
