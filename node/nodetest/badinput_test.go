package nodetest_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/adaptertest/require"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

// Bad input meets a clear error and loses nothing. What a part can show alone is
// tested there; here stands what takes a whole peer:
//
//	unknown field, wrong unit, negative count   TestParseSpecFaults (root), TestRefusedJobs
//	class nobody offers                         TestRefusedJobs; filters: node/placement
//	input missing, or leading out by symlink    TestRefusedJobs, TestImportRefuses (mesh/artifact)
//	output over its cap                         TestOutputCap
//	expired, used or foreign token, second use  TestJoinRefusals (mesh), TestTokens
//	port taken                                  TestPortTaken (mesh), TestRefusedStarts
//	data folder of another mesh                 TestRefusedStarts
//	corrupt or cut-short Bolt or Badger file    TestDamagedFiles (consensus), TestDamagedFolder
//	full disk                                   TestFullDisk (mesh/artifact), TestDiskFull
//	clock an hour off                           TestOpenOffer, TestPassportChain (root), TestLogTimeIgnoresWallClock (consensus)
//	peer of another protocol version            TestOtherVersionIsRefused (mesh)
//	message of 100 MB on any protocol           TestHugeMessages (mesh), TestHostileStreams (consensus), TestServeBounds (mesh/artifact)
//	spec of 10 MB                               TestRefusedJobs, TestLargeBody (node/api)
//	API without token                           TestGuard (node/api), TestRefusedJobs

// TestRefusedJobs: a job that can't be right is refused with what is wrong, and
// leaves nothing behind.
func TestRefusedJobs(t *testing.T) {
	t.Parallel()
	m := nodetest.New(t, nodetest.Spec{Name: "anna", Config: nodetest.Seller("0.001")})
	anna := m.Peer("anna")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "tree", "a.txt"), "a")
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "tree", "out")); err != nil {
		t.Fatal(err)
	}
	spec := func(body string) string { return "name: bad\nsteps:\n  - command: [\"true\"]\n" + body }
	for _, c := range []struct {
		name, spec string
		code       int
		want       string // regular expression
	}{
		{"unknown field", spec("    comand: [x]\n"), 2, `bad\.yaml:4:5: steps\[0\]\.comand.*command`},
		{"wrong unit", spec("    resources: {memory: 64 MegaBytes}\n"), 2, `bad\.yaml:4:\d+: steps\[0\]\.resources.*64 MegaBytes.*64MiB`},
		{"wrong time", spec("    time_limit: 5 minutes\n"), 2, `time_limit.*5 minutes.*10m`},
		{"negative count", spec("    count: -3\n"), 2, `bad\.yaml:4:\d+: steps\[0\]\.count.*-3`},
		{"unknown class", spec("    class: gpu.huge\n"), 2, `class.*gpu\.huge.*cpu\.small`},
		{"unknown strategy", "strategy: luckiest\n" + spec(""), 2, `luckiest.*cheapest`},
		{"input missing", spec("    inputs: [{source: nowhere}]\n"), 3, `nowhere.*(no such file|does not exist)`},
		{"input leads out", spec("    inputs: [{source: tree}]\n"), 2, `tree.*out.*(link|leads)`},
		{"output leads out", spec("    outputs: [../../etc]\n"), 2, `outputs\[0\].*\.\./\.\./etc`},
		{"not YAML", "name: [", 2, `bad\.yaml:1`},
		{"10 MB", "name: " + strings.Repeat("x", 10<<20) + "\n", 3, `bad\.yaml is over the bound`},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(dir, "bad.yaml")
			write(t, file, c.spec)
			cmd := anna.Command(t.Context(), "job", "run", file)
			r, err := nodetest.Run(cmd)
			if err != nil {
				t.Fatal(err)
			}
			if r.Code != c.code || !regexp.MustCompile(`(?s)`+c.want).MatchString(r.Stderr) {
				t.Errorf("status %d, want %d: %.600s", r.Code, c.code, r.Stderr)
			}
			if len(r.Stderr) > 4096 {
				t.Errorf("the message has %d bytes", len(r.Stderr))
			}
		})
	}

	t.Run("straight to the API", func(t *testing.T) {
		addr := strings.TrimSpace(read(t, anna.Dir, api.AddrFile))
		token := strings.TrimSpace(read(t, anna.Dir, api.TokenFile))
		for _, c := range []struct {
			name, token string
			body        io.Reader
			status      int
		}{
			{"no token", "", strings.NewReader(`{"spec":{"steps":[{"command":["true"]}]}}`), http.StatusUnauthorized},
			{"wrong token", token[:len(token)-1] + "!", strings.NewReader(`{"spec":{"steps":[{"command":["true"]}]}}`), http.StatusUnauthorized},
			{"10 MB", token, strings.NewReader(`{"spec":{"name":"` + strings.Repeat("x", 10<<20) + `"}}`), http.StatusRequestEntityTooLarge},
		} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+"/v1/jobs", c.body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			if c.token != "" {
				req.Header.Set("Authorization", "Bearer "+c.token)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != c.status || !bytes.Contains(body, []byte(`"message"`)) {
				t.Errorf("%s: %s %.300s %v", c.name, resp.Status, body, err)
			}
		}
	})

	if jobs, err := anna.Jobs(t.Context(), api.Query{}); err != nil || len(jobs.Items) != 0 {
		t.Errorf("jobs %+v, %v", jobs.Items, err)
	}
	anna.Done(anna.Send(nodetest.Command(1, "true"), "").ID)
	m.Verify()
}

