package generate

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The texts for the shell are the same in all languages.
func TestToolTexts(t *testing.T) {
	files := map[string]string{"go": "pcm_tool.go.tmpl", "python": "src/NAME/pcm_tool.py.txt", "typescript": "src/pcm_tool.ts.txt"}
	text := func(lang string) string {
		return strings.ReplaceAll(read(t, filepath.Join("templates", lang, "support-bare", files[lang])), `\${`, `${`)
	}
	_, script, ok := strings.Cut(text("go"), "const outputsScript = `")
	script, _, _ = strings.Cut(script, "`")
	if !ok || !strings.Contains(script, "tar -cf") {
		t.Fatalf("the text that packs outputs is not there: %q", script)
	}
	for lang := range files {
		for _, want := range []string{
			script, " && trap : TERM && echo $$ >pid.new && mv pid.new pid || exit 125\n", "(cd work && exec 9>&- && exec ",
			") </dev/null >stdout 2>stderr\necho $? >code.new && mv code.new code\npkill -KILL -s $$\n",
		} {
			if !strings.Contains(text(lang), want) {
				t.Errorf("%s lacks\n%s", lang, want)
			}
		}
	}
}

const goTool = `package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"jobs/pluginpb"
)

func TestTool(t *testing.T) {
	ctx := context.Background()
	if said, err := (toolCall{Stdin: strings.NewReader("hello")}).run(ctx, "cat"); err != nil || string(said) != "hello" {
		t.Errorf("%q, %v", said, err)
	}
	for words, c := range map[string]struct {
		call    toolCall
		command string
	}{
		"exit status 3: no room": {toolCall{}, "echo no room >&2; exit 3"},
		"more than it may":       {toolCall{Most: 10}, "while :; do echo line; done"},
		"more than 1 s":          {toolCall{Seconds: 1}, "exec sleep 300"},
	} {
		if _, err := c.call.run(ctx, "sh", "-c", c.command); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", words, err)
		}
	}

	dir, secret := t.TempDir(), filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("treasure"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "work"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := &pluginpb.StartRequest{
		Key: "trd-a.0.1", Env: map[string]string{"WHAT": "it's"}, Outputs: []string{"d", "dir/secret", "absent", "big"}, OutputCapBytes: 1000,
		Command: []string{"sh", "-c", "printf %s \"$WHAT\"; mkdir d; echo one >d/one; ln -s one d/two; ln -s " + filepath.Dir(secret) + " dir; head -c 30000000 /dev/zero >big; exit 5"},
	}
	if _, err := (toolCall{}).run(ctx, "setsid", "-w", "sh", "-c", taskScript(r, dir)); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the session does not end: %v", err)
	}
	get := func(name string) string {
		data, _ := os.ReadFile(name)
		return string(data)
	}
	if out, code := get(dir+"/stdout"), get(dir+"/code"); out != "it's" || code != "5\n" {
		t.Errorf("it printed %q, and ended with %q; %s", out, code, get(dir+"/stderr"))
	}
	var tar bytes.Buffer
	most := mostOfOutputs(r)
	if _, err := (toolCall{To: &tar, Most: most}).run(ctx, append([]string{"sh", "-c", outputsScript, "sh", dir, asText(most)}, r.Outputs...)...); err != nil {
		t.Fatal(err)
	}
	if int64(tar.Len()) != most {
		t.Errorf("%d bytes, not %d", tar.Len(), most)
	}
	to := t.TempDir()
	if err := unpack(&tar, to, r.Outputs); err == nil {
		t.Error("what is cut off passes for whole")
	}
	if big := get(to + "/big"); get(to+"/d/one") != "one\n" || get(to+"/dir/secret") != "" || len(big) <= 1000 || len(big) >= 30000000 {
		t.Errorf("unpacked: %q, %q, %d bytes", get(to+"/d/one"), get(to+"/dir/secret"), len(big))
	}
}
`

// A project's means to drive programs keep their bounds, and take nothing from elsewhere.
func TestGoTool(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "jobs")
	generated(t, Options{Name: "jobs", Language: "go", Dir: dir})
	if err := os.WriteFile(filepath.Join(dir, "tool_test.go"), []byte(goTool), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "test", "-count=1", "-run", "TestTool", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
