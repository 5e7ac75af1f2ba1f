package node

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger/tlog"
)

// alone opens a peer that founds a mesh and is its cell's one voter, and runs it
// until the test ends or stop is called.
func alone(t *testing.T, dir string) (n *Node, stop func()) {
	t.Helper()
	n, err := Open(t.Context(), Config{
		Dir: dir, Name: "alone", Listen: []string{"/ip4/127.0.0.1/tcp/0"}, StoreQuota: 1 << 20, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the node ended: %v", err)
		}
	}
	t.Cleanup(stop)
	return n, stop
}

// awaitSigned waits for a checkpoint of the whole ledger that this peer has signed.
func awaitSigned(t *testing.T, g *transparency) (tlog.Checkpoint, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		note, err := g.checkpoint(ctx, true)
		if err == nil {
			keys, _ := g.keys()
			c, by, err := tlog.Open(note, keys)
			if err != nil {
				t.Fatal(err)
			}
			if len(by) == 1 && c == g.tree().Head() {
				return c, note
			}
		}
		if !pause(ctx, 20*time.Millisecond) {
			t.Fatalf("no signed checkpoint: %v", err)
		}
	}
}

// record makes the ledger one record longer.
func record(t *testing.T, n *Node) {
	t.Helper()
	n.incarnation++
	if _, err := n.must(t.Context(), pcm.Op{Renew: &pcm.Renew{Incarnation: n.incarnation}}); err != nil {
		t.Fatal(err)
	}
}

// What is signed is noted first, and is never less than before; another root at
// a size, a smaller size, or a ledger that is not the one that was signed: nothing.
func TestSignsOnlyWhatFollows(t *testing.T) {
	n, _ := alone(t, t.TempDir())
	g := n.glass
	before, _ := awaitSigned(t, g)
	record(t, n)
	c, _ := awaitSigned(t, g)
	if c.Size <= before.Size {
		t.Fatalf("signed %d records after %d", c.Size, before.Size)
	}
	onDisk, err := g.load(signedFile)
	if err != nil || !bytes.Equal(onDisk, g.lastSigned()) {
		t.Fatalf("what is noted is not what was signed: %v", err)
	}
	if got, _ := tlog.ParseCheckpoint(onDisk); got != c {
		t.Fatalf("noted: %+v, signed: %+v", got, c)
	}
	if _, err := g.sign(t.Context(), before); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("a smaller checkpoint: %v", err)
	}
	other := c
	other.Root[0] ^= 1
	if _, err := g.sign(t.Context(), other); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("another root: %v", err)
	}
	beyond := c
	beyond.Size += 100
	if _, err := g.sign(t.Context(), beyond); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("records that are not here: %v", err)
	}
	if after, _ := g.load(signedFile); !bytes.Equal(after, onDisk) {
		t.Error("a refusal changed what is noted")
	}
	if len(g.alarms.warnings()) != 0 {
		t.Error("an unsigned claim raised the alarm")
	}
	// The disk gives no durable note: no signature leaves.
	record(t, n)
	dir := g.dir
	g.dir = filepath.Join(dir, "missing")
	if note, err := g.sign(t.Context(), g.tree().Head()); err == nil {
		t.Errorf("signed without a note: %s", note)
	}
	g.dir = dir
	// It signed something else, or more than there is: the folder was restored or tampered with.
	forged := g.tree().Head()
	forged.Root[5] ^= 1
	if err := g.remember(g.signer.Sign(forged)); err != nil {
		t.Fatal(err)
	}
	record(t, n)
	if _, err := g.sign(t.Context(), g.tree().Head()); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("a ledger that is not the signed one: %v", err)
	}
	if w := g.alarms.warnings(); len(w) != 1 || !strings.Contains(w[0], "two histories") {
		t.Errorf("warnings: %q", w)
	}
	st, err := n.Status(t.Context())
	if err != nil || !strings.Contains(strings.Join(st.Warnings, "\n"), "ALARM") {
		t.Errorf("status warns of %q, %v", st.Warnings, err)
	}
	if v, err := n.Verify(t.Context()); err != nil || v.OK {
		t.Errorf("the ledger is found good: %+v, %v", v, err)
	}
	more := g.tree().Head()
	more.Size += 50
	if err := g.remember(g.signer.Sign(more)); err != nil {
		t.Fatal(err)
	}
	if _, err := g.sign(t.Context(), g.tree().Head()); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("less than was signed before: %v", err)
	}
}