// TestOutputCap: a task that writes more than the seller keeps is ended, says so,
// and the peer goes on.
func TestOutputCap(t *testing.T) {
	t.Parallel()
	config := strings.Replace(nodetest.Seller("0.001"), "adapters:\n", "adapters:\n  max_output: 1MiB\n", 1)
	m := nodetest.New(t, nodetest.Spec{Name: "anna", Config: config})
	anna := m.Peer("anna")
	for name, script := range map[string]string{
		"stdout": "echo before; yes; echo after",
		"files":  "echo before; yes > big; echo after",
	} {
		s := nodetest.Command(1, script)
		s.Steps[0].Outputs = []string{"big"}
		s.Steps[0].TimeLimit = "30s"
		j := anna.AwaitJob(anna.Send(s, "").ID, "settled", api.Settled)
		task := anna.JobTasks(j.ID)[0]
		if j.State != pcm.JobFailed || !strings.Contains(task.Reason, "1MiB") {
			t.Errorf("%s: job %+v\ntask %+v", name, j, task)
		}
		got := anna.Get(j.ID)
		if _, err := os.Stat(filepath.Join(got, "run/0/out/big")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: what is over the cap was kept: %v", name, err)
		}
		if out := read(t, got, "run/0/stdout"); !strings.HasPrefix(out, "before\n") || len(out) > 1<<20 {
			t.Errorf("%s: stdout has %d bytes", name, len(out))
		}
	}
	anna.Done(anna.Send(nodetest.Command(1, "true"), "").ID)
	m.Verify()
}

// TestTokens: a token lets one peer in, once, for its time, into its mesh.
func TestTokens(t *testing.T) {
	t.Parallel()
	m := nodetest.New(t, nodetest.Spec{Name: "anna", Config: nodetest.Seller("0.001")})
	anna := m.Peer("anna")
	join := func(name, token string) *nodetest.Peer {
		p := m.Add(nodetest.Spec{Name: name, Config: nodetest.Buyer})
		m.Peers = m.Peers[:1]
		if err := p.Start("--join", token); err != nil {
			t.Fatal(err)
		}
		return p
	}
	refused := func(name, token, want string) {
		t.Helper()
		p := join(name, token)
		select {
		case <-p.Ended():
		case <-time.After(30 * time.Second):
			t.Fatalf("%s is not refused: %s", name, p.Tail(5))
		}
		if got := p.Tail(3); p.ExitCode() == 0 || !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s: status %d, %s", name, p.ExitCode(), got)
		}
	}
	ready := func(p *nodetest.Peer) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if err := p.AwaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	token := anna.Token()
	good := join("good", token)
	ready(good)
	refused("second", token, `used|burned`)
	refused("late", forge(t, anna, token, func(inv *pcm.Invite) { inv.NotAfter = time.Now().Add(-pcm.Skew - time.Hour).UnixMilli() }), `expired`)
	refused("foreign", forge(t, good, token, func(inv *pcm.Invite) { inv.Issuer = good.PeerID() }), `may not|issue|root`)
	refused("garbled", token[:len(token)-8]+"AAAAAAAA", `token`)
	refused("nonsense", "pcm1.nonsense", `token`)

	// The peer that used the token may come again with it, in a restart as well.
	good.Kill()
	if err := good.Start("--join", token); err != nil {
		t.Fatal(err)
	}
	ready(good)

	// A member of one mesh isn't drawn into another one by a flag that was left in place.
	other := m.Add(nodetest.Spec{Name: "other", Config: nodetest.Buyer})
	m.Peers = m.Peers[:1]
	other.Up()
	other.Kill()
	if err := other.Start("--join", anna.Token()); err != nil {
		t.Fatal(err)
	}
	<-other.Ended()
	if got := other.Tail(3); other.ExitCode() == 0 || !regexp.MustCompile(`mesh-\w+.*mesh-\w+`).MatchString(got) || !strings.Contains(got, "pcm ") {
		t.Errorf("a data folder of another mesh: status %d, %s", other.ExitCode(), got)
	}
	m.Verify()
}

