package generate

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jointcloud/pcm/adapters/adaptertest/require"
	"github.com/jointcloud/pcm/adapters/rest/fake/openi"
	"github.com/jointcloud/pcm/configs"
)

// toolChain is what a language's authors build and test with.
type toolChain struct {
	subject string     // what the matrix calls the project
	needs   [][]string // commands that must succeed
	author  string     // file with the author's region "unsupported"
	line    func(what, why string) string
	states  string // file with the table of states
	steps   [][]string
	checks  [][]string // of a project from a description, when all steps are made
}

var toolChains = map[string]toolChain{
	"python": {
		subject: "generate (Python, openi)",
		needs:   [][]string{{"python3", "-c", "import ensurepip, venv"}},
		author:  "tests/test_conformance.py", states: "src/gen/states.py",
		line: func(what, why string) string { return "    " + what + ": " + why + ",\n" },
		steps: [][]string{
			{"python3", "-m", "venv", ".venv"},
			{".venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", ".[test]"},
			{".venv/bin/ruff", "check"},
			{".venv/bin/pytest", "--quiet"},
		},
		checks: [][]string{{".venv/bin/python", "-c", slowPython}},
	},
	"typescript": {
		subject: "generate (TypeScript, openi)",
		needs:   [][]string{{"node", "--version"}, {"npm", "--version"}},
		author:  "src/conformance.test.ts", states: "src/states.ts",
		line: func(what, why string) string { return "  " + what + ": " + why + ",\n" },
		steps: [][]string{
			{"npm", "ci", "--no-audit", "--no-fund"},
			{"npx", "--no-install", "tsc"},
			{"npm", "test"},
		},
		checks: [][]string{
			{"node", "--input-type=module", "--eval", killedTypeScript},
			{"node", "--input-type=module", "--eval", slowTypeScript},
			{"node", "--input-type=module", "--eval", wordsTypeScript},
		},
	},
}

// killedTypeScript reads the end of a script's output after a restart: numbers that
// were kept come back as bigint.
const killedTypeScript = `
import assert from "node:assert";
import { take } from "./dist/pcm_script.js";
import { decode, encode } from "./dist/pcm_values.js";
const marks = { rest: "", began: false, console: false, ended: false, over: false, fault: "", code: null, cpu: 0, peak: 0, until: 0 };
const a = { note: { nonce: "pcm-x-", marks }, out: "", write(_, data) { this.out += data; } };
take(a, "stdout", Buffer.from("pcm-x-b\nready\n"));
a.note = decode(encode(a.note));
take(a, "stdout", Buffer.from("went on\npcm-x-u 0m0.01s 0m0.02s\npcm-x-x 0\n"));
assert.deepStrictEqual([a.out, a.note.marks.ended, a.note.marks.code], ["ready\nwent on\n", true, 0]);
`

// slowPython and slowTypeScript hold back who reads what an attempt printed: that it runs is told before.
const slowPython = `
import tempfile, threading
from gen import adapter_pb2 as pb
from gen.pcm_attempts import Attempt, Attempts
from gen.pcm_backend import Backend, Seen, State

class Slow(Backend):
    configure = pools = find = start = poll = stop = outputs = remove = None
    reads, go_on = threading.Event(), threading.Event()

    def logs(self, a, ended):
        a.write("stdout", b"first")
        self.reads.set()
        self.go_on.wait()

with tempfile.TemporaryDirectory() as folder:
    b = Slow()
    a = Attempt(Attempts(folder, b, 3600), pb.StartRequest(key="trd-a.0.1"))
    a.known = True
    a.save()
    a.see(Seen(State("pending")))  # which has no output to read
    assert not b.reads.is_set() and a.state.state == pb.STATE_PENDING, a.state
    seeing = threading.Thread(target=a.see, args=(Seen(State("running")),))
    seeing.start()
    b.reads.wait()
    told = a.state
    b.go_on.set()
    seeing.join()
    assert told.state == pb.STATE_RUNNING and told.stdout_bytes == 0, told
    assert a.state.state == pb.STATE_RUNNING and a.state.stdout_bytes == 5, a.state
`

const slowTypeScript = `
import assert from "node:assert";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Attempt, Attempts } from "./dist/pcm_attempts.js";
const folder = mkdtempSync(join(tmpdir(), "slow-"));
let goOn;
const reads = new Promise((begins) => {
  const logs = (a) => {
    a.write("stdout", Buffer.from("first"));
    begins();
    return new Promise((done) => (goOn = done));
  };
  globalThis.a = new Attempt(new Attempts(folder, { logs }, 3600_000), { key: "trd-a.0.1", fence: 1, output_cap_bytes: 0, again: false });
});
try {
  a.known = true;
  a.save();
  await a.see({ state: { state: "pending" } }); // which has no output to read
  assert.deepStrictEqual([a.state.state, goOn], ["STATE_PENDING", undefined]);
  const seen = a.see({ state: { state: "running" } });
  await reads;
  assert.deepStrictEqual([a.state.state, a.state.stdout_bytes, a.size("stdout")], ["STATE_RUNNING", 0, 5]);
  goOn();
  await seen;
  assert.deepStrictEqual([a.state.state, a.state.stdout_bytes], ["STATE_RUNNING", 5]);
} finally {
  rmSync(folder, { recursive: true });
}
`