// After a restart a peer goes on from what it signed. A lone voter that lost it
// makes another key, and the ledger says so: the old key signs nothing more.
func TestSigningAfterRestart(t *testing.T) {
	dir := t.TempDir()
	n, stop := alone(t, dir)
	c, note := awaitSigned(t, n.glass)
	key := n.glass.signer.Key
	stop()

	n, stop = alone(t, dir)
	again, _ := awaitSigned(t, n.glass)
	if n.glass.signer.Key.String() != key.String() || again.Size < c.Size {
		t.Fatalf("after a restart: key %s, %d records after %d", n.glass.signer.Key, again.Size, c.Size)
	}
	if _, err := n.glass.accept(t.Context(), note); err != nil {
		t.Errorf("the checkpoint from before the restart: %v", err)
	}
	stop()

	if err := os.Remove(filepath.Join(dir, checkpointsDir, signedFile)); err != nil {
		t.Fatal(err)
	}
	n, _ = alone(t, dir)
	_, note = awaitSigned(t, n.glass)
	if now := n.glass.signer.Key; now.String() == key.String() {
		t.Error("it signs with the key with which it may have signed anything")
	}
	if _, by, err := tlog.Open(note, []tlog.Key{key}); err != nil || len(by) > 0 {
		t.Errorf("the old key has signed: %v, %v", by, err)
	}
}