// forge makes another token out of one, with a secret of its own, signed by a peer.
func forge(t *testing.T, by *nodetest.Peer, token string, change func(*pcm.Invite)) string {
	t.Helper()
	_, inv, err := pcm.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	seed, err := hex.DecodeString(strings.TrimSpace(read(t, by.Dir, "peer.key")))
	if err != nil {
		t.Fatal(err)
	}
	key, err := pcm.KeyFromSeed(seed)
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte(t.Name() + " has a secret of thirty-two bytes")[:32]
	inv.Hash = pcm.DigestOf(secret)
	change(&inv)
	return pcm.Token{Invite: key.Seal(pcm.DomainInvite, inv), Secret: secret}.String()
}

// TestRefusedStarts: what can't start says why, and what runs is not disturbed.
func TestRefusedStarts(t *testing.T) {
	t.Parallel()
	m := nodetest.New(t, nodetest.Spec{Name: "anna", Config: nodetest.Seller("0.001")})
	anna := m.Peer("anna")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	fresh := func() string { return filepath.Join(m.Dir, "fresh") }
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"the same data folder", []string{"--data", anna.Dir, "--api", "127.0.0.1:0"},
			fmt.Sprintf(`data folder .*anna is in use by process %d: stop that node with 'pcm down`, anna.PID())},
		{"the API's port is taken", []string{"--data", fresh(), "--api", taken.Addr().String()}, `taken.*--api`},
		{"the peers' port is taken", []string{"--data", fresh(), "--api", "127.0.0.1:0", "--listen", fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port)},
			fmt.Sprintf(`tcp/%d.*another process has this port.*--listen`, port)},
		{"the data folder is a file", []string{"--data", anna.Config, "--api", "127.0.0.1:0"}, `anna\.yaml.*not a directory`},
		{"an address that is none", []string{"--data", fresh(), "--api", "127.0.0.1:0", "--listen", "127.0.0.1:7419"}, `listen.*127\.0\.0\.1:7419.*/ip4/`},
	} {
		cmd := anna.Command(t.Context(), append([]string{"up"}, c.args...)...)
		cmd.Env = append(cmd.Env, "PCM_DATA=")
		r, err := nodetest.Run(cmd)
		if err != nil {
			t.Fatal(err)
		}
		if r.Code == 0 || !regexp.MustCompile(c.want).MatchString(r.Stderr) {
			t.Errorf("%s: status %d, %s", c.name, r.Code, r.Stderr)
		}
	}
	anna.Done(anna.Send(nodetest.Command(1, "true"), "").ID)
	m.Verify()
}

