package description

import (
	"strings"
	"testing"
)

const small = `pcm: adapter/1
name: small
about: a test
settings:
  endpoint: {about: where it is, required: true}
servers:
  api: ${settings.endpoint}/v1
login: {kind: none}
pools:
  list:
    request: {path: /flavors}
    items: body.flavors
    paging: {kind: marker, param: marker, marker: item.id}
  pool: {id: "${item.id}", cpu: "${item.cpus}", memory: "${item.mib} MiB"}
create:
  request:
    method: POST
    path: /jobs
    body: {name: "${task.key}", argv: "${task.command}", size: 3}
  id: $.id
watch:
  one: {request: {path: "/jobs/${id}"}}
  status: {state: $.state}
states:
  done: {state: ended, outcome: ok}
find:
  list: {request: {path: /jobs}, items: $.jobs}
  where: item.name == task.key
  id: $.id
logs:
  - {stream: stdout, request: {path: "/jobs/${id}/log", answer: text}}
stop: {request: {method: DELETE, path: "/jobs/${id}"}}
`

func TestParse(t *testing.T) {
	d, problems := Parse([]byte(small))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	vars := map[string]any{"task": map[string]any{"key": "k", "command": []any{"a", "b"}}}
	body, err := d.Create.Request.Body.Render(t.Context(), vars)
	if err != nil || body.(map[string]any)["name"] != "k" || len(body.(map[string]any)["argv"].([]any)) != 2 || body.(map[string]any)["size"] != int64(3) {
		t.Errorf("body %v, %v", body, err)
	}
	if id, err := d.Create.ID.Eval(t.Context(), map[string]any{"body": map[string]any{"id": "j1"}}); err != nil || id != "j1" {
		t.Errorf("id %v, %v", id, err)
	}
	if s, err := d.Watch.Status.State.Eval(t.Context(), map[string]any{"job": map[string]any{"state": "done"}}); err != nil || s != "done" {
		t.Errorf("state %v, %v", s, err)
	}
	if d.Servers["api"].Compiled() == nil {
		t.Error("templates in maps are not compiled")
	}
}

func TestProblems(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"pcm: adapter/1", "pcm: adapter/9", `line 1: pcm: the form is "adapter/9"`},
		{"id: $.id", "id: nobody.id", "line 20: create.id: in expression"},
		{"path: /jobs\n", "path: /jobs/${id}\n", "line 18: create.request.path: in expression"},
		{"about: a test", "abuot: a test", "line 3"},
		{"name: small", "name: [", "line"},
	} {
		if !strings.Contains(small, c.from) {
			t.Fatalf("no %q", c.from)
		}
		d, problems := Parse([]byte(strings.Replace(small, c.from, c.to, 1)))
		if d != nil || len(problems) == 0 || !strings.Contains(problems[0].String(), c.want) {
			t.Errorf("%s: %v, want %q", c.to, problems, c.want)
		}
	}
}