// wordsTypeScript finds no meaning in words that all objects of JavaScript know.
const wordsTypeScript = `
import assert from "node:assert";
import { Described } from "./dist/pcm_described.js";
const b = new Described({ settings: {}, secrets: {}, watch: { status: { state: (v) => v.job } }, states: { done: { state: "ended", outcome: "ok" } } });
assert.deepStrictEqual(b.seen("done").state, { state: "ended", outcome: "ok", reason: "" });
for (const word of ["constructor", "toString", "__proto__"]) {
  const { state, reason } = b.seen(word).state;
  assert.deepStrictEqual([state, reason], ["running", "its back end calls its state " + word + ", which is not known here"]);
}
await assert.rejects(b.configure({ name: "n", instance: "i", settings: { constructor: "x" }, secrets: {} }), /there is no setting constructor/);
`

// A project passes PCM's suite by the tests that it brings, in its own language's
// tools, and keeps the author's part when it is written again.
func TestToolChains(t *testing.T) {
	for _, lang := range []string{"python", "typescript"} {
		t.Run(lang, func(t *testing.T) {
			c := toolChains[lang]
			if !require.Named(lang) {
				t.Skipf("SKIPPED: it fetches packages of %s, and PCM_TEST_REQUIRE does not name that: 'make test-plugins' does", lang)
			}
			for _, need := range c.needs {
				if out, err := exec.Command(need[0], need[1:]...).CombinedOutput(); err != nil {
					t.Fatalf("%q fails: %v\n%s\n'.ci/backends plugins' installs what is needed", need, err, out)
				}
			}
			c.test(t, lang)
		})
	}
}

func (c toolChain) test(t *testing.T, lang string) {
	cloud := openi.New(openi.Options{
		Dir: t.TempDir(), Username: "pcm", Password: "correct horse", CPU: 64, GPU: 2,
		Specs: []openi.Spec{
			{ID: "cpu-tiny", Name: "a quarter GiB", CPU: 1, Memory: 256 << 20, Price: "0.1"},
			{ID: "cpu-small", Name: "4 GiB", CPU: 1, Memory: 4 << 30, Price: "0.5"},
			{ID: "gpu-a100", Name: "two cards", CPU: 4, Memory: 32 << 30, GPU: 2, GPUName: "nvidia.com/gpu", Price: "25"},
		},
	})
	s := &site{t: t, handler: cloud, address: "127.0.0.1:0"}
	s.start()
	t.Cleanup(func() { s.server.Close(); cloud.Close() })

	text := strings.NewReplacer("rate: 20", "rate: 500", "burst: 40", "burst: 500", "poll: 3s", "poll: 100ms").Replace(string(configs.Adapter("openi")))
	dir := filepath.Join(t.TempDir(), "gen")
	o := Options{Name: "gen", Language: lang, Dir: dir, From: []byte(text), FromFile: "openi.yaml"}
	if r := generated(t, o); r.Share.Hand != 0 || len(r.Left) != 0 {
		t.Fatalf("something is left to write: %+v", r)
	}
	author := filepath.Join(dir, filepath.FromSlash(c.author))
	own := c.line(`"images"`, `"the fake platform runs all images alike"`) + c.line(`"too little memory"`, `"the fake platform looks at memory from time to time, and misses what is quick"`) +
		c.line(`"waiting"`, `"nothing fills the fake platform here"`)
	indent := own[:len(own)-len(strings.TrimLeft(own, " "))]
	comment := map[string]string{"python": "# ", "typescript": "// "}[lang]
	edit(t, author, indent+comment+"pcm:end unsupported", own+indent+comment+"pcm:end unsupported")

	settings, err := json.Marshal(map[string]string{"endpoint": "http://" + s.address, "username": "pcm", "image": openi.DefaultImage})
	if err != nil {
		t.Fatal(err)
	}
	trial, err := json.Marshal(map[string]any{
		"patience": "2m", "pace": "1s", "many": 12, "parallel": 6, "gpus": 2, "missing": "no-such-program", "task": taskProgram(t), "subject": c.subject,
		"env": []string{"OCTOPUS_*", "NVIDIA_VISIBLE_DEVICES", "OLDPWD", "SHLVL", "_"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range slices.Concat(c.steps, c.checks) {
		cmd := exec.CommandContext(t.Context(), step[0], step[1:]...)
		if strings.HasPrefix(step[0], ".") {
			cmd.Path = filepath.Join(dir, step[0])
		}
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PCM="+pcmProgram(t), "ADAPTER_SETTINGS="+string(settings), "ADAPTER_TRIAL="+string(trial), "password=correct horse")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", step, err, out)
		}
	}

	// The description changes; what the author wrote stays, byte for byte.
	before := read(t, author)
	o.From = []byte(strings.Replace(text, `"30": {state: running}`, `"31": {state: running}`, 1))
	r := generated(t, o)
	if len(r.Orphaned) != 0 || !slices.Contains(r.Kept, c.author+": unsupported") || read(t, author) != before {
		t.Errorf("the author's part did not stay: %+v", r)
	}
	if !strings.Contains(read(t, filepath.Join(dir, filepath.FromSlash(c.states))), `"31"`) {
		t.Error("the description's change did not come")
	}
	if r.Share.Hand != 3 || r.Share.Percent() < 99 {
		t.Errorf("%d lines by hand, %.1f %% generated", r.Share.Hand, r.Share.Percent())
	}
}

// pcmProgram is the program whose 'adapter test' projects' tests call.
func pcmProgram(t *testing.T) string {
	t.Helper()
	if p := os.Getenv("PCM"); p != "" {
		return p
	}
	p, err := build(filepath.Join(t.TempDir(), "pcm"), "", "github.com/jointcloud/pcm/cmd/pcm")
	if err != nil {
		t.Fatal(err)
	}
	return p
}