// TestDamagedFolder: a damaged file is named, with what to do, and not made worse.
func TestDamagedFolder(t *testing.T) {
	t.Parallel()
	m := nodetest.New(t, nodetest.Spec{Name: "anna", Config: nodetest.Seller("0.001")})
	anna := m.Peer("anna")
	j := anna.Done(anna.Send(nodetest.Command(1, "true"), "").ID)
	if _, err := anna.Stop(); err != nil {
		t.Fatal(err)
	}
	halve := func(data []byte) []byte { return data[:len(data)/2] }
	cut := func(data []byte) []byte { return data[:3*4096+100] } // amid the pages that are in use
	scribble := func(data []byte) []byte {
		out := bytes.Clone(data)
		copy(out, bytes.Repeat([]byte("no such thing "), 1024)[:min(len(out), 8192)])
		return out
	}
	for _, c := range []struct {
		file   string // pattern
		damage func([]byte) []byte
	}{
		{"cell/raft.db", cut},
		{"cell/raft.db", scribble},
		{"cell/history/MANIFEST", scribble},
		{"peer.key", halve},
		{"mesh.json", halve},
		{"cell/cell.cbor", halve},
	} {
		path := filepath.Join(anna.Dir, c.file)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		write(t, path, string(c.damage(whole)))
		if err := anna.Start(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-anna.Ended():
		case <-time.After(30 * time.Second):
			t.Fatalf("it runs with a damaged %s", c.file)
		}
		// The history is named as a whole: what is damaged in it is fetched again from others.
		name := strings.TrimSuffix(path, "/MANIFEST")
		if got := anna.Tail(4); anna.ExitCode() <= 0 || !strings.Contains(got, name) || !regexp.MustCompile(`restore|remove|recover|leave`).MatchString(got) {
			t.Errorf("damaged %s: status %d, %s", c.file, anna.ExitCode(), got)
		}
		write(t, path, string(whole))
	}
	anna.Up()
	if again, err := anna.Job(t.Context(), string(j.ID)); err != nil || again.State != pcm.JobDone || again.Paid != j.Paid {
		t.Errorf("the job is %+v, %v", again, err)
	}
	m.Verify()
}

// TestDiskFull: a peer on a full disk says so and sells nothing, loses nothing,
// and sells again when there is room.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	m := nodetest.New(t, nodetest.Spec{Name: "anna", Config: nodetest.Seller("0.002")})
	anna := m.Peer("anna")
	bert := m.Add(nodetest.Spec{Name: "bert", Config: nodetest.Seller("0.001") + "store:\n  reserve: 64MiB\n  quota: 1GiB\n"})
	if err := os.Mkdir(bert.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	require.SmallDisk(t, bert.Dir, "160m")
	t.Cleanup(func() {
		bert.Kill()
		if err := bert.Sweep(); err != nil {
			t.Error(err)
		}
	})
	bert.Up("--join", anna.Token())
	m.AwaitWhole()
	sells := func(want bool) {
		t.Helper()
		nodetest.Eventually(t, fmt.Sprintf("bert sells: %v", want), func(ctx context.Context) error {
			offers, err := anna.Offers(ctx)
			if err != nil {
				return err
			}
			got := false
			for _, o := range offers.Items {
				got = got || o.Name == "bert"
			}
			if got != want {
				return fmt.Errorf("offers %+v", offers.Items)
			}
			return nil
		})
	}
	first := anna.Done(anna.Send(nodetest.Command(1, "echo before"), "").ID)
	filler := filepath.Join(bert.Dir, "filler")
	fill(t, filler)
	sells(false)
	st, err := bert.Status(t.Context())
	if err != nil || !strings.Contains(strings.Join(st.Warnings, "\n"), "free") {
		t.Errorf("its warnings are %q, %v", st.Warnings, err)
	}
	// Work goes to the other seller, though it costs more.
	j := anna.Done(anna.Send(nodetest.Command(2, "echo meanwhile"), "").ID)
	for _, task := range anna.JobTasks(j.ID) {
		if task.SellerName != "anna" {
			t.Errorf("task %+v", task)
		}
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if !bert.Running() {
		t.Logf("the daemon ended: %s", bert.Tail(3))
		bert.Up()
	}
	sells(true)
	last := anna.Done(anna.Send(nodetest.Command(1, "echo after"), "").ID)
	if task := anna.JobTasks(last.ID)[0]; task.SellerName != "bert" {
		t.Errorf("task %+v", task)
	}
	for id, want := range map[pcm.JobID]string{first.ID: "before\n", last.ID: "after\n"} {
		if got := read(t, anna.Get(id), "run/0/stdout"); got != want {
			t.Errorf("%s wrote %q", id, got)
		}
	}
	m.Verify()
}

// fill writes a file until the disk is full.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 1<<20); ; {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