// Another peer's checkpoint counts only with a key that the ledger binds, and
// raises the alarm if it contradicts this ledger. Evidence survives a restart.
func TestSecondHistoryRaisesAlarm(t *testing.T) {
	dir := t.TempDir()
	n, stop := alone(t, dir)
	g := n.glass
	c, _ := awaitSigned(t, g)
	stranger := tlog.NewSigner(n.id.Mesh.Cell, pcm.NewKey())
	forged := c
	forged.Root[31] ^= 0x80
	for name, bad := range map[string][]byte{
		"by a stranger":    stranger.Sign(forged),
		"unsigned nothing": []byte(tlog.Checkpoint{Origin: c.Origin, Root: forged.Root}.Text() + "\n— x AAAAAAAA\n"),
		"rubbish":          []byte("rubbish"),
		"of another cell":  tlog.NewSigner("cell-aaaaaaaaaaaaaaaa", pcm.NewKey()).Sign(tlog.Checkpoint{Origin: pcm.LogOrigin("cell-aaaaaaaaaaaaaaaa"), Size: c.Size, Root: forged.Root}),
	} {
		if _, err := g.accept(t.Context(), bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if len(g.alarms.warnings()) != 0 {
		t.Fatalf("strangers raised the alarm: %q", g.alarms.warnings())
	}
	for range 2 { // one case, however often it is shown
		if _, err := g.accept(t.Context(), g.signer.Sign(forged)); pcm.ErrorCode(err) != pcm.Conflict {
			t.Fatalf("a second history: %v", err)
		}
	}
	if len(g.alarms.warnings()) != 1 {
		t.Fatalf("warnings: %q", g.alarms.warnings())
	}
	cases, err := filepath.Glob(filepath.Join(dir, evidenceDir, "*", "*.checkpoint"))
	if err != nil || len(cases) != 2 {
		t.Fatalf("evidence: %v, %v", cases, err)
	}
	heads := map[tlog.Checkpoint]bool{}
	for _, path := range cases {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		head, by, err := tlog.Open(data, []tlog.Key{g.signer.Key})
		if err != nil || len(by) != 1 {
			t.Errorf("%s does not show who signed it: %v", path, err)
		}
		heads[head] = true
	}
	if !heads[c] || !heads[forged] {
		t.Errorf("the evidence is %v", heads)
	}
	stop()
	n, _ = alone(t, dir)
	if len(n.glass.alarms.warnings()) != 1 {
		t.Error("a restart silences the alarm")
	}
}

// A ledger that is replaced by another one with the same peers does not go on
// from what was seen.
func TestLedgerIsHeldAgainstWhatWasSeen(t *testing.T) {
	dir := t.TempDir()
	n, stop := alone(t, dir)
	c, _ := awaitSigned(t, n.glass)
	forged := c
	forged.Size--
	forged.Root[0] ^= 1
	seen := n.glass.signer.Sign(forged)
	stop()
	if err := os.WriteFile(filepath.Join(dir, checkpointsDir, seenFile), seen, 0o600); err != nil {
		t.Fatal(err)
	}
	n, _ = alone(t, dir)
	awaitSigned(t, n.glass)
	if len(n.glass.alarms.warnings()) != 1 {
		t.Errorf("warnings: %q", n.glass.alarms.warnings())
	}
}

// An outsider finds whatever is changed in what a server shows.
func TestAudit(t *testing.T) {
	n, _ := alone(t, t.TempDir())
	g := n.glass
	awaitSigned(t, g)
	for range 300 { // more than a tile
		record(t, n)
	}
	c, note := awaitSigned(t, g)
	source := func(note []byte, change func(tlog.Tile, []byte)) AuditSource {
		return AuditSource{
			Checkpoint: func(context.Context) ([]byte, error) { return note, nil },
			Read: func(ctx context.Context, at tlog.Tile) ([]byte, error) {
				data, err := g.read(ctx, at)
				if err == nil && change != nil {
					change(at, data)
				}
				return data, err
			},
		}
	}
	audit := func(src AuditSource, pins Pins) (string, bool) {
		t.Helper()
		v, split, err := Audit(t.Context(), src, pins)
		if err != nil {
			return err.Error(), split
		}
		if v.OK != (v.Problem == "") || v.OK && (v.Records != c.Size || v.Checkpoint == nil || len(v.Checkpoint.Signers) != 1) {
			t.Errorf("verdict %+v", v)
		}
		return v.Problem, split
	}
	older := tlog.Checkpoint{Origin: c.Origin, Size: 17}
	older.Root, _ = g.tree().Root(t.Context(), 17)
	good := Pins{Mesh: n.id.Mesh.Mesh, Keys: []tlog.Key{g.signer.Key}, Seen: g.signer.Sign(older)}
	if why, split := audit(source(note, nil), good); why != "" || split {
		t.Fatalf("a good log: %s", why)
	}
	wrongRoot := c
	wrongRoot.Root[0] ^= 1
	fewer := older
	strangers := tlog.NewSigner(n.id.Mesh.Cell, pcm.NewKey())
	parted := older
	parted.Root[3] ^= 1
	ahead := c
	ahead.Size += 9
	for name, bad := range map[string]struct {
		src   AuditSource
		pins  Pins
		why   string
		split bool
	}{
		"entry changed": {source(note, func(at tlog.Tile, b []byte) {
			if at.Entries && at.Index == 1 {
				b[40] ^= 1
			}
		}), good, "entry 256", false},
		"tile changed": {source(note, func(at tlog.Tile, b []byte) {
			if !at.Entries && at.Level == 0 && at.Index == 0 {
				b[64] ^= 1
			}
		}), good, "tile", false},
		"another root":     {source(g.signer.Sign(wrongRoot), nil), good, "tile", false},
		"a stranger signs": {source(strangers.Sign(c), nil), good, "signed by 0 of the 1", false},
		"another mesh":     {source(note, nil), Pins{Mesh: "mesh-aaaaaaaaaaaaaaaa"}, "not of mesh-aaaaaaaaaaaaaaaa", false},
		"another key":      {source(note, nil), Pins{Keys: []tlog.Key{strangers.Key}}, "signed by 0 of the 1 keys", false},
		"two histories":    {source(note, nil), Pins{Seen: g.signer.Sign(parted)}, "two histories", true},
		"reset":            {source(note, nil), Pins{Seen: g.signer.Sign(ahead)}, "fewer than", false},
		"cut off":          {source(g.signer.Sign(fewer), nil), Pins{Seen: note}, "fewer than", false},
	} {
		why, split := audit(bad.src, bad.pins)
		if !strings.Contains(why, bad.why) || split != bad.split {
			t.Errorf("%s: %q (split %v)", name, why, split)
		}
	}
}
