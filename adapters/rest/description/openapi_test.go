package description

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
)

const jobsAPI = `openapi: 3.1.0
info: {title: jobs, version: "1"}
paths:
  /jobs/{id}:
    parameters: [{name: id, in: path, required: true}]
    get: {operationId: getJob}
    delete: {operationId: endJob, parameters: [{$ref: "#/components/parameters/force"}]}
  /jobs:
    post:
      operationId: makeJob
      requestBody:
        required: true
        content: {application/json: {schema: {$ref: "#/components/schemas/Job"}}}
components:
  parameters: {force: {name: force, in: query, required: true}}
  schemas:
    Named: {type: object, required: [name], properties: {name: {type: string}}}
    Job:
      allOf: [{$ref: "#/components/schemas/Named"}, {type: object, properties: {argv: {type: array}, size: {type: integer}}}]
`

func TestOperations(t *testing.T) {
	byOperation := strings.NewReplacer(
		"about: a test\n", "about: a test\nopenapi: jobs.yaml\n",
		"    method: POST\n    path: /jobs\n", "    operation: makeJob\n",
		`one: {request: {path: "/jobs/${id}"}}`, `one: {request: {operation: getJob, params: {id: "${id}"}}}`,
		`{method: DELETE, path: "/jobs/${id}"}`, `{operation: endJob, params: {id: "${id}"}, query: {force: "true"}}`,
	).Replace(small)
	parse := func(text string) (*Description, []Problem) {
		return ParseIn([]byte(text), fstest.MapFS{"jobs.yaml": {Data: []byte(jobsAPI)}, "two.yaml": {Data: []byte("openapi: 2.0.0")}})
	}
	d, problems := parse(byOperation)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	path, err := d.Watch.One.Request.Path.Text(t.Context(), map[string]any{"id": "j7"})
	if err != nil || path != "/jobs/j7" || d.Create.Request.Method != "POST" {
		t.Errorf("path %q, %v; create by %s", path, err, d.Create.Request.Method)
	}
	for _, c := range []struct{ from, to, want string }{
		{"makeJob", "makeJobs", `line 18: create.request.operation: jobs.yaml has no operation "makeJobs"; did you mean "makeJob"?`},
		{`{operation: getJob, params: {id: "${id}"}}`, "{operation: getJob}", "operation getJob needs the parameter id in its path"},
		{`, query: {force: "true"}`, "", "operation endJob needs the parameter force in its query"},
		{`query: {force: "true"}`, `query: {force: "true", soft: "1"}`, "operation endJob has no such parameter"},
		{`params: {id: "${id}"}, query`, `params: {id: "${id}", no: x}, query`, "no such parameter in its path"},
		{`name: "${task.key}", `, "", "operation makeJob needs name in its body"},
		{"size: 3", "sise: 3", `operation makeJob knows no such field; did you mean "size"?`},
		{"operation: makeJob", "operation: makeJob\n    path: /jobs", "leave them out"},
		{"openapi: jobs.yaml", "openapi: none.yaml", "line 4: openapi: open none.yaml"},
		{"openapi: jobs.yaml", "openapi: two.yaml", "not an OpenAPI document of version 3"},
		{"openapi: jobs.yaml\n", "", "there is no OpenAPI document"},
	} {
		if !strings.Contains(byOperation, c.from) {
			t.Fatalf("no %q", c.from)
		}
		if _, problems := parse(strings.Replace(byOperation, c.from, c.to, 1)); !strings.Contains(fmt.Sprint(problems), c.want) {
			t.Errorf("%s: %v, want %q", c.to, problems, c.want)
		}
	}
}
